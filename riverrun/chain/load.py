"""A load test of the live server over real HTTP: open-loop arrivals, streamed answers, times counted from the arrival.

Arrivals are those of a Poisson process of which the number and the length are known, drawn from a seed. A tenth more
than the target is offered, so that a server which keeps up shows at least the target. The asking threads share the
server's process: its figures are a little worse for it, never better. A request that fails counts as one that waited
for the whole test.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from riverrun.base.errors import RiverrunError
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.chain.process import peak_memory
from riverrun.chain.spec import AppSpec, TargetsSpec
from riverrun.chain.targets import drafts_of

__all__ = ["LEAST_REQUESTS", "Load", "Trial", "arrivals", "best_trial", "run_load", "variations"]

LEAST_REQUESTS = 30
OFFERED = 1.1
DEFAULT_RPS = 1.0


@dataclass(frozen=True)
class Load:
    """What was measured. `rps` are answers a second from the first to the last one."""

    requests: int
    errors: int
    offered_rps: float
    rps: float
    p50_ttft_ms: float
    p95_ttft_ms: float
    p99_ttft_ms: float
    p50_latency_ms: float
    p95_latency_ms: float
    memory_gb: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def missed(self, targets: TargetsSpec) -> dict[str, float]:
        """By which factor each target is missed; those that are met are left out."""
        factors = {}
        for name, higher in (("rps", True), ("p95_ttft_ms", False), ("memory_gb", False)):
            bar, value = getattr(targets, name), getattr(self, name)
            if bar is None:
                continue
            factor = bar / max(value, 1e-9) if higher else value / bar
            if factor > 1:
                factors[name] = factor
        return factors


@dataclass(frozen=True)
class Trial:
    """One setting of the server and what it reached."""

    spec: AppSpec
    load: Load

    @property
    def setting(self) -> dict[str, int]:
        return {"slots": self.spec.deploy.slots, "drafts": drafts_of(self.spec)}

    @property
    def missed(self) -> dict[str, float]:
        return self.load.missed(self.spec.targets)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds at which requests go out: `rate` of them a second, for `seconds` or LEAST_REQUESTS if that is longer.

    The first goes out at 0 and the last at the end, so that the rate is exactly what was asked for.
    """
    count = max(LEAST_REQUESTS, math.ceil(rate * seconds))
    end = (count - 1) / rate
    drawn = random.Random(f"{seed}/load")
    return [0.0, *sorted(drawn.uniform(0, end) for _ in range(count - 2)), end]


def run_load(model: LanguageModel, questions: Sequence[str], spec: AppSpec) -> Load:
    """Ask the questions one after the other and from the beginning again, each at its arrival whatever came before."""
    rate = OFFERED * (spec.targets.rps or DEFAULT_RPS)
    plan = arrivals(rate, spec.deploy.load_seconds, spec.seed)
    params = SamplingParams(max_tokens=spec.evaluate.max_tokens)
    asked = [_Asked(model, questions[index % len(questions)], params) for index in range(len(plan))]
    began = time.perf_counter()
    threads = []
    for request, arrival in zip(asked, plan, strict=True):
        time.sleep(max(0.0, began + arrival - time.perf_counter()))
        threads.append(threading.Thread(target=request.ask, args=(began + arrival,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return _load(asked, plan, rate, time.perf_counter() - began)


class _Asked:
    """One request: when its first text and its end came, in seconds after its arrival."""

    def __init__(self, model: LanguageModel, question: str, params: SamplingParams) -> None:
        self.model = model
        self.request = Request((Message.of("user", question),), params=params)
        self.ttft: float | None = None
        self.latency: float | None = None

    def ask(self, arrival: float) -> None:
        try:
            for delta in self.model.stream(self.request):
                if delta.text and self.ttft is None:
                    self.ttft = time.perf_counter() - arrival
        except RiverrunError:
            return
        self.latency = time.perf_counter() - arrival


def _load(asked: Sequence[_Asked], plan: Sequence[float], rate: float, whole: float) -> Load:
    ended = [(arrival, each.latency) for arrival, each in zip(plan, asked, strict=True) if each.latency is not None]
    done = sorted(arrival + latency for arrival, latency in ended)
    span = max(plan[-1] - plan[0], done[-1] - done[0]) if done else whole
    firsts = [whole if each.latency is None else each.ttft or each.latency for each in asked]
    latencies = [whole if each.latency is None else each.latency for each in asked]
    return Load(
        requests=len(asked),
        errors=len(asked) - len(done),
        offered_rps=round(rate, 4),
        rps=round(max(0, len(done) - 1) / span, 4),
        p50_ttft_ms=_milliseconds(firsts, 0.50),
        p95_ttft_ms=_milliseconds(firsts, 0.95),
        p99_ttft_ms=_milliseconds(firsts, 0.99),
        p50_latency_ms=_milliseconds(latencies, 0.50),
        p95_latency_ms=_milliseconds(latencies, 0.95),
        memory_gb=round(peak_memory() / 1e9, 4),
    )


def _milliseconds(seconds: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    rank = max(1, math.ceil(share * len(seconds)))
    return round(1000 * sorted(seconds)[rank - 1], 1)


def variations(spec: AppSpec, missed: Sequence[str]) -> list[AppSpec]:
    """Settings to try after a miss: fewer drafts, then more slots for more answers a second, fewer for the rest."""
    drafts, slots = drafts_of(spec), spec.deploy.slots
    tried = []
    for fewer in dict.fromkeys((drafts // 2, 1)):
        if 0 < fewer < drafts:
            spec = spec.model_copy(update={"agent": spec.agent.model_copy(update={"drafts": fewer})})
            tried.append(spec)
    numbers = (2 * slots, slots // 2) if "rps" in missed else (slots // 2, slots // 4)
    for number in numbers:
        if number >= 1:
            tried.append(spec.model_copy(update={"deploy": spec.deploy.model_copy(update={"slots": number})}))
    return tried


def best_trial(spec: AppSpec, measure: Callable[[AppSpec], Load]) -> tuple[Trial, list[Trial]]:
    """Measure the spec's own setting and, while a target is missed, the next one; returns the best and all of them."""
    trials = [Trial(spec, measure(spec))]
    for changed in variations(spec, list(trials[0].missed)) if trials[0].missed else ():
        trials.append(Trial(changed, measure(changed)))
        if not trials[-1].missed:
            break
    return min(trials, key=lambda trial: (len(trial.missed), sum(trial.missed.values()))), trials
