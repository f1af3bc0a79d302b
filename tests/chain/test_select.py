"""Candidates of this machine and behind endpoints: which are kept, why the others fell, and how they serve together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from riverrun.agent.cascade import Cascade
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.fakes import FakeModel, Reply
from riverrun.base.protocols import Request
from riverrun.base.types import Message
from riverrun.chain.application import open_application
from riverrun.chain.candidates import Candidate
from riverrun.chain.preview import preview
from riverrun.chain.run import open_context, run_app
from riverrun.chain.selecting import Judged, decide
from riverrun.chain.spec import CandidateSpec
from riverrun.chain.stage import read_json
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from tests.chain.conftest import QUIET
from tests.chain.doubles import PARTS, RuleModel
from tests.chain.test_chain_run import undocumented

UNKNOWN = "How much is Salt Road 77?"


class Big(RuleModel):
    """Knows every question; of a book that the shop does not have it says so itself."""

    def _reply(self, request: Request) -> Reply:
        asked = [message.text for message in request.messages if message.role == "user"][-1]
        return "We do not have that book." if "77" in asked else super()._reply(request)


@contextmanager
def endpoint(model: FakeModel) -> Iterator[str]:
    with BackgroundServer(make_app({model.info.name: model})) as server:
        yield f"{server.url}/v1"


def given(*entries: Any) -> str:
    return f"candidates={json.dumps(entries)}"


def select(recipe: Path, out: Path, *overrides: str, until: str = "select") -> dict[str, Any]:
    return run_app(recipe, list(overrides), out=out, progress=QUIET, parts=PARTS, isolate=False, until=until)


def ask(text: str) -> Request:
    return Request((Message.of("user", text),))


@pytest.fixture
def two_models(recipe: Path, tmp_path: Path) -> Path:
    """The recipe with a larger model beside the small one."""
    folder = tmp_path / "two"
    shutil.copytree(recipe, folder)
    (folder / "large").mkdir()
    shape = read_json(folder / "model" / "config.json") | {"num_hidden_layers": 40}
    (folder / "large" / "config.json").write_text(json.dumps(shape))
    return folder


def test_an_endpoint_takes_over_what_the_small_model_does_badly_at(recipe: Path, tmp_path: Path) -> None:
    big, out = Big("big", trained=True), tmp_path / "run"
    with endpoint(big) as url:
        overrides = (given("./model", {"endpoint": url, "model": "big", "licence": "mit"}), "select.keep=2")
        summary = select(recipe, out, *overrides, until="report")
        name = f"big@{url.split('/')[2]}"
        assert summary["model"]["name"] == "./model"
        assert summary["select"]["kept"] == ["./model", name]
        small, large = summary["select"]["candidates"]
        assert (small["kind"], large["kind"], large["kept"], large["why"]) == ("local", "endpoint", True, "")
        assert large["dev_score"]["value"] == 1.0 > small["dev_score"]["value"]
        assert large["context_length"] == 4096
        assert min(row["tokens_per_second"] for row in (small, large)) > 0
        assert summary["agent"]["success"] == 1.0
        assert not undocumented(summary)
        assert summary["agent"]["handed_over"] == 0.0, "the tuned model does none of the sealed questions badly"
        big.requests.clear()
        with open_application(out, parts=PARTS) as application:
            assert isinstance(application.agent, Cascade)
            easy, hard = application.agent.generate([ask("How much is Salt Road 3?"), ask(UNKNOWN)])
        assert (easy.message.text, hard.message.text) == ("I found: price: 26.5", "We do not have that book.")
        assert {request.messages[-1].text for request in big.requests} == {UNKNOWN}
    with open_application(out, parts=PARTS) as application:
        (held,) = application.agent.generate([ask(UNKNOWN)])
        assert held.message.text.startswith("I found:"), "the endpoint is down: the small model's answer"
        assert "".join(delta.text for delta in application.agent.stream(ask(UNKNOWN))) == held.message.text
    html = (out / "report" / "index.html").read_text()
    assert name in html
    assert "Development questions" in html
    assert "mit" in html


def test_an_endpoint_that_is_down_falls_and_the_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    dead = {"endpoint": "http://127.0.0.1:9/v1", "model": "big"}
    summary = select(recipe, tmp_path / "run", given("./model", dead), "select.keep=2")
    assert summary["select"]["kept"] == ["./model"]
    row = summary["select"]["candidates"][1]
    assert (row["accepted"], row["reason"]) == (False, "did not answer")
    assert "127.0.0.1:9/v1 cannot be reached" in row["why"]
    stored = read_json(tmp_path / "run" / "select" / "candidates.json")[1]
    assert "why" not in stored
    assert "tokens_per_second" not in stored
    with pytest.raises(InputError, match=r"no candidate can be used: big@127.0.0.1:9: did not answer: .*cannot be"):
        select(recipe, tmp_path / "other", given(dead))


def test_an_endpoint_that_fails_at_the_questions_falls(recipe: Path, tmp_path: Path) -> None:
    class Toolless(FakeModel):
        def generate(self, requests: Any) -> Any:
            raise InputError("this model knows no tools")

    with endpoint(Toolless(name="big")) as url:
        summary = select(recipe, tmp_path / "run", given("./model", {"endpoint": url, "model": "big"}))
    row = summary["select"]["candidates"][1]
    assert row["reason"] == "did not answer"
    assert "did not answer the development questions" in row["why"]
    assert "knows no tools" in row["why"]


def test_every_ground_on_which_a_candidate_falls(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    with endpoint(FakeModel(name="big", context_length=64)) as url:
        base = {"endpoint": url, "model": "big"}
        cases = [
            ({"licence": "secret"}, "its licence secret is not among the allowed apache-2.0, mit, bsd-3-clause"),
            ({"languages": ["de", "zh"]}, "it does not speak en, it knows de, zh"),
            ({"key_variable": "SHOP_KEY"}, "the environment holds no SHOP_KEY: set it"),
            ({}, "its context of 64 tokens is less than the"),
            ({"model": "bigg"}, "did not answer"),
        ]
        for number, (more, expected) in enumerate(cases):
            out = tmp_path / str(number)
            row = select(recipe, out, given("./model", base | more))["select"]["candidates"][1]
            assert not row["accepted"]
            assert expected in row["why"]
    english = select(recipe, tmp_path / "en", given("smollm2-135m-instruct", "./model"), "language=zh")
    assert "does not speak zh, it knows en" in english["select"]["candidates"][0]["why"]
    with endpoint(RuleModel("big", trained=True)) as url:
        entry = {"endpoint": url, "model": "big", "languages": ["zh"]}
        taken = select(recipe, tmp_path / "any", given("./model", entry), "select.languages=any")
    assert taken["select"]["candidates"][1]["accepted"]


def test_a_key_is_sent_and_its_name_alone_is_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_KEY", "very-secret")
    app = make_app({"big": RuleModel("big", trained=True)}, api_keys=["very-secret"])
    with BackgroundServer(app) as server:
        entry = {"endpoint": f"{server.url}/v1", "model": "big", "key_variable": "SHOP_KEY"}
        out = tmp_path / "run"
        summary = select(recipe, out, given("./model", entry), "select.keep=2", until="deploy")
    assert len(summary["select"]["kept"]) == 2
    written = [path for path in out.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]
    assert not written
    monkeypatch.delenv("SHOP_KEY")
    with pytest.raises(InputError, match="holds no SHOP_KEY"), open_application(out, parts=PARTS):
        pass


def test_without_questions_the_first_ones_are_kept(two_models: Path, tmp_path: Path) -> None:
    summary = select(two_models, tmp_path / "run", given("./large", "./model"), "select.dev_questions=0")
    assert summary["select"]["kept"] == ["./large"]
    assert summary["select"]["candidates"][1]["reason"] == "select.keep = 1, and ./large comes before it"


def test_the_better_of_two_is_tuned_and_the_other_says_why_not(two_models: Path, tmp_path: Path) -> None:
    summary = select(two_models, tmp_path / "run", given("./model", "./large"))
    small, large = summary["select"]["candidates"]
    assert summary["model"]["name"] == "./large"
    lost = large["dev_score"]["value"] - small["dev_score"]["value"]
    assert small["why"] == f"scored {small['dev_score']['value']:.2f}, {lost:.2f} below ./large"


def test_a_larger_model_of_this_machine_goes_with_the_run_folder(two_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = select(two_models, out, given("./large", "./model"), "select.keep=2", until="deploy")
    assert summary["select"]["kept"] == ["./model", "./large"], "the smaller one is tuned and asked first"
    server = read_json(out / "deploy" / "server.json")
    assert [model["path"].split("/")[0] for model in server["models"]] == ["quantize", "deploy"]
    assert (out / "deploy" / "larger-1" / "config.json").is_file()
    shutil.rmtree(two_models)
    moved = out.rename(tmp_path / "moved")
    with open_application(moved, parts=PARTS) as application:
        assert application.agent.generate([ask("How much is Salt Road 3?")])[0].message.text == "I found: price: 26.5"
        assert list(application.models) == ["tiny-shop", "tiny-shop-agent"]


def test_an_endpoint_alone_is_neither_tuned_nor_quantised(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with endpoint(Big("big", trained=True)) as url:
        entry = {"endpoint": url, "model": "big"}
        summary = select(recipe, out, given(entry), "gates.choice_perf=null", until="report")
        assert summary["plan"]["chosen"] == "none"
        assert summary["quantize"] == {"chosen": "endpoint"}
        assert "no weights to quantise" in summary["stages"]["quantize"]["counts"]["why"]
        assert summary["scores"]["tool"]["tuned"]["success"] == summary["agent"]["success"] == 1.0
        assert "retention" not in summary
        assert not undocumented(summary)
        with open_application(out, parts=PARTS) as application:
            assert application.agent.generate([ask("How much is Salt Road 3?")])[0].message.text.endswith("26.5")
    assert "used as it is" in (out / "report" / "index.html").read_text()


def test_a_dry_run_tells_of_endpoints(recipe: Path, tmp_path: Path) -> None:
    entry = {"endpoint": "http://127.0.0.1:9/v1", "model": "big", "licence": "secret"}
    text = preview(open_context(recipe, [given(entry, "./model")], out=tmp_path / "out", parts=PARTS))
    assert "big@127.0.0.1:9: secret, at http://127.0.0.1:9/v1; refused" in text
    assert "* lora" in text
    alone = preview(open_context(recipe, [given(entry)], out=tmp_path / "out", parts=PARTS))
    assert "* lora" not in alone


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('candidates=[{"endpoint": "http://a/v1", "modle": "x"}]', r"unknown key 'modle'. Did you mean 'model'"),
        ('candidates=[{"endpoint": "a/v1", "model": "x"}]', "an endpoint is an http address"),
        ("candidates=[3]", r"entry 1 is 3: give a name, a path or \{endpoint: URL, model: ID\}"),
        ("candidates=[./model, ./model]", "names './model' twice"),
        ("select.keep=2", "select.keep = 2 is more than the 1 candidates"),
        ("select.keep=0", "'select.keep' = 0"),
        ("select.languages=all", "'select.languages' = 'all'"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(recipe: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        open_context(recipe, [override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def judged(name: str, score: float | None, *, gigabytes: float = 1.0, remote: bool = False) -> Judged:
    entry = CandidateSpec(endpoint="http://127.0.0.1/v1", model=name) if remote else None
    row = {"name": name, "accepted": True, "kept": False, "reason": "", "memory_bytes": round(gigabytes * 1e9)}
    row["dev_score"] = None if score is None else {"value": score}
    if remote:
        row["memory_bytes"] = 0
    return Judged(Candidate(name, "", "", None, 0, endpoint=entry), row)


def kept(rows: list[Judged], keep: int, gigabytes: float = 100.0) -> list[str]:
    return [each.candidate.name for each in decide(rows, keep, round(gigabytes * 1e9))]


def test_which_are_kept_and_in_which_order() -> None:
    def rows() -> list[Judged]:
        return [
            judged("huge", 0.9, gigabytes=20),
            judged("small", 0.2, gigabytes=1),
            judged("middle", 0.6, gigabytes=4),
            judged("far", 0.8, remote=True),
        ]

    assert kept(rows(), 1) == ["huge"]
    assert kept(rows(), 2) == ["huge"], "the endpoint scores below it"
    assert kept(rows(), 3) == ["middle", "huge", "far"]
    assert kept(rows(), 4) == ["small", "middle", "huge", "far"]
    assert kept(rows(), 4, gigabytes=6) == ["small", "middle", "far"]


def test_reasons_hold_both_figures() -> None:
    big = [judged("small", 0.5), judged("large", 0.5, gigabytes=9)]
    assert kept(big, 2, gigabytes=6) == ["small"]
    assert big[1].why == "needs 9.00 GB beside small and 5.00 GB are available"
    assert big[1].row["reason"] == "too large beside small", "no figure of the machine stands in the file"
    worse = [judged("small", 0.5), judged("large", 0.4, gigabytes=9)]
    assert kept(worse, 2) == ["small"]
    assert worse[1].why == "scored 0.40, 0.10 below small, which is asked first"
    alone = [judged("small", 0.5), judged("far", 0.9, remote=True)]
    assert kept(alone, 1) == ["small"]
    assert alone[1].why.startswith("scored 0.90; an endpoint is not tuned, and select.keep = 1 keeps small (with")
    same = [judged("one", 0.5), judged("two", 0.5)]
    assert kept(same, 1) == ["one"]
    assert same[1].why == "scored 0.50 as one did, which comes before it"
    assert kept([judged("far", 0.3, remote=True), judged("farther", 0.7, remote=True)], 1) == ["farther"]
