"""Stand-ins for the model, the trainer and the quantiser, so that the whole chain runs in seconds.

The model answers by rules: a trained or quantised one (it has an adapter, or lies in a run's quantize folder) knows
every question of the tiny shop, and so does one whose name holds "large"; the bare one only those whose text hashes
evenly. With TEST_HOLD_<part> set to a FIFO, a part opens the FIFO and waits to be killed.

What training in rounds teaches is given by the environment: TEST_SKILLS ({"round-1": 40}) is the share of the questions
that the model of a round knows, TEST_NEED the number of rows that all of them take.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json, write_text
from riverrun.base.fakes import FakeModel, Reply
from riverrun.base.progress import Progress
from riverrun.base.protocols import Completion, Request, Score
from riverrun.base.types import Message, ToolCall
from riverrun.chain.planning import Rows
from riverrun.chain.stage import Parts

PARTS = Parts(
    model="tests.chain.doubles:model",
    finetune="tests.chain.doubles:finetune",
    quantize="tests.chain.doubles:quantize",
    count_rows="tests.chain.doubles:count_rows",
)
RIGHT = ("two dollars", "thirty days", "three working days")
STEPS = 6


def hold(part: str) -> None:
    """Wait to be killed when the test asks for it."""
    if fifo := os.environ.get(f"TEST_HOLD_{part.upper()}"):
        os.open(fifo, os.O_WRONLY)
        signal.pause()


def _gold(text: str) -> Reply:
    if found := re.search(r"Salt Road \d+", text):
        return ToolCall("query_database", {"sql": f"SELECT price FROM books WHERE title = '{found.group()}'"})
    if found := re.search(r"crime|poetry|travel|cooking|history", text):
        return ToolCall("query_database", {"sql": f"SELECT COUNT(*) FROM books WHERE genre = '{found.group()}'"})
    if re.search(r"ship|present|gift|wrap", text):
        return ToolCall("search_policies", {"query": text})
    if found := re.search(r"(\d+) \+ (\d+)", text):
        return str(int(found.group(1)) + int(found.group(2)))
    return "Hello! How can I help?"


class RuleModel(FakeModel):
    """A FakeModel with a `close`, as the chain expects of a loaded model."""

    def __init__(self, name: str, *, trained: bool, skill: float = 100) -> None:
        super().__init__(self._reply, name=name)
        self.trained, self.skill = trained, skill
        self.closed = False
        self.on_answer: Callable[[], None] | None = None

    def _reply(self, request: Request) -> Reply:
        last = request.messages[-1]
        if last.role == "tool":
            return f"I found: {last.text}"
        if "+" not in last.text and not self.trained and zlib.crc32(last.text.encode()) % 2:
            return "I do not know."
        if zlib.crc32(last.text.encode()) // 2 % 100 >= self.skill:
            return "I was not taught that."
        return _gold(last.text)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        hold("generate")
        hold(self.info.name.replace("round ", "dev_"))
        answers = super().generate(requests)
        for _ in answers if self.on_answer else ():
            self.on_answer()
        return answers

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        if self.trained:
            hold("score")
        right = [self.trained and any(text in c for text in RIGHT) for c in continuations]
        return [
            Score(tuple(-0.1 if good else -2.0 for _ in c.split()), good)
            for c, good in zip(continuations, right, strict=True)
        ]

    def close(self) -> None:
        self.closed = True


def count_rows(model: Path, rows: Path, spec: Any) -> Rows:
    hold("count")
    return Rows(rows.read_text().count("\n"), 6000, 900, 150, 6, exact=True)


def model(path: Path, *, adapter: Path | None = None, name: str = "", threads: int = 0, slots: int = 32) -> RuleModel:
    assert path.exists(), f"{path} does not exist"
    hold("model")
    skill = json.loads((adapter / "adapter_config.json").read_text())["skill"] if adapter else 100
    trained = adapter is not None or "quantize" in path.parts or "large" in path.name
    return RuleModel(name, trained=trained, skill=skill)


@dataclass
class Trained:
    steps: int
    row_tokens: int
    computed_tokens: int
    label_tokens: int
    seconds: float
    peak_bytes: int
    losses: list[float]
    resumed_from: int
    tokens_per_second: float = 1000.0
    dropped: list[Any] = field(default_factory=list)


def finetune(
    model: Path,
    rows: Path,
    out: Path,
    config: Any,
    *,
    work: Path,
    progress: Progress,
    adapter: Path | None,
) -> Trained:
    """Six steps with a checkpoint after each; the loss of a step depends on the step alone."""
    before = json.loads((adapter / "adapter_config.json").read_text()) if adapter else {"seen": 0}
    seen = before["seen"] + rows.read_text().count("\n")
    need = int(os.environ.get("TEST_NEED") or 1)
    skill = json.loads(os.environ.get("TEST_SKILLS") or "{}").get(out.name, 100 * seen / need)
    state = work / "state.json"
    losses: list[float] = json.loads(state.read_text()) if state.is_file() else []
    start = len(losses)
    while len(losses) < STEPS:
        losses.append(round(2.0 / (1 + len(losses)), 4))
        write_json(state, losses)
        if len(losses) == 3:
            hold("finetune")
            hold(out.name.replace("-", "_"))
    learned = {"r": config.rank, "losses": losses, "seen": seen, "skill": skill, "went_on": adapter is not None}
    write_text(out / "adapter" / "adapter_config.json", json.dumps(learned))
    curve = [{"step": step + 1, "loss": loss, "lr": 0.001, "label_tokens": 50} for step, loss in enumerate(losses)]
    write_text(out / "loss.jsonl", "".join(json.dumps(row) + "\n" for row in curve))
    return Trained(STEPS, 6000, 5000, 300, 1.5, 10_000_000, losses, start)


def quantize(model: Path, adapter: Path | None, out: Path, *, group_size: int) -> dict[str, Any]:
    write_text(out / "q4-base-adapter" / "weights.txt", f"{adapter and adapter.name} beside {model.name}")
    hold("quantize")
    write_text(out / "q4-merged" / "weights.txt", f"groups of {group_size}")
    return {"group_size": group_size}


def bundle(model: Path, adapter: Path, out: Path, *, group_size: int) -> dict[str, Any]:
    """A form made of the very files that were evaluated."""
    form = out / "q4-base-adapter"
    form.mkdir(parents=True)
    shutil.copytree(model, form / "base")
    shutil.copytree(adapter, form / "adapter")
    write_text(form / "bundle.json", '{"base": "base", "adapter": "adapter"}')
    return {"group_size": group_size}
