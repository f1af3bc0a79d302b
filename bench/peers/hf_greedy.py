"""Greedy answers with transformers, one prompt at a time: `python hf_greedy.py JOB ANSWER`.

A job is {"model": a GGUF file or a folder, "prompts": ids of each, "tokens", "ends": ids, "piece": prompt tokens of a
forward, "top"}. For each answer: its tokens, for each of them how far the second likeliest token was behind (logits),
and with `top` the log-probabilities of so many likeliest tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def answer(model: Any, ids: list[int], tokens: int, ends: set[int], piece: int, top: int) -> dict[str, Any]:
    cache, out, gaps, tops = None, [], [], []
    for at in range(0, len(ids), piece):
        given = model(torch.tensor([ids[at : at + piece]]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = given.past_key_values
    while True:
        logits = given.logits[0, -1].float()
        first, second = logits.topk(2).values.tolist()
        out.append(int(logits.argmax()))
        gaps.append(first - second)
        if top:
            best = logits.log_softmax(0).topk(top)
            tops.append(dict(zip(map(str, best.indices.tolist()), best.values.tolist(), strict=True)))
        if out[-1] in ends or len(out) == tokens:
            return {"tokens": out, "gaps": gaps, "tops": tops}
        given = model(torch.tensor([[out[-1]]]), past_key_values=cache, use_cache=True)


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(job["model"])
    named = {"gguf_file": path.name} if path.is_file() else {}
    model = AutoModelForCausalLM.from_pretrained(path.parent if named else path, dtype=torch.float32, **named)
    model.train(False)
    ends, piece, top = set(job["ends"]), job.get("piece", 1 << 30), job.get("top", 0)
    found = [answer(model, ids, job["tokens"], ends, piece, top) for ids in job["prompts"]]
    Path(sys.argv[2]).write_text(json.dumps({"answers": found}), encoding="utf-8")
