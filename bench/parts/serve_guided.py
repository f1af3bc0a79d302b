"""Answers by a JSON schema beside free ones: `python -m bench.parts.serve_guided JOB ANSWER`.

Time per token is that of one answer alone from its first token to its end. A guided answer is compared with a free one
of as many tokens, taken in turns.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.base.memory import keep_freed_memory
from riverrun.base.protocols import Request
from riverrun.base.types import Guide, SamplingParams
from riverrun.serve.llm import LLM

__all__: list[str] = []


def _answer(model: LLM, prompt: str, **params: Any) -> tuple[float, int, str]:
    """(seconds from the first token to the end, tokens, text)."""
    first, text, usage = 0.0, "", None
    for delta in model.stream(Request(prompt=prompt, params=SamplingParams(**params))):
        first = first or time.perf_counter()
        text += delta.text
        usage = delta.usage or usage
    assert usage is not None
    return time.perf_counter() - first, usage.completion_tokens, text


def measure(job: dict[str, Any]) -> dict[str, Any]:
    keep_freed_memory()
    schema = job["schema"]
    guided, free, tokens, valid, forced = [], [], 0, 0, 0
    with LLM(Path(job["model"]), slots=1, context=1024) as model:
        for number in range(job["rounds"] + 1):
            prompt = f"A record about book {number}, as JSON:\n"
            more = {"temperature": 0.7, "seed": number, "max_tokens": 600}
            before = model.observer.steps  # type: ignore[attr-defined]
            seconds, count, text = _answer(model, prompt, guide=Guide("json_schema", schema), **more)
            steps = model.observer.steps - before  # type: ignore[attr-defined]
            other, free_count, _ = _answer(model, prompt, ignore_end=True, **more | {"max_tokens": count})
            if number:  # the first one compiles the grammar
                guided.append(seconds / (count - 1))
                free.append(other / (free_count - 1))
                tokens += count
                forced += count - steps
                valid += _is_valid(text, json.loads(schema))
    return {
        "guided_seconds": median(guided),
        "free_seconds": median(free),
        "tokens": tokens,
        "forced": forced,
        "valid": valid,
        "answers": len(guided),
    }


def _is_valid(text: str, schema: dict[str, Any]) -> bool:
    kinds = {"string": str, "array": list, "integer": int}
    try:
        value = json.loads(text)
    except ValueError:
        return False
    wanted = {name: kinds[each["type"]] for name, each in schema["properties"].items()}
    return value.keys() == wanted.keys() and all(isinstance(value[name], kind) for name, kind in wanted.items())


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
