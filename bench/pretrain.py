"""Pre-training from scratch on zh+en text: bits per byte of held-out documents of both languages, over a quarter hour.

`python -m bench.pretrain [--quick] [--peers none] [--json FILE] [--seconds N] [--work FOLDER]`. The text is that of
RIVERRUN_SHARED (../shared): books and Python's documentation in English, novels, laws and modern prose in Chinese, one
document in twenty held out whole. The model is InternLM2-shaped, its vocabulary trained on the learned part, the recipe
that of recipes/pretrain. Everything counts in the time: vocabulary, tokens, training, evaluations. `--quick` trains for
one minute. Peers do not apply: bench/train_speed compares speeds.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from bench.common import ROOT, Row, home, main_of, parser, read_options, say, table, write_report
from bench.parts.machine import machine
from riverrun.base.artifacts import write_text
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.chain.abilities import run_ability
from riverrun.chain.texts import bits_per_byte, samples

__all__ = ["SOURCES", "gather", "main", "rows_of"]

SOURCES = {
    "standardebooks_en": 6_000_000,
    "tinyshakespeare_en": 1_200_000,
    "python_docs_en": 4_000_000,
    "novels_zh": 5_000_000,
    "laws_zh": 4_000_000,
    "classical_modern_zh": 4_000_000,
}
"""Bytes that are taken of each, in its own order."""
SHAPE = (
    "hidden_size=320",
    "intermediate_size=896",
    "num_hidden_layers=6",
    "num_attention_heads=5",
    "num_key_value_heads=5",
)
MINUTES = "zh+en from scratch: minutes in all"
FALL = "{}: bits per byte at the end, of those at the first evaluation"


def documents(folder: Path) -> Iterator[str]:
    """The texts of a corpus: `text` of its JSON lines, or its .txt files."""
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as handle:
            for line in handle:
                yield str(json.loads(line)["text"])
    for path in sorted(folder.glob("input.txt")):
        text = path.read_text(encoding="utf-8")
        for start in range(0, len(text), 20_000):  # one file of many scenes: pieces of it are the documents
            yield text[start : start + 20_000]


def gather(shared: Path, target: Path, *, share: float = 1.0) -> dict[str, int]:
    """One JSON-lines file for each corpus; the bytes taken of each. InputError where a corpus is not there."""
    taken = {}
    for name, most in SOURCES.items():
        folder = shared / "corpora" / name
        if not folder.is_dir():
            raise InputError(f"not run here: {folder} does not exist; set RIVERRUN_SHARED to the folder of the corpora")
        lines, size = [], 0
        for text in documents(folder):
            if size >= most * share:
                break
            size += len(text.encode())
            lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        write_text(target / f"{name}.jsonl", "".join(lines))
        taken[name] = size
    return taken


def rows_of(folder: Path, minutes: float) -> list[Row]:
    """The time, and for each language how far its bits per byte fell and where they ended."""
    rows = [Row(MINUTES, minutes, "min", 15)]
    for language, curve in bits_per_byte(folder).items():
        (_, first), (_, last) = curve[0], curve[-1]
        told = ", ".join(f"step {step}: {bits:.3f}" for step, bits in curve)
        falls = all(after < before * 1.01 for (_, before), (_, after) in pairwise(curve))
        rows.append(Row(FALL.format(language), last / first, "", 0.9, note=told, holds=falls))
        rows.append(Row(f"{language}: bits per byte at the end", last, "bits"))
    return rows


def main() -> int:
    own = parser(str(__doc__).partition("\n")[0])
    own.add_argument("--seconds", type=float, default=0.0, help="of training; 660, with --quick 60, unless given")
    own.add_argument("--work", type=Path, default=None, help="folder of the run; .bench/pretrain unless given")
    chosen = read_options(own.parse_args(), ())
    shared = Path(os.environ.get("RIVERRUN_SHARED") or ROOT.parent / "shared")
    work = chosen.rest.work or home() / "pretrain"
    seconds = chosen.rest.seconds or (60.0 if chosen.quick else 660.0)
    began = time.monotonic()
    taken = gather(shared, work / "corpora", share=0.1 if chosen.quick else 1.0)
    say(", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in taken.items()))
    changes = [
        f"make.texts.files=[{work / 'corpora'}]",
        "make.texts.held_out=20",
        "make.texts.vocab_size=8192",
        *(f"stages.model.model.new.{change}" for change in SHAPE),
        f"stages.model.run.length={seconds:g} seconds",
        f"stages.model.run.eval_every={seconds / 8:.3f} seconds",
        "stages.model.run.prompts=['The whale ', 'Return a list of ', '话说', '第一条 ']",
    ]
    result = run_ability(ROOT / "recipes" / "pretrain", work / "run", overrides=changes, progress=Progress("lines"))
    rows = rows_of(work / "run" / "model", (time.monotonic() - began) / 60)
    print(table(rows))
    said = [{"step": step, "prompt": prompt, "text": text} for step, prompt, text in samples(work / "run" / "model")]
    for each in said:
        print(f"step {each['step']}: {each['prompt']}|{each['text']!r}")
    write_report(chosen.json, machine(), rows, bytes=taken, samples=said, result=result)
    return 0 if all(row.passed is not False for row in rows) else 3


if __name__ == "__main__":
    main_of(main)
