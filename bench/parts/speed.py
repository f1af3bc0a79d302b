"""Fine-tuning speed on a run's own rows, ours against TRL + PEFT in several settings, taking turns.

Useful tokens are those of the rows, each with its own prompt, divided by the seconds of the training loop. Every
setting is tried once; its default and the best of them then go on to three turns beside ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.common import PEERS, Row, child, home, interleave, middle, peer_python, say
from bench.parts.context import RunFolder

__all__ = ["NAME", "SETTINGS", "best_of", "fair_problems", "measure", "rate", "rows_of"]

NAME = "fine-tune tokens/s on these rows against TRL + PEFT, best of its settings"
OURS, PLAIN = "riverrun", "riverrun, nothing shared"
DEFAULT = "TRL default"
PADDED = {"per_device_train_batch_size": 8, "gradient_checkpointing": False}
GROUPED = PADDED | {"train_sampling_strategy": "group_by_length"}
PACKED = {"packing": True, "max_length": 1024, "per_device_train_batch_size": 2, "gradient_checkpointing": False}
SETTINGS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "TRL padded": PADDED,
    "TRL grouped by length": GROUPED,
    "TRL grouped, eager attention": GROUPED | {"attn_implementation": "eager"},
    "TRL packed": PACKED,
}
TOKENS, QUICK_TOKENS = 16_000, 5_000
ROUNDS = 3
FIRST_ROWS = 8
"""Rows of the untimed first loss, the same on both sides."""
NOISE = 0.02

Answer = Mapping[str, Any]


def rate(answer: Answer) -> float:
    """Useful tokens a second."""
    return float(answer["row_tokens"] / answer["seconds"])


def best_of(results: Mapping[str, Sequence[Answer]]) -> str:
    """The setting of the peer with the highest median."""
    return max((name for name in results if name in SETTINGS), key=lambda name: middle([*map(rate, results[name])]))


def fair_problems(results: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Why two sides did not do the same work: other tokens, other labels, or another loss before training."""
    ours = results[OURS][0]
    problems = []
    for name, answers in results.items():
        for key in ("row_tokens", "label_tokens"):
            if answers[0][key] != ours[key]:
                problems.append(f"{name} has {answers[0][key]} {key.replace('_', ' ')}, ours {ours[key]}")
        if abs(answers[0]["first_loss"] / ours["first_loss"] - 1) > NOISE:
            problems.append(f"{name} starts at loss {answers[0]['first_loss']:.4f}, ours at {ours['first_loss']:.4f}")
    return problems


def _ours(run: RunFolder, tokens: int, *, share: bool) -> Answer:
    job = {"model": str(run.model), "rows": str(run.rows), "settings": run.settings, "row_tokens": tokens}
    job |= {"share": share, "first_rows": FIRST_ROWS}
    return child(sys.executable, ["-m", "bench.parts.train_ours"], job, "train_ours")


def _subset(run: RunFolder, tokens: int) -> Path:
    """The rows of our first packs as ids and labels, on disk."""
    path = home() / "jobs" / "subset.jsonl"
    job = {"model": str(run.model), "rows": str(run.rows), "settings": run.settings, "row_tokens": tokens}
    counts = child(sys.executable, ["-m", "bench.parts.train_ours"], job | {"subset": str(path)}, "subset")
    say(f"  {counts['rows']} rows, {counts['row_tokens']} tokens, {counts['label_tokens']} to learn")
    return path


def _peer(python: Path, model: Path, subset: Path, settings: Mapping[str, Any], setting: Mapping[str, Any]) -> Answer:
    keys = ("rank", "alpha", "learning_rate", "clip_norm", "seed")
    job = {key: settings[key] for key in keys} | {"model": str(model), "subset": str(subset)}
    job |= {"setting": dict(setting), "first_rows": FIRST_ROWS}
    return child(python, [PEERS / "trl_train.py"], job, "train_trl")


def _hf_folder(python: Path, run: RunFolder) -> Path:
    """The run's base model as a bf16 folder, converted once per model."""
    out = home() / "models" / f"hf-{run.model.parent.name[:12]}"
    if not (out / "model.safetensors").is_file():
        child(python, [PEERS / "gguf_to_hf.py"], {"model": str(run.model), "out": str(out)}, "gguf_to_hf")
    return out


def measure(run: RunFolder, peers: Sequence[str], *, quick: bool) -> dict[str, list[Answer]]:
    """All answers by contestant; only ours without the peer."""
    tokens = QUICK_TOKENS if quick else TOKENS
    everyone: dict[str, Callable[[], Answer]] = {
        OURS: partial(_ours, run, tokens, share=True),
        PLAIN: partial(_ours, run, tokens, share=False),
    }
    if "trl" not in peers:
        return interleave(everyone, ROUNDS)
    python = peer_python("trl")
    model, subset = _hf_folder(python, run), _subset(run, tokens)
    for name, setting in SETTINGS.items():
        everyone[name] = partial(_peer, python, model, subset, run.settings, setting)
    results = interleave(everyone, 1)
    left = {name: everyone[name] for name in (OURS, DEFAULT, best_of(results))} if quick else everyone
    for name, answers in interleave(left, ROUNDS - 1).items():
        results[name] += answers
    return results


def rows_of(results: Mapping[str, Sequence[Answer]]) -> list[Row]:
    """The row of the issue, the ratio, and the peak memory of each side."""
    rates = {name: [*map(rate, answers)] for name, answers in results.items()}
    own = middle(rates[OURS])
    computed = results[OURS][0]["computed_tokens"] / results[OURS][0]["row_tokens"]
    shown = {name: middle(values) for name, values in rates.items() if name != OURS}
    memory = {name: max(answer["peak_bytes"] for answer in answers) / 1e9 for name, answers in results.items()}
    note = f"a beginning that rows share is computed once: {100 * computed:.0f} % of the row tokens are multiplied"
    if not any(name in SETTINGS for name in results):
        note += "; --peers none: not compared"
        rows = [Row(NAME, own, "tokens/s", peers=shown, note=note, runs=rates)]
    else:
        best, problems = best_of(results), fair_problems(results)
        note += "; " + ("; ".join(problems) or "same tokens, same labels, same loss before training on all sides")
        twice = 2 * shown[best]
        rows = [
            Row(NAME, own, "tokens/s", twice, "at least", shown, note, rates, holds=not problems),
            Row(f"{NAME}: ratio to {best}", own / shown[best], "x", 2.0, "at least", holds=not problems),
            Row(f"{NAME}: ratio to its default setting", own / shown[DEFAULT], "x"),
            Row(f"{NAME}: loss before training", results[OURS][0]["first_loss"], "nats", peers=_first(results)),
        ]
    rows.append(Row(f"{NAME}: peak memory", memory.pop(OURS), "GB", peers=memory))
    return rows


def _first(results: Mapping[str, Sequence[Answer]]) -> dict[str, float]:
    return {name: answers[0]["first_loss"] for name, answers in results.items() if name in SETTINGS}
