"""Data and vocabularies that a recipe makes before it trains: nothing is downloaded, one seed gives the same files.

Each maker writes a folder with `train.jsonl`, what is measured beside it, and a vocabulary (tokenizer.json with its
settings and chat template), so that `model.new.vocab` and `data.train` of a stage may name it.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from riverrun.base.artifacts import atomic_file, digest_json, write_json, write_text
from riverrun.base.config import Config
from riverrun.base.errors import InputError
from riverrun.data import arithmetic, needles
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.tokenizer_training import language_of, read_texts, train_bpe

__all__ = [
    "MakeArithmetic",
    "MakeNeedles",
    "MakeTexts",
    "Maker",
    "counter",
    "hay",
    "make",
    "needle_vocabulary",
    "own_texts",
    "reference_texts",
]

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The contents alone, an end token behind each answer."""
MARKER = "made.json"


class MakeArithmetic(Config):
    """Problems with their solutions (`data.arithmetic`)."""

    kind: Literal["arithmetic"]
    rows: int = Field(default=200_000, ge=1, description="problems to learn from")
    within: tuple[int, ...] = Field(default=(100, 1000), min_length=1, description="bounds of the operands")
    work: bool = Field(default=True, description="write the steps before the answer")
    digits: Literal["single", "three"] = Field(default="single", description="one token a digit, or up to three")
    vocab_size: int = Field(default=259, ge=259, description="259 are bytes and special tokens; more are numbers")
    seed: int = Field(default=0, description="of the problems")


class MakeNeedles(Config):
    """Documents with hidden facts (`data.needles`), in Python's own reference manual."""

    kind: Literal["needles"]
    documents: int = Field(default=2000, ge=1, description="documents to learn from")
    shortest: int = Field(default=64, ge=48, description="tokens of the shortest")
    longest: int = Field(default=1024, ge=64, description="tokens of the longest; lengths between are log-uniform")
    needles: int = Field(default=16, ge=1, le=len(needles.NAMES), description="most facts and questions of a document")
    vocab_size: int = Field(default=1024, ge=320, description="tokens of the vocabulary")
    seed: int = Field(default=0, description="of the documents")


class MakeTexts(Config):
    """Texts that are there wherever Python and this package are, whole documents held out by language."""

    kind: Literal["texts"]
    files: tuple[Path, ...] = Field(default=(), description="texts of one's own instead: files and folders")
    held_out: int = Field(default=10, ge=2, description="one document in so many is only measured")
    vocab_size: int = Field(default=2048, ge=320, description="tokens of the vocabulary, trained on what is learned")
    piece: int = Field(default=2048, ge=64, description="UTF-8 bytes of the longest piece of a document: one row")
    measured: int = Field(default=100_000, ge=64, description="bytes of each language that are measured at most")
    seed: int = Field(default=0, description="of which documents are held out")


Maker = MakeArithmetic | MakeNeedles | MakeTexts


def make(settings: Maker, folder: Path) -> None:
    """Write the folder; one that was made by the same settings is kept."""
    key = digest_json(settings.model_dump(mode="json"))
    marker = folder / MARKER
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")).get("key") == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if isinstance(settings, MakeArithmetic):
        counts = _arithmetic(settings, folder)
    elif isinstance(settings, MakeNeedles):
        counts = _needles(settings, folder)
    else:
        counts = _texts(settings, folder)
    write_json(marker, {"key": key, "counts": counts})


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with atomic_file(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_vocabulary(folder: Path, tokenizer: Tokenizer, template: str = "") -> None:
    tokenizer.save(folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", settings | {"eos_token": tokenizer.token(tokenizer.end_ids[0])})
    if template:
        write_text(folder / "chat_template.jinja", template)


def _talk(row_id: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": row_id, "messages": turns}


def _arithmetic(settings: MakeArithmetic, folder: Path) -> dict[str, int]:
    def rows(count: int, seed: int) -> Iterator[dict[str, str]]:
        return arithmetic.rows(count, within=settings.within, seed=seed, work=settings.work)

    # numbers become tokens as often as they are seen
    sample = [f"{row['prompt']}{row['completion']}" for row in rows(min(settings.rows, 20_000), settings.seed)]
    tokenizer = train_bpe(sample, vocab_size=settings.vocab_size, digits=settings.digits)
    _write_vocabulary(folder, tokenizer, PLAIN)
    talks = (_talk(row["id"], row["prompt"], row["completion"]) for row in rows(settings.rows, settings.seed))
    return {"rows": _write_rows(folder / "train.jsonl", talks), "vocab_size": tokenizer.vocab_size}


def counter(tokenizer: Tokenizer) -> needles.Count:
    """Tokens of a text; what was counted is remembered."""

    @lru_cache(maxsize=100_000)
    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    return count


def hay() -> tuple[list[str], list[str]]:
    """Sentences of the manual: (to learn among, to measure among)."""
    found = needles.sentences([text for _, text in reference_texts()])
    return [line for place, line in enumerate(found) if place % 10], found[::10]


def needle_vocabulary(around: Sequence[str], size: int) -> Tokenizer:
    """A vocabulary of the sentences around in which every name is one token: it is in them a thousand times over."""
    names = (f" {needles.Needle(name, '', 0.0).question}" for name in needles.NAMES)
    return train_bpe([*around, *(text * 1000 for text in names)], vocab_size=size)


def _needles(settings: MakeNeedles, folder: Path) -> dict[str, int]:
    around, _ = hay()
    tokenizer = needle_vocabulary(around, settings.vocab_size)
    _write_vocabulary(folder, tokenizer, PLAIN)
    rows = needles.rows(
        settings.documents,
        around,
        counter(tokenizer),
        shortest=settings.shortest,
        longest=settings.longest,
        needles=settings.needles,
        seed=settings.seed,
    )
    return {"rows": _write_rows(folder / "train.jsonl", rows), "vocab_size": tokenizer.vocab_size}


def reference_texts() -> Iterator[tuple[str, str]]:
    """(name, text) of the pages of the language reference that come with every Python (PSF licence)."""
    yield from sorted(pydoc_data.topics.topics.items())


def own_texts() -> Iterator[tuple[str, str]]:
    """(name, text) of what this package says in Chinese: wordings, questions and pages of its domains."""
    import riverrun

    root = Path(riverrun.__file__).parent
    for path in sorted(root.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        lines = [said for line in text.splitlines() if language_of(said := line.partition(", sql:")[0]) == "zh"]
        for start in range(0, len(lines), 20):
            if part := "\n".join(re.sub(r"^[\s{-]*(q: )?", "", line) for line in lines[start : start + 20]):
                yield f"{path.relative_to(root)}#{start}", part


def _texts(settings: MakeTexts, folder: Path) -> dict[str, int]:
    if settings.files:
        documents = [(str(number), text) for number, text in enumerate(read_texts(settings.files))]
    else:
        documents = [*reference_texts(), *own_texts()]
    learned, measured = _hold_out(documents, settings.held_out, settings.seed)
    tokenizer = train_bpe((text for _, text in learned), vocab_size=settings.vocab_size)
    _write_vocabulary(folder, tokenizer)
    counts = {"vocab_size": tokenizer.vocab_size}

    counts["train"] = _write_rows(folder / "train.jsonl", _pieces(learned, settings.piece))
    for language in ("en", "zh"):
        some = [each for each in measured if language_of(each[1]) == language]
        if not some:
            raise InputError(f"no {language} document is held out of {len(documents)}: lower held_out or give more")
        whole = settings.measured // settings.piece
        counts[language] = _write_rows(
            folder / f"{language}.jsonl", islice(_pieces(some, settings.piece), max(1, whole))
        )
    return counts


def _pieces(documents: Iterable[tuple[str, str]], size: int) -> Iterator[dict[str, str]]:
    """Rows of at most `size` bytes, cut between characters."""
    for name, text in documents:
        rest, place = text.encode("utf-8", "replace"), 0
        while rest:
            part = rest[:size].decode("utf-8", "ignore")
            rest = rest[len(part.encode()) :]
            if part.strip():
                yield {"id": f"{name}/{place}", "text": part}
            place += 1


def _hold_out(
    documents: Sequence[tuple[str, str]], share: int, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(to learn, to measure): of each language one document in `share`, at least one where there are two."""
    learned: list[tuple[str, str]] = []
    measured: list[tuple[str, str]] = []
    for language in ("en", "zh", "other"):
        some = [each for each in documents if language_of(each[1]) == language]
        chosen = set(
            random.Random(f"{seed}/{language}").sample(range(len(some)), round(len(some) / share) or len(some) // 2)
        )
        for place, each in enumerate(some):
            (measured if place in chosen else learned).append(each)
    return learned, measured
