"""From nothing to the end of the first optimizer step with TRL: `python trl_start.py JOB ANSWER`, in the peer's venv.

The script that a person writes: conversations from a file, tokenised by the trainer, LoRA of rank 16 on all linear
layers, everything else as it comes. `began` is the monotonic clock just before this process was started.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class FirstStep(TrainerCallback):
    ended = 0.0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = time.monotonic()


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    first = FirstStep()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=job["model"],
            args=SFTConfig(output_dir=folder, max_steps=1, use_cpu=True, save_strategy="no", report_to=[]),
            train_dataset=load_dataset("json", data_files=job["rows"], split="train"),
            peft_config=LoraConfig(r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear"),
            callbacks=[first],
        )
        trainer.train()
    Path(sys.argv[2]).write_text(json.dumps({"seconds": first.ended - job["began"]}), encoding="utf-8")
