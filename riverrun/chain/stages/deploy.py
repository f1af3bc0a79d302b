"""deploy: write down what is served, start the server once on a free port and check it as a client would.

With targets the live server is loaded as well, in one setting after the other until it reaches them. load.json says
which were tried and what each missed; the times are in the summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.progress import Progress
from riverrun.chain.application import SERVER_FILE, Application, Source, describe, open_models, pages_of
from riverrun.chain.candidates import base_endpoint, kept_models
from riverrun.chain.load import Load, Trial, best_trial, run_load
from riverrun.chain.measure import dev_questions
from riverrun.chain.process import reset_peak_memory
from riverrun.chain.quantizing import copy_model
from riverrun.chain.serving import check_server, serving
from riverrun.chain.spec import AppSpec, CandidateSpec
from riverrun.chain.stage import Context, Gate, StageResult, read_json

__all__ = ["Deploy"]

LOAD_QUESTIONS = 200
ADVICE = {
    "p95_ttft_ms": "Offer less (targets.rps), take a smaller model, or serve on more cores.",
    "rps": "Take a smaller model, fewer agent.steps or a shorter evaluate.max_tokens, or serve on more cores.",
    "memory_gb": "Take a smaller model, fewer deploy.slots, or keep fewer models (select.keep).",
}


class Deploy:
    name: ClassVar[str] = "deploy"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "web",
        "models",
        "serve",
        "agent",
        "chain/application.py",
        "chain/assistant.py",
        "chain/pages.py",
        "chain/candidates.py",
        "chain/load.py",
        "chain/serving.py",
    )
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        chosen = read_json(ctx.folder("quantize") / "chosen.json")["variant"]
        found = ctx.upstream("quantize", chosen, "chosen.json") | ctx.upstream("data", "shop.sqlite", "kept.jsonl")
        found |= ctx.upstream("select", "kept.json")
        return found | (ctx.upstream("data", "questions_dev.jsonl") if ctx.spec.targets.under_load else {})

    def config(self, ctx: Context) -> dict[str, Any]:
        return describe(ctx, [])

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        models = _gather(ctx, folder)
        sources: list[Source] = [ctx.out / model if isinstance(model, str) else model for model in models]
        trials: list[Trial] = []
        if not ctx.spec.targets.under_load:
            spec, checks = ctx.spec, _try(ctx, ctx.spec, sources, folder, progress)[0]
        else:
            chosen, trials, checks = _loaded(ctx, sources, folder, progress)
            spec = chosen.spec
        write_json(folder / SERVER_FILE, describe(replace(ctx, spec=spec), models))
        scores: dict[str, Any] = {"deploy.ok": 1}
        counts: dict[str, Any] = {"checks": checks}
        gates = []
        if trials:
            tried = [{**trial.setting, "missed": sorted(trial.missed)} for trial in trials]
            write_json(folder / "load.json", {"chosen": chosen.setting, "trials": tried})
            measured = chosen.load.as_dict()
            scores |= {f"load.{key}": value for key, value in (measured | chosen.setting).items()}
            counts["trials"] = [{**trial.setting, **trial.load.as_dict()} for trial in trials]
            gates = [
                Gate(f"targets.{name}", measured[name], name == "rps", advice)
                for name, advice in ADVICE.items()
                if getattr(ctx.spec.targets, name) is not None
            ]
        return StageResult(counts=counts, scores=scores, gates=gates)


def _gather(ctx: Context, folder: Path) -> list[str | CandidateSpec]:
    """What is served, in the order in which it is asked: the tuned form or its endpoint, then the larger models.

    Larger ones of this machine are put beside the server's file, so that the run folder is all that is needed.
    """
    first = base_endpoint(ctx)
    variant = read_json(ctx.folder("quantize") / "chosen.json")["variant"]
    models: list[str | CandidateSpec] = [first or f"quantize/{variant}"]
    for number, candidate in enumerate(kept_models(ctx)[1:], 1):
        if candidate.endpoint is not None:
            models.append(candidate.endpoint)
            continue
        path = candidate.fetch()
        target = folder / f"larger-{number}{path.suffix if path.is_file() else ''}"
        copy_model(path, target)
        models.append(target.relative_to(ctx.out).as_posix())
    return models


def _try(
    ctx: Context,
    spec: AppSpec,
    sources: Sequence[Source],
    folder: Path,
    progress: Progress,
    questions: Sequence[str] = (),
) -> tuple[int, Load | None]:
    """Serve with one setting: (checks passed, what the load test measured where there are questions)."""
    data, pages = ctx.folder("data"), pages_of(ctx.out, describe(ctx, []))
    reset_peak_memory()
    with (
        open_models(spec, sources, data / "shop.sqlite", data / "kept.jsonl", ctx.parts, **pages) as application,
        serving(application) as url,
    ):
        progress.say(f"  server on {url}")
        checks = _check(url, application, folder)
        load = _ask(url, application, questions, spec) if questions else None
    return checks, load


def _check(url: str, application: Application, folder: Path) -> int:
    checks = check_server(url, application)
    write_json(folder / "smoke.json", checks)
    failed = [check for check in checks if not check["ok"]]
    if failed:
        raise RiverrunError(
            f"the server failed the check '{failed[0]['check']}': {failed[0]['found']} "
            f"(all checks are in {folder / 'smoke.json'})"
        )
    return len(checks)


def _ask(url: str, application: Application, questions: Sequence[str], spec: AppSpec) -> Load:
    from riverrun.serve.client import RemoteModel

    with RemoteModel(f"{url}/v1", f"{application.name}-agent", timeout_seconds=120.0, attempts=1) as remote:
        return run_load(remote, questions, spec)


def _loaded(
    ctx: Context, sources: Sequence[Source], folder: Path, progress: Progress
) -> tuple[Trial, list[Trial], int]:
    """(the chosen trial, all trials, checks passed)."""
    questions = [question.text for question in dev_questions(ctx, LOAD_QUESTIONS)]
    if not questions:
        raise InputError(
            "the load test of the targets asks development questions and there are none: set data.dev_per_intent "
            "(or synthesis.dev) above 0, or leave targets.rps, p95_ttft_ms and memory_gb out"
        )
    passed = 0

    def measure(spec: AppSpec) -> Load:
        nonlocal passed
        passed, load = _try(ctx, spec, sources, folder, progress, questions)
        assert load is not None
        progress.say(
            f"  {spec.deploy.slots} slots: {load.rps:.2f} of {load.offered_rps:.2f} answers a second, first text after "
            f"{load.p50_ttft_ms:.0f} ms (p95 {load.p95_ttft_ms:.0f}), {load.errors} errors, {load.memory_gb:.2f} GB"
        )
        return load

    chosen, trials = best_trial(ctx.spec, measure)
    return chosen, trials, passed
