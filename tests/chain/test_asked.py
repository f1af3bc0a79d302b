"""What an application is asked: a larger model at a real endpoint rewords, the key comes from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Request
from riverrun.chain.asked import gather
from riverrun.chain.assistant import make_assistant
from riverrun.chain.run import open_context
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from tests.data.hostile import make

SPEC = """
name: shop
system: Help.
candidates: [model]
database: {path: shop.sqlite}
synthesis: {train: 40, dev: 5, sealed: 10, paraphrase: {url: "URL", model: big, share: 0.5}}
"""


def reply(request: Request) -> str:
    return "Dear me, " + request.messages[-1].text.rpartition("\n")[2]


def test_training_questions_are_reworded_at_an_endpoint(tmp_path: Path) -> None:
    database = make("undeclared", tmp_path / "shop.sqlite")
    with BackgroundServer(make_app({"big": FakeModel(reply, name="big")}, title="big"), "127.0.0.1", 0) as server:
        (tmp_path / "app.yaml").write_text(SPEC.replace("URL", f"{server.url}/v1"))
        ctx = open_context(tmp_path, out=tmp_path / "out")
        assistant = make_assistant(ctx.spec, database, [])
        asked = gather(ctx, database, [], assistant)
        plain = gather(ctx, database, [], assistant, reword=False)
    reworded = [q for q in asked.questions["train"] if q.text.startswith("Dear me, ")]
    able = [q for q in plain.questions["train"] if q.sql]
    assert len(reworded) == round(0.5 * len(able))
    assert asked.questions["sealed"] == plain.questions["sealed"]
    assert not any(q.text.startswith("Dear me") for q in plain.questions["train"])
    assert any("0 of" in what and "paraphrases" in what for what in asked.left_out)


def test_a_key_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make("undeclared", tmp_path / "shop.sqlite")
    monkeypatch.delenv("SOME_KEY", raising=False)
    (tmp_path / "app.yaml").write_text(SPEC.replace("URL", "http://127.0.0.1:9/v1"))
    ctx = open_context(tmp_path, ["synthesis.paraphrase.key_variable=SOME_KEY"], out=tmp_path / "out")
    with pytest.raises(InputError, match="the environment holds no SOME_KEY"):
        gather(ctx, database, [], make_assistant(ctx.spec, database, []))
