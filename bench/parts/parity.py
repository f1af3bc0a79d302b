"""Our token ids and fp32 logits against transformers, on conversations of a run.

`python -m bench.parts.parity JOB ANSWER` asks the reference, which runs in the peer's own environment, for one
conversation after another and compares every logit of every position; nothing but the current array is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.common import PEERS, Row, child, peer_python
from bench.parts.context import RunFolder
from riverrun.base.artifacts import write_json
from riverrun.base.errors import RiverrunError

if TYPE_CHECKING:
    from riverrun.base.types import Message
    from riverrun.models.transformer import CausalLM

__all__ = ["NAME", "Reference", "Tally", "evenly", "measure", "rows_of"]

NAME = "logits against transformers, fp32; token ids against the HF tokenizer, 200 conversations"
CONVERSATIONS, QUICK_LOGITS = 200, 16
LIMIT = 1e-4

T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at equal distances; all when there are fewer."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


class Reference:
    """The peer's process; `ask` gives its token ids, and its logits when they are wanted."""

    def __init__(self, command: Sequence[str], scratch: Path) -> None:
        self._file = scratch / "logits.f32"
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, messages: Sequence[Message], *, logits: bool) -> tuple[dict[str, list[int]], Any]:
        import numpy as np

        assert self._process.stdin
        assert self._process.stdout
        rows = [{"role": m.role, "content": m.text} for m in messages]
        question = {"messages": rows, "logits": str(self._file) if logits else None}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RiverrunError(f"the reference ended with code {self._process.wait()}: its own words stand above")
        answer = json.loads(line)
        if not logits:
            return answer, None
        return answer, np.fromfile(self._file, dtype=np.float32).reshape(len(answer["ids"]), -1)

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


@dataclass
class Tally:
    """What was found so far."""

    conversations: int = 0
    tokens: int = 0
    ids_differ: int = 0
    ids_as_converted_differ: int = 0
    compared: int = 0
    positions: int = 0
    max_abs: float = 0.0
    largest: float = 0.0
    picks_differ: int = 0

    def count_ids(self, ours: Sequence[int], reference: Mapping[str, Sequence[int]]) -> None:
        self.conversations += 1
        self.tokens += len(ours)
        self.ids_differ += list(ours) != list(reference["ids"])
        self.ids_as_converted_differ += list(ours) != list(reference["ids_as_converted"])

    def count_logits(self, ours: Any, reference: Any) -> None:
        """Two arrays [tokens, vocabulary]."""
        self.compared += 1
        self.positions += len(ours)
        self.max_abs = max(self.max_abs, float(abs(ours - reference).max()))
        self.largest = max(self.largest, float(abs(reference).max()))
        self.picks_differ += int((ours.argmax(axis=1) != reference.argmax(axis=1)).sum())


def _logits(lm: CausalLM, ids: Sequence[int]) -> Any:
    import torch

    from riverrun.models.attention import PackedCausal

    attend = PackedCausal(0, [len(ids)], dtype=torch.float32)
    with torch.no_grad():
        return lm.logits(lm(torch.tensor(list(ids)), attend.positions, attend)).numpy()


def compare(job: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the reference about `conversations` rows, with logits for `logits` of them."""
    import torch

    from riverrun.models.load import load_checkpoint, load_model
    from riverrun.train.finetune import read_rows
    from riverrun.wire.codec import get_codec

    opened = load_checkpoint(Path(job["model"]))
    lm = load_model(opened, torch.float32)
    codec = get_codec(job["codec"])
    rows = read_rows(Path(job["rows"]))
    conversations = [
        (row_id, codec.lower(messages, tools)) for row_id, messages, tools in rows if not isinstance(messages, str)
    ]
    chosen = evenly(conversations, job["conversations"])
    with_logits = {row_id for row_id, _ in evenly(chosen, job["logits"])}
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        reference = Reference(job["reference"], Path(scratch))
        for row_id, lowered in chosen:
            ours, _ = opened.template.encode_with_labels(opened.tokenizer, lowered)
            theirs, logits = reference.ask(lowered, logits=row_id in with_logits)
            tally.count_ids(ours, theirs)
            if logits is not None:
                tally.count_logits(_logits(lm, theirs["ids"]), logits)
        reference.close()
    return tally.__dict__


def measure(run: RunFolder, *, quick: bool) -> Tally:
    """The comparison, in a process of its own."""
    command = [str(peer_python("transformers")), str(PEERS / "transformers_reference.py"), str(run.model)]
    job = {
        "model": str(run.model),
        "rows": str(run.rows),
        "codec": run.settings["codec"],
        "conversations": CONVERSATIONS,
        "logits": QUICK_LOGITS if quick else CONVERSATIONS,
        "reference": command,
    }
    answer = child(sys.executable, ["-m", "bench.parts.parity"], job, "parity")
    answer.pop("peak_bytes")
    return Tally(**answer)


def rows_of(tally: Tally | None) -> list[Row]:
    """The issue's row holds when the ids are equal, too; None when the peer is left out."""
    ids = f"{NAME}: conversations whose token ids differ"
    if tally is None:
        return [Row(NAME, None, note="--peers leaves transformers out"), Row(ids, None)]
    note = (
        f"{tally.compared} conversations, all {tally.positions} positions, logits up to {tally.largest:.0f}; "
        f"the most likely token differs at {tally.picks_differ}"
    )
    against = f"{tally.conversations} conversations, {tally.tokens} tokens"
    as_converted = {"transformers' GGUF conversion, digits not split": float(tally.ids_as_converted_differ)}
    return [
        Row(NAME, tally.max_abs, "max abs", LIMIT, note=note, holds=tally.ids_differ == 0),
        Row(ids, tally.ids_differ, "", 0, peers=as_converted, note=against),
    ]


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), compare(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
