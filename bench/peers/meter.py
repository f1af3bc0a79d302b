"""What the peers' scripts share: rows from disk, and a meter that counts what a Trainer's steps did and how long.

Counts as useful every token of every row once, whatever padding or packing makes of it. Untimed steps come first: where
the model is compiled, shapes are met and compiled in them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

__all__ = ["Meter", "first_loss", "give_up_after", "read_rows"]


def read_rows(path: str) -> list[dict[str, Any]]:
    """JSON lines {"input_ids", "labels"}."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def give_up_after(seconds: float) -> None:
    """End this process and say so; compiling may take longer than a try is worth, and would wrap an exception."""

    def stop(*_: Any) -> None:
        print(f"not done after {seconds:.0f} s", file=sys.stderr, flush=True)
        os._exit(1)

    if seconds:
        signal.signal(signal.SIGALRM, stop)
        signal.alarm(int(seconds))


class Meter(TrainerCallback):
    """Seconds and tokens of the steps behind the first `untimed`; ends the training after `limit` timed seconds.

    `collator` counts what each micro-batch holds; a step's are `accumulation` micro-batches in their order.
    """

    def __init__(self, collator: Any, *, untimed: int, limit: float, accumulation: int = 1) -> None:
        self.inner, self.untimed, self.limit, self.accumulation = collator, untimed, limit, accumulation
        self.batches: list[tuple[int, int]] = []
        self.began = self.ended = 0.0
        self.row_tokens = self.label_tokens = self.steps = 0
        self.stopped = False

    def collator(self, examples: list[dict[str, Any]]) -> Any:
        rows = sum(len(example["input_ids"]) for example in examples)
        labels = sum(label != -100 for example in examples for label in example["labels"])
        self.batches.append((rows, labels))
        return self.inner(examples)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.batches.clear()
        self.began = self.ended = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now, step = time.perf_counter(), state.global_step
        if step == self.untimed:
            self.began = now
        if step <= self.untimed:
            return
        seen = self.batches[(step - 1) * self.accumulation : step * self.accumulation]
        self.row_tokens += sum(rows for rows, _ in seen)
        self.label_tokens += sum(labels for _, labels in seen)
        self.ended, self.steps = now, self.steps + 1
        if self.limit and now - self.began > self.limit:
            self.stopped = control.should_training_stop = True

    def answer(self) -> dict[str, Any]:
        return {
            "seconds": self.ended - self.began,
            "row_tokens": self.row_tokens,
            "label_tokens": self.label_tokens,
            "steps": self.steps,
            "stopped": self.stopped,
        }


def first_loss(trainer: Any, rows: list[dict[str, Any]]) -> float:
    """Mean loss over the labels of `rows` before training, row by row, by the trainer's own collator and loss."""
    total = labels = 0.0
    for row in rows:
        count = sum(label != -100 for label in row["labels"][1:])
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, trainer.data_collator([dict(row)]))
        loss.backward()
        total, labels = total + float(loss.detach()) * count, labels + count
    trainer.model.zero_grad(set_to_none=True)
    return total / labels
