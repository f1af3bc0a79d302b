"""litgpt's own finetune_lora and pretrain on token rows, one setting: `python litgpt_train.py JOB ANSWER`.

The rows come through litgpt's DataModule as the token ids and labels that the other sides train on. The time runs from
the first batch that its loop asks for behind `untimed` batches to the moment when it asks for one more than there are;
what it prints itself is not used (its tokens a second divide by a clock reading).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litgpt.finetune.lora as finetune_lora
import litgpt.pretrain as pretrain
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule, get_sft_collate_fn
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from torch.utils.data import DataLoader

QUIET: dict[str, Any] = {
    "interval": 10**9,
    "max_iters": 1,
    "initial_validation": False,
    "final_validation": False,
}


class Finished(Exception):
    """Raised into litgpt's loop when the rows are through."""


class Metered(DataLoader[Any]):
    """Counts and times the batches asked for behind the first `untimed`; the rows come round again for those."""

    untimed = 0
    limit = 0.0
    began = ended = 0.0
    row_tokens = label_tokens = batches = 0
    stopped = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        asked = 0
        while asked < self.untimed + len(self):
            for batch in super().__iter__():
                if asked == self.untimed + len(self):
                    break
                if asked == self.untimed:
                    self.began = time.perf_counter()
                yield batch
                asked += 1
                if asked > self.untimed:
                    self._count(batch)
                if self.limit and self.began and self.ended - self.began > self.limit:
                    self.stopped = True
                    raise Finished
        raise Finished

    def _count(self, batch: Any) -> None:
        self.ended = time.perf_counter()
        self.batches += 1
        if isinstance(batch, dict):
            self.row_tokens += int(batch["token_counts"]["raw"].sum())
            self.label_tokens += int((batch["labels"] != -100).sum())
        else:
            self.row_tokens += batch.shape[0] * (batch.shape[1] - 1)
            self.label_tokens += batch.shape[0] * (batch.shape[1] - 1)


class Rows(DataModule):
    """Rows of ids and labels as finetune_lora takes them, or [rows, length + 1] as pretrain does."""

    prompt_style = "default"

    def __init__(self, rows: list[dict[str, Any]], job: dict[str, Any]) -> None:
        super().__init__()
        self.rows, self.job = rows, job
        self.metered: Metered | None = None

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        self.batch_size = batch_size

    def _items(self) -> Any:
        if self.job["method"] == "pretrain":
            return [torch.tensor([*row["input_ids"], row["input_ids"][0]]) for row in self.rows]
        return [
            {
                "input_ids": torch.tensor(row["input_ids"]),
                "labels": torch.tensor(row["labels"]),
                "token_counts": dict.fromkeys(("raw", "raw_plus_prompt_template"), len(row["input_ids"])),
            }
            for row in self.rows
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        items = self._items()
        order = torch.Generator().manual_seed(self.job["seed"])
        loader = Metered(items, self.batch_size, shuffle=True, generator=order, collate_fn=self._collate())
        loader.untimed, loader.limit = self.job["untimed"], self.job.get("limit", 0)
        self.metered = loader
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        items = self._items()[: self.batch_size]
        return DataLoader(items, self.batch_size, collate_fn=self._collate())

    def _collate(self) -> Any:
        return None if self.job["method"] == "pretrain" else get_sft_collate_fn()


def _first_loss(fabric: Any, model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean loss over the labels of `rows` before training, row by row, forward and backward."""
    total = labels = 0.0
    for row in rows:
        wanted = torch.tensor(row["labels"][1:])
        logits = model(torch.tensor([row["input_ids"]]))[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
        fabric.backward(loss)
        total, labels = total + float(loss.detach()), labels + int((wanted != -100).sum())
    model.zero_grad(set_to_none=True)
    return total / labels


def _checkpoint(source: Path, folder: Path) -> Path:
    """The model in litgpt's own form, made once beside the Hugging Face folder's copy."""
    if not (folder / "lit_model.pth").is_file():
        shutil.copytree(source, folder, dirs_exist_ok=True)
        convert_hf_checkpoint(folder, model_name="SmolLM2-135M-Instruct")
    return folder


def lora(job: dict[str, Any], rows: Rows, out: Path) -> float:
    found: list[float] = []
    own = finetune_lora.fit

    def fit(**given: Any) -> Any:
        found.append(_first_loss(given["fabric"], given["model"], rows.rows[: job["first_rows"]]))
        return own(**given)

    finetune_lora.fit = fit
    setting = dict(job["setting"])
    train = {"global_batch_size": 16, "micro_batch_size": 1} | setting.pop("train", {})
    with contextlib.suppress(Finished):
        finetune_lora.setup(
            checkpoint_dir=_checkpoint(Path(job["model"]), Path(job["converted"])),
            out_dir=out,
            lora_r=job["rank"],
            lora_alpha=job["alpha"],
            lora_dropout=0.0,
            **{f"lora_{name}": True for name in ("query", "key", "value", "projection", "mlp")},
            data=rows,
            train=TrainArgs(save_interval=10**9, lr_warmup_steps=1, epochs=1000, max_seq_length=None, **train),
            eval=EvalArgs(**QUIET, max_new_tokens=1),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": job["learning_rate"]}},
            seed=job["seed"],
            **setting,
        )
    return found[0]


def from_scratch(job: dict[str, Any], rows: Rows, out: Path) -> None:
    setting = dict(job["setting"])
    if not setting.pop("compile", True):
        setattr(torch, "compile", lambda model, *args, **kwargs: model)  # noqa: B010
    train = {"global_batch_size": job["global_rows"], "micro_batch_size": 4} | setting.pop("train", {})
    length = len(rows.rows[0]["input_ids"])
    with contextlib.suppress(Finished):
        pretrain.setup(
            model_name="own",
            model_config=Config(name="own", block_size=length, **job["shape"]),
            out_dir=out,
            data=rows,
            train=TrainArgs(
                save_interval=None,
                max_tokens=10**12,
                max_norm=job["clip_norm"],
                lr_warmup_steps=1,
                tie_embeddings=True,
                max_seq_length=length,
                **train,
            ),
            eval=EvalArgs(**QUIET),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": job["learning_rate"]}},
            devices=1,
            logger_name="csv",
            seed=job["seed"],
            **setting,
        )


def _give_up(*_: Any) -> None:
    print("not done within the seconds that a try may take", file=sys.stderr, flush=True)
    os._exit(1)


def measure(job: dict[str, Any], out: Path) -> dict[str, Any]:
    if job.get("give_up"):
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(int(job["give_up"]))
    lines = Path(job["subset"]).read_text(encoding="utf-8").splitlines()
    rows = Rows([json.loads(line) for line in lines], job)
    torch.set_float32_matmul_precision("high")  # as litgpt's command does
    first = None
    if job["method"] == "lora":
        first = lora(job, rows, out)
    else:
        from_scratch(job, rows, out)
    told = rows.metered
    assert told is not None, "litgpt asked for no rows"
    names = ("row_tokens", "label_tokens", "batches", "stopped")
    return {"seconds": told.ended - told.began, "first_loss": first} | {name: getattr(told, name) for name in names}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answer = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(folder))
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
