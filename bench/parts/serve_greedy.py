"""Greedy answers of the torch engine in fp32 in every way that a server may compute them, and texts judged with keys
and values of 8 bits: `python -m bench.parts.serve_greedy JOB ANSWER`.

A job is {"do": "greedy", "model", "prompts": ids of each, "tokens"} or {"do": "perplexity", "model", "texts", "kv",
"context"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.base.memory import keep_freed_memory
from riverrun.base.protocols import Request
from riverrun.base.types import SamplingParams
from riverrun.serve.llm import LLM

__all__: list[str] = []

CONTEXT, MATES, SMALL_PIECE_SECONDS = 1024, 32, 0.001
CRAMPED = {"context": 448, "cache_gb": 0.021}
"""Room for four or five answers: the youngest go back to the queue while the others grow."""


def greedy(job: dict[str, Any]) -> dict[str, Any]:
    """The tokens of each way, with what proves that it was that way."""
    params = SamplingParams(max_tokens=job["tokens"], logprobs=0)
    requests = [Request(prompt_ids=tuple(ids), params=params) for ids in job["prompts"]]

    def opened(**options: Any) -> LLM:
        return LLM(Path(job["model"]), **{"dtype": "float32", "context": CONTEXT, "slots": MATES, **options})

    def all_of(model: LLM, wanted: list[Request]) -> dict[str, Any]:
        done = model.generate(wanted)
        tokens = [[each.id for each in answer.logprobs] for answer in done]
        return {
            "tokens": tokens,
            "cached": sum(answer.usage.cached_tokens for answer in done),
            "preemptions": model.loop.scheduler.preemptions,
        }

    found: dict[str, dict[str, Any]] = {}
    with opened() as model:  # then each prompt again, found in the cache
        found["batch mates"] = all_of(model, requests)
        found["prefix hits"] = all_of(model, requests)
    ways: dict[str, Callable[[], LLM]] = {
        "alone": lambda: opened(slots=1),
        "chunking": lambda: opened(step_seconds=SMALL_PIECE_SECONDS),
        "preemption": lambda: opened(**CRAMPED),
        "prompt look-up": lambda: opened(lookup=4),
    }
    for name in job.get("ways", ways):
        with ways[name]() as model:
            found[name] = all_of(model, requests)
    return found


def perplexity(job: dict[str, Any]) -> dict[str, Any]:
    """Of all texts as one, and the bytes that a token takes in the cache."""
    with LLM(Path(job["model"]), kv=job["kv"], context=job["context"], slots=8) as model:
        found = model.perplexity(["".join(job["texts"])])[0]
        loop = model.loop
        held = sum(x.element_size() * x.numel() for _, x in loop.engine.cache.tensors())  # type: ignore[attr-defined]
        return {"perplexity": found, "bytes_per_token": held / (loop.engine.blocks * loop.engine.block_size)}


if __name__ == "__main__":
    keep_freed_memory()
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    write_json(Path(sys.argv[2]), {"greedy": greedy, "perplexity": perplexity}[given["do"]](given))
