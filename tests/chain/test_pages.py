"""Page answers in the chain: ways compared on development questions, the kept one served, answers kept to the tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from riverrun.agent.ground import Extract, Found, Grounding
from riverrun.base.errors import ConfigError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Request
from riverrun.base.types import Document, Message, SamplingParams
from riverrun.chain.application import open_application, open_models, pages_of
from riverrun.chain.drafting import _answers
from riverrun.chain.pages import MODES, Prompted, base_beside, served_mode, writer_of
from riverrun.chain.report import build_report
from riverrun.chain.run import run_app
from riverrun.chain.spec import AppSpec, load_app
from riverrun.chain.stage import read_json, read_jsonl
from tests.chain.conftest import QUIET
from tests.chain.doubles import PARTS, RuleModel

FOUND = Found("gifts", ("gifts.html",), "[gifts.html] Gifts: Wrapping costs two dollars.")
PARAMS = SamplingParams(max_tokens=160)


def ask(text: str) -> Request:
    return Request(messages=(Message.of("user", text),))


@pytest.fixture(scope="module")
def compared(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared") / "run"
    overrides = ["pages.compare=true", "agent.grounded=true", "agent.closing=rows"]
    run_app(recipe, overrides, out=out, progress=QUIET, parts=PARTS, isolate=False)
    return out


def test_all_ways_are_compared_and_one_is_served(compared: Path) -> None:
    made = read_json(compared / "evaluate" / "pages.json")
    assert made["chosen"] == served_mode(compared) == "extract"
    assert "1/1" in made["why"]
    summary = read_json(compared / "summary.json")["pages"]
    assert set(MODES) < set(summary)
    assert summary["n"] == summary["routed"] == 1
    assert summary["extract"]["success"] == 1.0
    assert all(len(read_jsonl(compared / "evaluate" / f"pages_{mode}.jsonl")) == 1 for mode in MODES)
    server = read_json(compared / "deploy" / "server.json")
    assert (server["pages"], server["base"]) == ("extract", "")
    assert made["why"].split(" (")[0] in build_report(compared)


def test_the_application_answers_in_the_way_that_was_kept(compared: Path) -> None:
    with open_application(compared, parts=PARTS) as application:
        model = application.models["tiny-shop"]
        assert isinstance(model, RuleModel)
        (page,) = application.agent.generate([ask("Is shipping fast?")])
        assert "three working days" in page.message.text.lower()
        assert len(model.requests) == 1
        (price,) = application.agent.generate([ask("How much is Salt Road 3?")])
        assert price.message.text == "price: 26.5"
        assert len(model.requests) == 2
    answers = read_json(compared / "summary.json")["agent"]["page_answers"]
    assert answers["n"] > 0


def test_without_a_comparison_nothing_changes(finished: Path) -> None:
    assert served_mode(finished) == "tuned"
    assert not (finished / "evaluate" / "pages.json").exists()
    assert read_json(finished / "deploy" / "server.json")["pages"] == "tuned"
    assert "pages" not in read_json(finished / "summary.json")


def test_a_second_model_words_what_needs_the_base(finished: Path) -> None:
    spec = AppSpec.model_validate(read_json(finished / "deploy" / "server.json")["spec"])
    data, loaded = finished / "data", []

    class Loading:
        def load(self, name: str) -> Any:
            def make(path: Path, **rest: Any) -> RuleModel:
                loaded.append(PARTS.load(name)(path, **rest))
                return loaded[-1]  # type: ignore[no-any-return]

            return make

    files = [finished / "quantize" / "q4-base-adapter"], data / "shop.sqlite", data / "kept.jsonl"
    parts: Any = Loading()
    with open_models(
        spec, *files, parts, pages="retrieval", base_path=finished / "quantize" / "q4-merged"
    ) as application:
        tuned, base = loaded
        base.script = ["Yes, it is."]
        (answer,) = application.agent.generate([ask("Is shipping fast?")])
        assert len(tuned.requests) == 1
        assert answer.message.text == "Yes, it is."
        assert "[shipping.html]" in base.requests[0].messages[-1].text
        assert not base.requests[0].tools
    assert tuned.closed
    assert base.closed


def test_where_the_base_lies(tmp_path: Path) -> None:
    assert base_beside(tmp_path) is None
    folder = tmp_path / "q4-base-adapter"
    folder.mkdir()
    (folder / "bundle.json").write_text('{"base": "base.gguf", "adapter": "adapter"}')
    assert base_beside(tmp_path) == folder / "base.gguf"
    server = {"pages": "retrieval", "base": "quantize/q4-base-adapter/base.gguf"}
    assert pages_of(tmp_path, server) == {"pages": "retrieval", "base_path": tmp_path / server["base"]}
    assert pages_of(tmp_path, {}) == {"pages": "tuned", "base_path": None}


def test_each_way_puts_its_own_text_before_the_question() -> None:
    tuned, base = FakeModel(name="tuned"), FakeModel(name="base")
    extract = Extract(lambda question: "Wrapping costs two dollars.")
    documents = [Document("a", "First page."), Document("b", "Second page.")]
    assert writer_of("tuned", extract, "en", documents, tuned, base) is None
    shown = {}
    for mode, model in (("prompt", tuned), ("retrieval", base), ("prompt_pages", base)):
        writer = writer_of(mode, extract, "en", documents, tuned, base)
        assert isinstance(writer, Prompted)
        assert writer("What is it?", FOUND, PARAMS).message.text == "ok"
        assert model.requests[-1].params == replace(PARAMS, max_tokens=96)
        shown[mode] = model.requests[-1].messages[-1].text
    assert shown == {
        "prompt": "What is it?",
        "retrieval": f"{FOUND.content}\n\nQuestion: What is it?",
        "prompt_pages": "First page.\n\nSecond page.\n\nQuestion: What is it?",
    }
    quoted = writer_of("extract", extract, "en", documents, tuned, base)
    assert quoted is not None
    assert quoted("What?", FOUND, PARAMS).message.text == "Wrapping costs two dollars."
    assert Grounding(extract).worded("It is 3 dollars.", "What?", FOUND, "en") == "Wrapping costs two dollars."


def test_rows_without_checks_are_refused(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="grounded"):
        load_app(recipe, ["agent.closing=rows"])


def test_small_models_are_drafted_to_list_rows(tmp_path: Path) -> None:
    assert _answers(["smollm2-135m-instruct"])[-1] == "agent: {grounded: true, closing: rows, seconds: 300}"
    large = tmp_path / "large.gguf"
    with large.open("wb") as handle:
        handle.truncate(10**9)  # a hole: no bytes on the disk
    assert _answers([str(large)])[-1] == "agent: {grounded: true, seconds: 300}"
    assert _answers([str(large), "smollm2-135m-instruct"])[-1] == "agent: {grounded: true, seconds: 300}"
