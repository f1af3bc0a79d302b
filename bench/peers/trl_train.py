"""TRL on token rows and labels, LoRA (PEFT) or full, one setting: `python trl_train.py JOB ANSWER`, in the peer's venv.

`setting` holds arguments of SFTConfig and "dtype", "attn_implementation" of the loading. Counts as useful every token
of every row once, whatever padding or packing makes of it. The time is that of the training loop as the trainer's
callbacks see it, after one untimed forward and backward of a few rows and, where the model is compiled, an untimed
epoch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from meter import Meter, first_loss, give_up_after, read_rows
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def measure(job: dict[str, Any], out: str) -> dict[str, Any]:
    give_up_after(job.get("give_up", 0))
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    setting = dict(job["setting"])
    loading = {"dtype": setting.pop("dtype", "bfloat16")}
    loading |= {"attn_implementation": setting.pop("attn_implementation", "sdpa")}
    rows = read_rows(job["subset"])
    longest = max(len(row["input_ids"]) for row in rows)
    epochs = 2 if setting.get("torch_compile") else 1
    config = SFTConfig(
        output_dir=out,
        num_train_epochs=epochs,
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
        model_init_kwargs=loading,
        **{"max_length": longest, **setting},
    )
    lora = LoraConfig(r=job["rank"], lora_alpha=job["alpha"], lora_dropout=0.0, target_modules="all-linear")
    trainer = SFTTrainer(
        model=job["model"],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora if job.get("method", "lora") == "lora" else None,
    )
    begin = first_loss(trainer, rows[: job["first_rows"]])
    per_epoch = len(trainer.get_train_dataloader())
    meter = Meter(trainer.data_collator, untimed=(epochs - 1) * per_epoch, limit=job.get("limit", 0))
    trainer.data_collator = meter.collator
    trainer.add_callback(meter)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {**meter.answer(), "first_loss": begin, "losses": [entry["loss"] for entry in logged]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), folder)
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
