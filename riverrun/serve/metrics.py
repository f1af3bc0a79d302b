"""Counts of a served model for Prometheus: vLLM's names behind our prefix, so that its dashboards work after a rename.

What the loop knows anyway (running, waiting, blocks, counts) is read when somebody asks; of a request that ends its
times are put into histograms. A step costs one number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from riverrun.base.optional import require
from riverrun.serve.loop import Loop, Observer
from riverrun.serve.request import Sequence as Generation
from riverrun.serve.scheduler import Piece, Scheduler

__all__ = ["Counted", "Metrics", "Snapshot", "page", "summed"]

PREFIX = "riverrun"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
_TIMES = {
    "time_to_first_token_seconds": "from a request's arrival to its first token",
    "time_per_output_token_seconds": "mean time between the tokens of an answer",
    "e2e_request_latency_seconds": "from a request's arrival to its end",
    "request_queue_time_seconds": "from a request's arrival to its first step",
    "request_inference_time_seconds": "from a request's first step to its end",
    "request_prefill_time_seconds": "from a request's first step to its first token",
    "request_decode_time_seconds": "from a request's first token to its end",
    "decode_stall_seconds": "a step that running answers shared with a prompt",
}
_SIZES = {
    "request_prompt_tokens": "tokens of a request's prompt",
    "request_generation_tokens": "tokens of an answer",
    "iteration_tokens": "tokens of a step",
}


class _Histogram:
    """Counts by upper bound; cheap enough for every step."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        place = next((n for n, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[place] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        total, out = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            out.append((bound, float(total)))
        return out


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts of one engine at one moment. `state` is how it is now, `totals` what was counted since its start."""

    state: Mapping[str, float]
    totals: Mapping[str, float]
    ended_by: Mapping[str, int]
    histograms: Mapping[str, tuple[list[tuple[str, float]], float]]
    """Name: (upper bound and count of all up to it, sum)."""


@runtime_checkable
class Counted(Protocol):
    """A model that counts what it does."""

    def snapshots(self) -> Sequence[Snapshot | None]:
        """Of each of its engines; None of one that does not answer now."""
        ...


def summed(snapshots: Sequence[Snapshot | None]) -> dict[str, float]:
    """All engines as one: counts added, shares of the cache averaged; the mean time to a first token."""
    here = [each for each in snapshots if each is not None]
    out: dict[str, float] = {}
    for each in here:
        for name, value in (*each.state.items(), *each.totals.items()):
            out[name] = out.get(name, 0.0) + value / (len(here) if name.endswith("_perc") else 1)
    firsts = [each.histograms["time_to_first_token_seconds"] for each in here]
    count = sum(buckets[-1][1] for buckets, _ in firsts)
    total = sum(seconds for _, seconds in firsts)
    return out | {"requests_first": count, "mean_first_seconds": total / max(1.0, count)}


class Metrics(Observer):
    """What one model has done. `loop` gives its loop, once there is one."""

    def __init__(self, loop: Callable[[], Loop]) -> None:
        self._loop = loop
        self.times = {name: _Histogram(SECONDS) for name in _TIMES}
        self.sizes = {name: _Histogram(TOKENS) for name in _SIZES}
        self.ended_by: dict[str, int] = {}
        self.prompt_tokens = self.generation_tokens = self.cached_tokens = self.steps = self.drafted = 0
        self.computed = self.computed_answers = 0  # tokens that went through the model
        self._lock = threading.Lock()

    # ---- told by the loop

    def stepped(self, pieces: Sequence[Piece], seconds: float, scheduler: Scheduler) -> None:
        with self._lock:
            self.steps += 1
            self.sizes["iteration_tokens"].add(sum(piece.count for piece in pieces))
            self.computed_answers += sum(piece.count for piece in pieces if piece.sequence.is_answering)
            self.computed += sum(piece.count for piece in pieces)
            self.drafted += sum(len(piece.drafts) for piece in pieces)
            answers = sum(piece.sequence.is_answering for piece in pieces)
            if 0 < answers < len(pieces):
                self.times["decode_stall_seconds"].add(seconds)

    def ended(self, sequence: Generation) -> None:
        timing, count = sequence.timing, len(sequence.output)
        reason = "error" if sequence.error else str(sequence.finish_reason)
        with self._lock:
            self.ended_by[reason] = self.ended_by.get(reason, 0) + 1
            self.prompt_tokens += len(sequence.prompt)
            self.generation_tokens += count
            self.cached_tokens += sequence.cached_tokens
            self.sizes["request_prompt_tokens"].add(len(sequence.prompt))
            self.sizes["request_generation_tokens"].add(count)
            self._time("e2e_request_latency_seconds", timing.arrived, timing.ended)
            if not timing.admitted:
                return
            self._time("request_queue_time_seconds", timing.arrived, timing.admitted)
            self._time("request_inference_time_seconds", timing.admitted, timing.ended)
            if timing.first:
                self._time("time_to_first_token_seconds", timing.arrived, timing.first)
                self._time("request_prefill_time_seconds", timing.admitted, timing.first)
                self._time("request_decode_time_seconds", timing.first, timing.ended)
            if timing.first and count > 1:
                mean = (timing.ended - timing.first) / (count - 1)
                self.times["time_per_output_token_seconds"].add(mean)

    def _time(self, name: str, start: float, end: float) -> None:
        self.times[name].add(max(0.0, end - start))

    # ---- asked by others

    def state(self) -> dict[str, float]:
        """What is so now: running, waiting, use of the cache."""
        loop = self._loop()
        pool, scheduler = loop.pool, loop.scheduler
        return {
            "num_requests_running": len(scheduler.running),
            "num_requests_waiting": loop.waiting,
            "kv_cache_usage_perc": 1 - pool.free / pool.total,
            "kv_cache_cached_perc": pool.cached / pool.total,
        }

    def totals(self) -> dict[str, float]:
        """What has been counted since the start."""
        loop = self._loop()
        out = {
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            "cached_tokens": self.cached_tokens,
            "computed_prompt_tokens": self.computed - self.computed_answers,
            "computed_answer_tokens": self.computed_answers,
            "spec_decode_num_draft_tokens": self.drafted,
            "spec_decode_num_accepted_tokens": loop.accepted,
            "steps": self.steps,
            "prefix_cache_queries": loop.pool.counts.queried,
            "prefix_cache_hits": loop.pool.counts.found,
            "num_preemptions": loop.scheduler.preemptions,
        }
        return {name: float(value) for name, value in out.items()}

    def snapshot(self) -> Snapshot:
        with self._lock:
            histograms = {name: (each.buckets(), each.sum) for name, each in (self.times | self.sizes).items()}
            ended = dict(self.ended_by)
        return Snapshot(self.state(), self.totals(), ended, histograms)


class _Collector:
    """Everything of all engines of all models."""

    def __init__(self, models: Mapping[str, Sequence[Snapshot | None]]) -> None:
        self.models, self.core = models, require("prometheus_client.core", extra="serve")

    def collect(self) -> Iterable[Any]:
        families: dict[str, Any] = {}

        def family(kind: Any, name: str, told: str, labels: Sequence[str] = _ENGINE) -> Any:
            return families.setdefault(name, kind(f"{PREFIX}:{name}", told, labels=labels))

        core = self.core
        for model, snapshots in self.models.items():
            for number, found in enumerate(snapshots):
                if found is None:
                    continue
                engine = [model, str(number)]
                for name, value in found.state.items():
                    family(core.GaugeMetricFamily, name, name.replace("_", " ")).add_metric(engine, value)
                for name, value in found.totals.items():
                    family(core.CounterMetricFamily, name, name.replace("_", " ")).add_metric(engine, value)
                ended = family(core.CounterMetricFamily, "request_success", "requests that ended, by how", _REASON)
                for reason, count in found.ended_by.items():
                    ended.add_metric([*engine, reason], count)
                for name, (buckets, total) in found.histograms.items():
                    told = _TIMES.get(name) or _SIZES[name]
                    made = family(core.HistogramMetricFamily, name, told)
                    made.add_metric(engine, buckets=buckets, sum_value=total)
        return families.values()


_ENGINE = ("model_name", "engine")
_REASON = (*_ENGINE, "finished_reason")


def page(models: Mapping[str, Sequence[Snapshot | None]]) -> tuple[bytes, str]:
    """(the text of GET /metrics, its content type); engines of a model are numbered from 0."""
    library = require("prometheus_client", extra="serve")
    registry = library.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(models))
    return library.generate_latest(registry), library.CONTENT_TYPE_LATEST
