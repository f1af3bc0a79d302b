"""Peak memory of TRL's full fine-tuning of random weights: `python trl_memory.py JOB ANSWER` in the peer's venv.

The weights are bf16 with bf16=True, as its own default trains; rows fill the whole length and every token is learned.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(job: dict[str, Any], out: str) -> dict[str, Any]:
    tokens, vocabulary = job["tokens"], job["config"]["vocab_size"]
    hf = AutoConfig.for_model(job["config"].pop("model_type"), **job["config"])
    build: Any = AutoModelForCausalLM.from_config
    model = build(hf, dtype=torch.bfloat16)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, vocabulary, (tokens,), generator=generator).tolist() for _ in range(job["steps"])]
    baseline = peak_bytes()
    config = SFTConfig(
        output_dir=out,
        max_steps=job["steps"],
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_length=tokens,
        bf16=True,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        **job["setting"],
    )
    rows = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"vmhwm_bytes": peak_bytes(), "model_bytes": baseline, "losses": losses, "steps": trainer.state.global_step}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), folder)
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
