"""Eight streams in process: `python -m bench.parts.serve_inside JOB ANSWER`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.base.memory import keep_freed_memory
from riverrun.base.protocols import Request
from riverrun.base.types import SamplingParams
from riverrun.serve.llm import LLM

__all__: list[str] = []


def measure(job: dict[str, Any]) -> dict[str, Any]:
    keep_freed_memory()
    params = SamplingParams(max_tokens=job["tokens"], ignore_end=True)
    with LLM(Path(job["model"]), slots=job["slots"], context=512) as model:
        model.generate([Request(prompt=f"warm {n}", params=SamplingParams(max_tokens=8)) for n in range(job["slots"])])
        began = time.perf_counter()
        done = model.generate([Request(prompt=prompt, params=params) for prompt in job["prompts"]])
        seconds = time.perf_counter() - began
    return {"tokens_per_second": sum(each.usage.completion_tokens for each in done) / seconds}


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
