"""TRL + PEFT on token rows and labels, one setting: `python trl_train.py JOB ANSWER`, run in the peer's environment.

Counts as useful every token of every row once, whatever padding or packing makes of it. The time is that of the
training loop as the trainer's callbacks see it, after one untimed forward and backward of a few rows.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Wall time from the first step to the last."""

    began = ended = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = time.perf_counter()


def first_loss(trainer: Any, rows: list[dict[str, Any]]) -> float:
    """Mean loss over the labels of `rows` before training, row by row, by the trainer's own collator and loss."""
    total = labels = 0.0
    for row in rows:
        count = sum(label != -100 for label in row["labels"])
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, trainer.data_collator([dict(row)]))
        loss.backward()
        total, labels = total + float(loss.detach()) * count, labels + count
    trainer.model.zero_grad(set_to_none=True)
    return total / labels


def measure(job: dict[str, Any], out: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    attention = job["setting"].pop("attn_implementation", "sdpa")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16, attn_implementation=attention)
    rows = [json.loads(line) for line in Path(job["subset"]).read_text(encoding="utf-8").splitlines()]
    longest = max(len(row["input_ids"]) for row in rows)
    settings = {"max_length": longest, **job["setting"]}
    config = SFTConfig(
        output_dir=out,
        num_train_epochs=1,
        gradient_accumulation_steps=1,
        bf16=True,
        use_cpu=True,
        learning_rate=job["learning_rate"],
        max_grad_norm=job["clip_norm"],
        seed=job["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        **settings,
    )
    lora = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules="all-linear")
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[clock],
    )
    begin = first_loss(trainer, rows[: job["first_rows"]])
    trainer.train()
    prepared = trainer.train_dataset
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": clock.ended - clock.began,
        "row_tokens": sum(len(ids) for ids in prepared["input_ids"]),
        "label_tokens": sum(label != -100 for labels in prepared["labels"] for label in labels),
        "steps": trainer.state.global_step,
        "first_loss": begin,
        "losses": [entry["loss"] for entry in logged],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), folder)
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
