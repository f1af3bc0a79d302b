"""Losses of full training with transformers and torch's AdamW in the job's dtype: `python hf_losses.py JOB ANSWER`.

One row after another as a single unpadded document, `rows_per_step` to a step; the loss of a step is the sum over its
labels divided by their number. No trainer in between: the reference is to be read in one look.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from meter import read_rows
from transformers import AutoModelForCausalLM

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job.get("dtype", "float32")))
    betas = tuple(job["betas"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["learning_rate"], betas=betas, weight_decay=0.0)
    rows, losses = read_rows(job["subset"]), []
    for start in range(0, len(rows), job["rows_per_step"]):
        step = rows[start : start + job["rows_per_step"]]
        count = sum(label != -100 for row in step for label in row["labels"][1:])
        total = 0.0
        for row in step:
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    Path(sys.argv[2]).write_text(json.dumps({"losses": losses}), encoding="utf-8")
