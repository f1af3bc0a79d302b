"""Targets: predicted by the plan, chosen for by quantize, measured under load by deploy, judged as gates."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from riverrun.base.errors import CapacityError, ConfigError, GateError, InputError, RiverrunError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Delta, Request
from riverrun.chain.load import Load, arrivals, best_trial, run_load, variations
from riverrun.chain.run import open_context, run_app
from riverrun.chain.spec import AppSpec, TargetsSpec, load_app
from riverrun.chain.stage import read_json, read_jsonl
from riverrun.chain.stages.quantize import FormScore, choose_form
from riverrun.plan.hardware import Hardware
from riverrun.serve.client import RemoteModel
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from tests.chain.conftest import QUIET
from tests.chain.doubles import PARTS, RuleModel
from tests.chain.test_chain_run import undocumented

FAST = Hardware("fast", 8_000_000_000, {"fp32": 1e12, "bf16": 1e12}, 2, 1e11)


class Slow(RuleModel):
    """So many seconds before each answer, one answer at a time."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, trained=True)
        self.busy, self.seconds = threading.Lock(), seconds

    def stream(self, request: Request) -> Iterator[Delta]:
        with self.busy:
            time.sleep(self.seconds)
        yield from super().stream(request)


def slow_model(path: Path, *, adapter: Path | None = None, name: str = "", threads: int = 0, slots: int = 32) -> Slow:
    return Slow(name, 0.015)


SLOW_PARTS = replace(PARTS, model="tests.chain.test_targets:slow_model")


@pytest.fixture
def spec(recipe: Path) -> AppSpec:
    return load_app(recipe, ["targets={rps: 60, p95_ttft_ms: 500}", "deploy.load_seconds=0.5"])[0]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riverrun.chain.stages.plan.measure_machine", lambda dtype, memory: FAST)


def run(recipe: Path, out: Path, *overrides: str, parts: Any = PARTS, until: str = "deploy") -> dict[str, Any]:
    given = [*overrides, "deploy.load_seconds=0.1"]
    return run_app(recipe, given, out=out, progress=QUIET, parts=parts, isolate=False, until=until)


def loaded(model: FakeModel, spec: AppSpec) -> Load:
    with BackgroundServer(make_app({"m": model})) as server, RemoteModel(f"{server.url}/v1", "m", attempts=1) as remote:
        return run_load(remote, ["a", "b"], spec)


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    plan = arrivals(5.0, 20.0, seed=7)
    assert len(plan) == 100
    assert (plan[0], plan[-1]) == (0.0, 99 / 5)
    assert plan == sorted(plan) == arrivals(5.0, 20.0, seed=7) != arrivals(5.0, 20.0, seed=8)
    gaps = [after - before for before, after in pairwise(plan)]
    assert max(gaps) > 3 * min(gaps), "not a metronome"
    assert len(arrivals(0.5, 20.0, seed=7)) == 30, "never fewer than thirty"


def test_a_quick_server_keeps_up_and_a_slow_one_does_not(spec: AppSpec) -> None:
    quick = loaded(FakeModel(["one two three"]), spec)
    assert (quick.requests, quick.errors) == (33, 0)
    assert quick.offered_rps == 66
    assert 0 < quick.p50_ttft_ms <= quick.p95_ttft_ms <= quick.p99_ttft_ms
    assert quick.p50_ttft_ms <= quick.p50_latency_ms
    assert quick.memory_gb > 0.01
    slow = loaded(Slow("slow", 0.05), spec)
    assert slow.rps < 60, "twenty a second is all it can do"
    assert slow.p95_ttft_ms > 500, "the last ones wait for a second"
    assert "rps" in slow.missed(spec.targets)


def test_failed_requests_are_no_quick_answers(spec: AppSpec) -> None:
    def reply(request: Request) -> str:
        if request.messages[-1].text == "b":
            raise RiverrunError("no")
        return "yes"

    load = loaded(FakeModel(reply), spec)
    assert (load.requests, load.errors) == (33, 16)
    assert load.rps < 60
    assert load.p95_ttft_ms > 400, "they count as having waited for the whole test"


LOAD = Load(30, 0, 11.0, 10.0, 50.0, 100.0, 120.0, 200.0, 300.0, 1.0)


def test_what_is_missed_and_by_how_much() -> None:
    assert LOAD.missed(TargetsSpec(rps=10.0, p95_ttft_ms=100.0, memory_gb=1.0)) == {}
    assert LOAD.missed(TargetsSpec(rps=20.0, p95_ttft_ms=50.0, memory_gb=0.5)) == {
        "rps": 2.0,
        "p95_ttft_ms": 2.0,
        "memory_gb": 2.0,
    }
    assert LOAD.missed(TargetsSpec(success=1.0)) == {}


def test_settings_are_tried_until_one_meets_the_targets(spec: AppSpec) -> None:
    assert [each.deploy.slots for each in variations(spec, ["rps"])] == [64, 16]
    assert [each.deploy.slots for each in variations(spec, ["p95_ttft_ms"])] == [16, 8]

    def measure(times: dict[int, float], asked: list[int]) -> Any:
        def one(tried: AppSpec) -> Load:
            asked.append(tried.deploy.slots)
            return replace(LOAD, rps=60.0, p95_ttft_ms=times[tried.deploy.slots])

        return one

    asked: list[int] = []
    best, trials = best_trial(spec, measure({32: 400.0}, asked))
    assert (best.setting, asked, len(trials)) == ({"slots": 32, "drafts": 1}, [32], 1)
    asked.clear()
    best, _ = best_trial(spec, measure({32: 900.0, 16: 450.0}, asked))
    assert (best.setting["slots"], asked) == (16, [32, 16])
    asked.clear()
    best, trials = best_trial(spec, measure({32: 900.0, 16: 600.0, 8: 700.0}, asked))
    assert (best.setting["slots"], asked) == (16, [32, 16, 8])
    assert all(trial.missed for trial in trials)


def test_fewer_drafts_are_tried_first_where_the_agent_has_them(spec: AppSpec) -> None:
    class WithDrafts(type(spec.agent)):  # type: ignore[misc]
        drafts: int = 4

    drafting = spec.model_copy(update={"agent": WithDrafts(drafts=4)})
    tried = [(each.agent.drafts, each.deploy.slots) for each in variations(drafting, ["rps"])]  # type: ignore[attr-defined]
    assert tried == [(2, 32), (1, 32), (1, 64), (1, 16)]


def test_a_run_that_reaches_its_targets(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riverrun.chain.load.LEAST_REQUESTS", 5)  # a rate that any machine keeps up with, not for long
    out = tmp_path / "run"
    targets = "targets={rps: 2, p95_ttft_ms: 20000, memory_gb: 64, success: 0.9}"
    summary = run(recipe, out, targets, until="report")
    gates = {gate["name"]: gate for gate in summary["gates"] if gate["name"].startswith("targets.")}
    assert set(gates) == {"targets.rps", "targets.p95_ttft_ms", "targets.memory_gb", "targets.success"}
    assert all(gate["passed"] for gate in gates.values())
    assert gates["targets.rps"]["bar"] == 2
    assert summary["load"]["requests"] == 5
    assert summary["load"]["slots"] == 32
    assert {form["name"] for form in read_json(out / "plan" / "plan.json")["forms"]} == set(summary["plan"]["forms"])
    stored = read_json(out / "deploy" / "load.json")
    assert stored == {"chosen": {"slots": 32, "drafts": 1}, "trials": [{"slots": 32, "drafts": 1, "missed": []}]}
    assert len(summary["stages"]["deploy"]["counts"]["trials"]) == 1
    html = (out / "report" / "index.html").read_text()
    assert "p95_ttft_ms" in html
    assert "Targets" in html
    assert not undocumented(summary)


def test_without_targets_nothing_is_loaded(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    assert "load" not in summary
    assert "forms" not in summary["plan"]
    assert not (finished / "deploy" / "load.json").exists()
    assert not [gate for gate in summary["gates"] if gate["name"].startswith("targets")]


def test_a_target_that_is_missed_under_load_stops_the_release(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    overrides = ("targets={rps: 12, p95_ttft_ms: 10}", "deploy.slots=4")
    with pytest.raises(
        GateError, match=r"gate 'targets.p95_ttft_ms': measured .*, the bar is 10\. Offer less"
    ) as caught:
        run(recipe, out, *overrides, parts=SLOW_PARTS)
    assert caught.value.exit_code == 3
    stored = read_json(out / "deploy" / "load.json")
    assert {trial["slots"] for trial in stored["trials"]} >= {4, 2}
    assert all("p95_ttft_ms" in trial["missed"] for trial in stored["trials"])
    assert read_json(out / "deploy" / "server.json")["spec"]["deploy"]["slots"] == stored["chosen"]["slots"]
    assert read_json(out / "summary.json")["load"]["p95_ttft_ms"] > 10


def test_a_success_that_is_missed_is_a_gate_of_its_own(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe, out, "agent.steps=1", until="agent")
    answers = read_jsonl(out / "agent" / "answers.jsonl")
    share = sum(row["success"] for row in answers) / len(answers)
    assert share == 1.0
    with BackgroundServer(make_app({"dull": FakeModel(["I do not know."], name="dull")})) as server:
        entry = json.dumps([{"endpoint": f"{server.url}/v1", "model": "dull"}])
        bars = "gates={success: null, choice_perf: null}"
        with pytest.raises(GateError, match=r"gate 'targets.success': measured 0\.\d+, the bar is 0.9\. Read agent"):
            run(recipe, tmp_path / "dull", f"candidates={entry}", bars, "targets.success=0.9", until="agent")


def test_the_plan_refuses_what_is_far_out_of_reach(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(CapacityError, match=r"targets.memory_gb = 0.1: .* is predicted to reach 0\.\d+ GB: change"):
        run(recipe, out, "targets.memory_gb=0.1", until="plan")
    with pytest.raises(CapacityError, match=r"targets.rps = 1e\+09: .* answers a second"):
        run(recipe, out, "targets.rps=1000000000", until="plan")
    doubtful = run(recipe, out, "targets.memory_gb=0.4", until="plan")
    (sentence,) = doubtful["stages"]["plan"]["counts"]["targets"]
    assert "the load test will tell" in sentence


def test_a_load_test_needs_development_questions(recipe: Path, tmp_path: Path) -> None:
    overrides = ("targets.rps=5", "data.dev_per_intent=0", "select.dev_questions=0")
    with pytest.raises(InputError, match=r"asks development questions and there are none: set data\.dev_per_intent"):
        run(recipe, tmp_path / "run", *overrides)


def test_a_form_is_chosen_by_development_questions(finished: Path, recipe: Path, tmp_path: Path) -> None:
    summary = read_json(finished / "summary.json")
    dev = {name: summary["quantize"][name]["dev"] for name in ("q4-base-adapter", "q4-merged")}
    asked = len(read_jsonl(finished / "data" / "questions_dev.jsonl"))
    assert [rate["n"] for rate in dev.values()] == [asked, asked]
    assert len(read_jsonl(finished / "quantize" / "dev_q4-merged.jsonl")) == asked
    assert re.match(
        r"q4-[\w-]+: of q4-base-adapter 1.000, q4-merged 1.000", summary["stages"]["quantize"]["counts"]["why"]
    )
    asked_for = run(recipe, tmp_path / "run", "quantize.prefer=q4-base-adapter", until="quantize")
    assert asked_for["quantize"]["chosen"] == "q4-base-adapter"
    assert not (tmp_path / "run" / "quantize" / "dev_q4-merged.jsonl").exists(), "nothing is left to choose"
    sealed = run(recipe, tmp_path / "run", "data.dev_per_intent=0", "select.dev_questions=0", until="quantize")
    assert sealed["quantize"]["chosen"] in dev, "without development questions the sealed ones decide, as before"


def test_forms_that_miss_a_target_are_out() -> None:
    good, small = FormScore(0.90, 0.95, 200, 3_000_000_000), FormScore(0.60, 0.70, 100, 1_000_000_000)
    forms = {"good": good, "small": small}
    assert choose_form(forms, TargetsSpec())[0] == "good"
    assert choose_form({"good": good, "small": replace(small, success=0.90)}, TargetsSpec())[0] == "small", "a tie"
    chosen, why = choose_form(forms, TargetsSpec(memory_gb=2.0))
    assert chosen == "small"
    assert "good is out (3.00 GB predicted, targets.memory_gb is 2)" in why
    assert choose_form(forms, TargetsSpec(success=0.92))[0] == "good", "0.90 of few questions may be 0.92"
    chosen, why = choose_form(forms, TargetsSpec(success=0.99, memory_gb=2.0))
    assert chosen == "good"
    assert "no form meets the targets, good is the nearest (at most 0.95 of the questions right" in why


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("targets.rps=0", "'targets.rps' = 0"),
        ("targets.success=2", "'targets.success' = 2"),
        ("targets.p95_ms=5", "unknown key 'targets.p95_ms'. Did you mean 'p95_ttft_ms'"),
        ("targets.memory_gb=-1", "'targets.memory_gb' = -1"),
        ("deploy.slots=0", "'deploy.slots' = 0"),
        ("deploy.load_seconds=0", "'deploy.load_seconds' = 0"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(recipe: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        open_context(recipe, [override])
    assert "\n" not in str(caught.value)
