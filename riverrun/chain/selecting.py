"""Which candidates can be used, how fast they are, which are kept in which order, and why each other fell.

A row holds what does not change from run to run: `reason` too, without figures of this machine. The sentence with the
figures is `why`, and speeds stand beside it; both go into the summary only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.chain.candidates import Candidate, open_endpoint
from riverrun.chain.machine import available_memory, dtype_name, measure_machine
from riverrun.chain.stage import Context
from riverrun.models.config import ModelConfig
from riverrun.plan.memory import inference_memory
from riverrun.plan.serving import speed

__all__ = ["Judged", "check_context", "decide", "judge", "measure_speed"]

PROBE = "Write the numbers from one to twenty in words."


@dataclass
class Judged:
    """A candidate, its row of candidates.json, and what is measured or may not stand in a file."""

    candidate: Candidate
    row: dict[str, Any]
    shape: ModelConfig | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return bool(self.row["accepted"])

    @property
    def local(self) -> bool:
        return self.candidate.endpoint is None

    @property
    def score(self) -> float | None:
        return None if self.row["dev_score"] is None else float(self.row["dev_score"]["value"])

    @property
    def why(self) -> str:
        return str(self.measured.get("why") or self.row["reason"])

    def refuse(self, reason: str, why: str = "") -> None:
        self.row |= {"accepted": False, "reason": reason}
        self.measured["why"] = why or reason

    def shown(self) -> dict[str, Any]:
        return self.row | self.measured | {"why": self.why}


def judge(ctx: Context, candidate: Candidate, progress: Progress) -> Judged:
    """Licence, languages, memory, and for an endpoint whether it answers and how fast. Fetches a model's files."""
    spec, local = ctx.spec, candidate.endpoint is None
    row: dict[str, Any] = {
        "name": candidate.name,
        "kind": "local" if local else "endpoint",
        "accepted": True,
        "kept": False,
        "reason": "",
        "licence": candidate.licence,
        "languages": list(candidate.languages),
        "context_length": candidate.context_length,
        "memory_bytes": 0,
        "dev_score": None,
    }
    judged = Judged(candidate, row)
    if candidate.licence and candidate.licence not in spec.licences:
        judged.refuse(f"its licence {candidate.licence} is not among the allowed {', '.join(spec.licences)}")
    elif spec.select.languages == "known" and candidate.languages and spec.language not in candidate.languages:
        known = ", ".join(candidate.languages)
        judged.refuse(
            f"it does not speak {spec.language}, it knows {known} (select.languages=any takes it all the same)"
        )
    elif local:
        _judge_local(ctx, judged, progress)
    else:
        _judge_endpoint(judged)
    return judged


def _judge_local(ctx: Context, judged: Judged, progress: Progress) -> None:
    spec, dtype = ctx.spec, dtype_name(ctx.spec.finetune.dtype)
    try:
        shape: ModelConfig = ctx.parts.load("load_config")(judged.candidate.fetch(progress))
    except InputError as error:
        judged.refuse("cannot be read", str(error))  # the sentence may hold a path of this machine
        return
    needed = inference_memory(shape, weights=dtype, cache_dtype=dtype).total
    free = available_memory(spec.memory_gb)
    judged.shape = shape
    judged.row |= {"memory_bytes": needed, "context_length": shape.max_position_embeddings}
    if needed > free:
        sentence = f"the model alone needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are available"
        judged.refuse("too large for this memory", sentence)


def _judge_endpoint(judged: Judged) -> None:
    entry = judged.candidate.endpoint
    assert entry is not None
    try:
        with open_endpoint(entry) as remote:
            judged.row["context_length"] = remote.info.context_length
            judged.measured |= _probe(remote)
    except RiverrunError as error:
        judged.refuse("did not answer", f"did not answer: {error} (--from select tries again)")


def _probe(model: LanguageModel) -> dict[str, float]:
    """One streamed answer: tokens a second after the first one, and milliseconds until it came."""
    began = first = time.perf_counter()
    pieces = tokens = 0
    request = Request((Message.of("user", PROBE),), params=SamplingParams(max_tokens=64))
    for delta in model.stream(request):
        if delta.text:
            pieces += 1
            first = time.perf_counter() if pieces == 1 else first
        tokens = delta.usage.completion_tokens if delta.usage else tokens
    seconds = max(1e-6, time.perf_counter() - first)
    return {
        "tokens_per_second": round(max(0, max(tokens, pieces) - 1) / seconds, 1),
        "ttft_ms": round(1000 * (first - began), 1),
    }


def check_context(judged: Judged, needed: int) -> None:
    """Refuse a model whose context does not hold prompt and answer; `needed` is an estimate in tokens."""
    length = int(judged.row["context_length"])
    if length and length < needed:
        judged.refuse(f"its context of {length} tokens is less than the {needed} that prompt and answer take")


def measure_speed(ctx: Context, judged: Judged, prompt_tokens: int) -> None:
    """The speed of a model of this machine, predicted from its shape and the machine's measured rates."""
    if judged.shape is None:
        return
    dtype = dtype_name(ctx.spec.finetune.dtype)
    hardware = measure_machine(dtype, ctx.spec.memory_gb)
    tokens, first = speed(judged.shape, hardware, dtype=dtype, prompt_tokens=prompt_tokens)
    judged.measured |= {"tokens_per_second": round(tokens, 1), "ttft_ms": round(1000 * first, 1)}


def decide(candidates: Sequence[Judged], keep: int, free_bytes: int) -> list[Judged]:
    """The kept ones in the order in which they are asked; the others get their reason.

    The first is the one that is tuned: with keep 1 the best of this machine, else the smallest of this machine among
    the best. An endpoint comes first only where nothing else is left. The later ones must not score below it.
    """
    accepted = [each for each in candidates if each.accepted]
    ranked = sorted(accepted, key=lambda each: (-(each.score or 0.0), not each.local))
    local = [each for each in ranked if each.local]
    top = ranked[:keep]
    own = [each for each in top if each.local] or local[:1] or top[:1]
    first = min(own if keep > 1 else local[:1] or own, key=lambda each: int(each.row["memory_bytes"]))
    kept = [first]
    for each in ranked:
        if each is first:
            continue
        held = sum(int(one.row["memory_bytes"]) for one in kept)
        needed = int(each.row["memory_bytes"])
        if len(kept) == keep:
            each.row["reason"] = _behind(each, kept, keep)
        elif (each.score or 0.0) < (first.score or 0.0):
            each.row["reason"] = f"{_below(each, first)}, which is asked first"
        elif held + needed > free_bytes and needed:
            each.row["reason"] = f"too large beside {kept[-1].candidate.name}"
            each.measured["why"] = (
                f"needs {needed / 1e9:.2f} GB beside {kept[-1].candidate.name} and "
                f"{max(0, free_bytes - held) / 1e9:.2f} GB are available"
            )
        else:
            kept.append(each)
    later = sorted(kept[1:], key=lambda each: (not each.local, each.row["memory_bytes"], each.score or 0.0))
    for each in (first, *later):
        each.row["kept"] = True
    return [first, *later]


def _below(each: Judged, other: Judged) -> str:
    own, best = each.score or 0.0, other.score or 0.0
    return f"scored {own:.2f}, {best - own:.2f} below {other.candidate.name}"


def _behind(each: Judged, kept: Sequence[Judged], keep: int) -> str:
    best = max(kept, key=lambda one: one.score or 0.0)
    if each.score is None:
        return f"select.keep = {keep}, and {kept[-1].candidate.name} comes before it"
    if each.score < (best.score or 0.0):
        return _below(each, best)
    if each.local or not best.local:
        return f"scored {each.score:.2f} as {best.candidate.name} did, which comes before it"
    return (
        f"scored {each.score:.2f}; an endpoint is not tuned, and select.keep = {keep} keeps "
        f"{kept[0].candidate.name} (with select.keep={keep + 1} it answers what that one does badly at)"
    )
