"""transformers' own Trainer on token sequences of one length: `python hf_train.py JOB ANSWER`, in the venv of TRL.

`setting` holds arguments of TrainingArguments and "dtype" of the loading; a step sees `global_rows` sequences.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from meter import Meter, first_loss, give_up_after, read_rows
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

UNTIMED_COMPILED = 2


def measure(job: dict[str, Any], out: str) -> dict[str, Any]:
    give_up_after(job.get("give_up", 0))
    setting = dict(job["setting"])
    dtype = getattr(torch, setting.pop("dtype", "float32"))
    rows = read_rows(job["subset"])
    batch = setting.get("per_device_train_batch_size", 8)
    accumulation = max(1, job["global_rows"] // batch)
    untimed = UNTIMED_COMPILED if setting.get("torch_compile") else 0
    config = TrainingArguments(
        output_dir=out,
        max_steps=untimed + len(rows) // (batch * accumulation),
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        learning_rate=job["learning_rate"],
        max_grad_norm=job["clip_norm"],
        seed=job["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        **setting,
    )
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    trainer = Trainer(model, config, train_dataset=Dataset.from_list(rows), data_collator=default_data_collator)
    begin = first_loss(trainer, rows[: job["first_rows"]])
    limit = job.get("limit", 0)
    meter = Meter(trainer.data_collator, untimed=untimed, limit=limit, accumulation=accumulation)
    trainer.data_collator = meter.collator
    trainer.add_callback(meter)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {**meter.answer(), "first_loss": begin, "losses": [entry["loss"] for entry in logged]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), folder)
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
