"""Rows to training data: JSON lines of conversations to tokens, labels and packs, against datasets.map + TRL packing.

Synthetic conversations of log-normal length, the tokenizer and template of SmolLM2-135M-Instruct. Ours writes shards
with a label mask for each token and plans an epoch of packs; the peer maps the chat template over the rows (its
default: a row at a time; and the best of batched, and batched in as many processes as there are cores) and packs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from bench.common import (
    PEERS,
    Row,
    child,
    home,
    interleave,
    main_of,
    middle,
    parser,
    peer_python,
    read_options,
    say,
    table,
    write_report,
)
from bench.parts.machine import machine

__all__ = ["SETTINGS", "fair_problems", "main", "rows_of", "write_rows"]

OURS, DEFAULT = "riverrun", "datasets.map + TRL, default"
MAX_TOKENS, MOST_WORDS = 1024, 560
ROWS, QUICK_ROWS = 1_000_000, 30_000
LEAST, MOST_MB = 3.0, 300.0
Answer = Mapping[str, Any]


def _settings() -> dict[str, dict[str, Any]]:
    cores = os.cpu_count() or 1
    return {
        DEFAULT: {},
        "datasets.map + TRL, batched": {"batched": True},
        "datasets.map + TRL, batched, a process a core": {"batched": True, "processes": cores},
    }


SETTINGS = _settings()


def write_rows(path: Path, count: int, model: Path, seed: int = 0) -> Path:
    """Conversations of one or two turns; about 150 tokens each, log-normal with sigma 0.7, none above `MAX_TOKENS`
    (the peer would cut those, and ours drops them)."""
    if path.is_file():
        return path
    rng, vocabulary = random.Random(seed), _vocabulary(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".part")
    with open(partial_path, "w", encoding="utf-8") as handle:
        for number in range(count):
            messages = []
            if number % 3 == 0:
                messages.append({"role": "system", "content": "You answer questions about the market."})
            left = MOST_WORDS
            for _ in range(1 if number % 4 else 2):
                for role, middle_words in (("user", 2.8), ("assistant", 3.7)):
                    content = _text(rng, middle_words, vocabulary, left)
                    left -= content.count(" ") + 1
                    messages.append({"role": role, "content": content})
            handle.write(json.dumps({"messages": messages}) + "\n")
    partial_path.rename(path)
    return path


def _vocabulary(model: Path) -> tuple[list[str], list[float]]:
    """The words among the model's own tokens, and the cumulative weights by which they are drawn: Zipf's law over
    their order in the vocabulary."""
    from riverrun.models.load import load_checkpoint

    tokenizer = load_checkpoint(model).tokenizer
    tokens = (tokenizer.token(index) for index in range(tokenizer.vocab_size))
    words = [token[1:] for token in tokens if token.startswith("Ġ") and token[1:].isalpha()]
    return words, list(accumulate(1 / (rank + 3) for rank in range(len(words))))


def _text(rng: random.Random, middle_words: float, vocabulary: tuple[list[str], list[float]], most: int) -> str:
    """Every twelfth word is two words joined: seldom seen twice, so that a table of words gets off no lighter here."""
    count = max(2, min(400, most, int(rng.lognormvariate(middle_words, 0.7))))
    words = rng.choices(vocabulary[0], cum_weights=vocabulary[1], k=count)
    for place in range(0, count, 12):
        words[place] = rng.choice(vocabulary[0]) + rng.choice(vocabulary[0]).lower()
        words[place - 1] += rng.choice([".", ",", "?", f" {rng.randrange(10_000)}."])
    return " ".join(words)


def _tokenizer_folder(model: Path) -> Path:
    """Tokenizer and template of the model as files that transformers reads."""
    from riverrun.models.load import load_checkpoint, save_companions

    folder = home() / "data_build" / "tokenizer"
    if not (folder / "tokenizer_config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_companions(load_checkpoint(model), folder)
    return folder


def _ours(model: Path, rows: Path, workers: int) -> Answer:
    job = {"model": str(model), "rows": str(rows), "out": str(home() / "data_build" / "shards")}
    job |= {"max_tokens": MAX_TOKENS, "workers": workers}  # type: ignore[dict-item]
    return child(sys.executable, ["-m", "bench.parts.data_ours"], job, "data_ours")


def _peer(python: Path, tokenizer: Path, rows: Path, setting: Mapping[str, Any]) -> Answer:
    cache = home() / "data_build" / "cache"
    shutil.rmtree(cache, ignore_errors=True)  # nothing of an earlier turn is found again
    job = {"tokenizer": str(tokenizer), "rows": str(rows), "cache": str(cache), "max_tokens": MAX_TOKENS}
    return child(python, [PEERS / "trl_data.py"], {**job, "setting": dict(setting)}, "data_trl")


def fair_problems(results: Mapping[str, list[Answer]]) -> list[str]:
    """Why both sides did not do the same work."""
    ours = results[OURS][0]
    problems = []
    for name, answers in results.items():
        for key in ("rows", "tokens"):
            if answers[0][key] not in (None, ours[key]):
                problems.append(f"{name} has {answers[0][key]} {key}, ours {ours[key]}")
    return problems


def rows_of(results: Mapping[str, list[Answer]]) -> list[Row]:
    """Rows a second, the ratio to the peer, memory, packs."""
    rates = {name: [answer["rows"] / answer["seconds"] for answer in answers] for name, answers in results.items()}
    own, ours = middle(rates[OURS]), results[OURS][0]
    shown = {name: middle(values) for name, values in rates.items() if name != OURS}
    note = f"{ours['rows']} rows, {ours['tokens']} tokens, {ours['label_tokens']} learned"
    out = []
    if shown:
        problems = fair_problems(results)
        note += "; " + ("; ".join(problems) or "same rows and tokens on all sides; the peer makes no label mask")
        best = max(shown, key=lambda name: shown[name])
        out = [
            Row("data build: ratio to its default", own / shown[DEFAULT], "x", LEAST, "at least", holds=not problems),
            Row(f"data build: ratio to {best}", own / shown[best], "x", LEAST, "at least", holds=not problems),
        ]
    largest = max(answer["largest_bytes"] for answer in results[OURS]) / 1e6
    peers = {name: max(a["largest_bytes"] for a in answers) / 1e6 for name, answers in results.items() if name != OURS}
    together = max(answer["together_bytes"] for answer in results[OURS]) / 1e6
    packs = middle([answer["rows"] / answer["pack_seconds"] for answer in results[OURS]])
    said = "resident, of the largest process"
    return [
        Row("data build", own, "rows/s", peers=shown, note=note, runs=rates),
        *out,
        Row("data build: peak memory", largest, "MB", MOST_MB, "at most", peers, said),
        Row("data build: peak memory of all processes together", together, "MB", note="proportional share (PSS)"),
        Row("packs planned", packs, "rows/s", 1e6, "at least", note=f"fill {100 * ours['fill']:.2f} %"),
    ]


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--rows", type=int, default=0, help=f"rows; {ROWS}, {QUICK_ROWS} with --quick, unless given")
    options.add_argument("--workers", type=int, default=0, help="processes of ours; 0 takes the cores")
    options.add_argument("--rounds", type=int, default=3, help="turns of each side")
    given = read_options(options.parse_args(), ("trl",))
    from riverrun.hub.catalog import get_card
    from riverrun.hub.store import Store

    model = Store().fetch(get_card("smollm2-135m-instruct"))
    count = given.rest.rows or (QUICK_ROWS if given.quick else ROWS)
    say(f"{count} rows ...")
    rows = write_rows(home() / "data_build" / f"rows-{count}-{MOST_WORDS}.jsonl", count, model)
    everyone: dict[str, Callable[[], Answer]] = {OURS: partial(_ours, model, rows, given.rest.workers)}
    if "trl" in given.peers:
        python, tokenizer = peer_python("trl"), _tokenizer_folder(model)
        for name, setting in SETTINGS.items():
            everyone[name] = partial(_peer, python, tokenizer, rows, setting)
    results = interleave(everyone, 1 if given.quick else given.rest.rounds)
    out = rows_of(results)
    print(table(out))
    write_report(given.json, machine(), out)
    return 0 if all(row.passed is not False for row in out) else 1


if __name__ == "__main__":
    main_of(main)
