"""Questions with their gold SQL and rows, sampled from intents and a database, apart by entity and by phrasing.

Values are divided by a hash of the value (train 60 %, dev 15 %, sealed 25 %), the same way for all intents, so a title
that is trained on appears in no sealed question. Does not judge whether a phrasing is good English.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import InputError, nearest
from riverrun.base.sql import quote_literal as sql_literal
from riverrun.base.words import sentences
from riverrun.data.intents import KINDS, SPLITS, SQL_KINDS, Intent, Split, fill, placeholders

__all__ = [
    "MAX_ROWS",
    "Question",
    "Value",
    "build_questions",
    "divide",
    "format_value",
    "read_questions",
    "split_of",
    "sql_literal",
    "write_questions",
]

Value = str | int | float
MAX_ROWS = 10
"""A question with more rows than this is drawn again: its answer would be a wall of text."""
_TRIES = 400
"""Draws of slot values for one question before giving up on it."""
_SPLICED, _FEW = 0.4, 8
"""Share of invented words that are the beginning of one and the end of another; all, where a pool has fewer values."""


@dataclass(frozen=True)
class Question:
    """One question with what a right answer needs: the SQL and its rows, or the page, or nothing (chat)."""

    id: str
    text: str
    intent: str
    kind: str
    split: str
    sql: str | None
    page: str | None
    rows: list[list[Any]] | None
    reply: str
    fact: str = ""
    """What an answer from the page must say: one wording a line, one is enough; "" when that is not known."""


def format_value(value: Any) -> str:
    """A value as a person reads it: whole numbers plain, other numbers with two decimals."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def split_of(value: Value) -> Split:
    """The split a value belongs to by its hash alone: train 60 %, dev 15 %, sealed 25 %."""
    part = int.from_bytes(sha256(str(value).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return "train" if part < 0.60 else "dev" if part < 0.75 else "sealed"


def divide(pools: Iterable[Iterable[Value]]) -> dict[str, Split]:
    """A split for every value (by its text) such that each pool of three or more values has all three splits.

    Starts from `split_of`; values are moved, for all pools at once, only where a pool lacks a split and no other pool
    loses its last value by the move. A pool that cannot be mended keeps its gap: values are never shared.
    """
    texts = [sorted({str(value) for value in pool}) for pool in pools]
    out = {text: split_of(text) for pool in texts for text in pool}
    for pool in texts:
        if len(pool) < len(SPLITS):
            continue
        for wanted in SPLITS:
            if any(out[text] == wanted for text in pool):
                continue
            for text in sorted(pool, key=lambda item: sha256(item.encode("utf-8", "surrogatepass")).digest()):
                users = [other for other in texts if len(other) >= len(SPLITS) and text in other]
                if all(Counter(out[item] for item in other)[out[text]] > 1 for other in users):
                    out[text] = wanted
                    break
    return out


class _Sampler:
    """One database, one split: the pools of values and the gold rows."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        database: Path,
        intents: Sequence[Intent],
        split: Split,
        invented: float,
    ) -> None:
        self.connection, self.database, self.intents, self.split = connection, database, intents, split
        self.invented = invented

    def rows(self, sql: str, origin: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows; InputError names the intent and the statement."""
        try:
            cursor = self.connection.execute(sql)
            return [column[0] for column in cursor.description or ()], [list(row) for row in cursor.fetchall()]
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise InputError(f"{self.database} is not an SQLite database: give the path of one") from None
            raise InputError(f"{origin}: the database refuses `{sql}`: {error}") from None

    @cached_property
    def pools(self) -> dict[tuple[str, str], list[Value]]:
        """(intent, slot) -> all values, in a stable order."""
        out: dict[tuple[str, str], list[Value]] = {}
        for intent in self.intents:
            for name, slot in intent.slots.items():
                origin = f"intent '{intent.name}', slot '{name}'"
                if slot.query is not None:
                    columns, rows = self.rows(slot.query, origin)
                    if len(columns) != 1:
                        raise InputError(f"{origin}: query gives {len(columns)} columns, select exactly one")
                    found: Iterable[Value] = (row[0] for row in rows if row[0] is not None and row[0] != "")
                elif slot.range is not None:
                    found = range(slot.range[0], slot.range[1] + 1)
                else:
                    found = slot.values or ()
                values = {str(value): value for value in found}
                if not values:
                    raise InputError(f"{origin}: the query gives no value, nothing can be asked with it")
                out[intent.name, name] = [values[text] for text in sorted(values)]
        return out

    @cached_property
    def division(self) -> dict[str, Split]:
        return divide(self.pools[i.name, name] for i in self.intents for name, slot in i.slots.items() if slot.split)

    @cached_property
    def known(self) -> set[str]:
        """Every value of every pool, lower case."""
        return {str(value).lower() for pool in self.pools.values() for value in pool}

    def pool(self, intent: Intent, name: str) -> list[Value]:
        """The values this split may use."""
        values = self.pools[intent.name, name]
        if not intent.slots[name].split:
            return values
        chosen = [value for value in values if self.division[str(value)] == self.split]
        if not chosen:
            raise InputError(
                f"intent '{intent.name}', slot '{name}': none of its {len(values)} values falls to the {self.split} "
                f"split: add values or say split: false"
            )
        return chosen


def build_questions(
    intents: Sequence[Intent],
    database: Path,
    *,
    split: Split,
    per_intent: int | Mapping[str, int],
    seed: int,
    max_rows: int = MAX_ROWS,
    invented: float = 0.0,
) -> list[Question]:
    """Up to `per_intent` questions of every intent that has phrasings in the split (a mapping counts by kind).

    All kinds but none_found have between 1 and `max_rows` rows; none_found has none. Texts are distinct; fewer
    questions are returned where an intent has no more distinct ones. InputError if an intent yields none at all.
    Give all intents for every split: the division of values is made over all of their pools.

    A share of `invented` of the SQL questions names things that do not exist, made from parts of the split's own values
    (never a value of any pool). They teach to copy a name instead of recalling one of the few seen in training; their
    rows and `answer_none` say that nothing was found.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}'.{nearest(split, SPLITS)}")
    if isinstance(per_intent, Mapping) and (unknown := sorted(set(per_intent) - set(KINDS))):
        raise InputError(f"per_intent: unknown kind '{unknown[0]}'.{nearest(unknown[0], KINDS)}")
    if not Path(database).is_file():
        raise InputError(f"{database} does not exist: give the path of an SQLite database")
    out: list[Question] = []
    texts: set[str] = set()
    with closing(sqlite3.connect(Path(database).resolve().as_uri() + "?mode=ro", uri=True)) as connection:
        sampler = _Sampler(connection, Path(database), intents, split, invented)
        for intent in intents:
            count = per_intent.get(intent.kind, 0) if isinstance(per_intent, Mapping) else per_intent
            if not intent.phrasings.of(split) or count < 1:
                continue
            rng = random.Random(f"{seed}/{split}/{intent.name}")
            draw = _sql_questions if intent.kind in SQL_KINDS else _plain_questions
            questions = draw(sampler, intent, count, rng, texts, max_rows)
            if not questions:
                raise InputError(
                    f"intent '{intent.name}': no {split} question has between 1 and {max_rows} rows in {database}: "
                    f"add a LIMIT to its sql, or values that go together"
                )
            out.extend(questions)
    return out


def _plain_questions(
    sampler: _Sampler, intent: Intent, count: int, rng: random.Random, texts: set[str], max_rows: int
) -> list[Question]:
    """Page and chat: the phrasings themselves, in random order."""
    out: list[Question] = []
    phrasings = [text for text in intent.phrasings.of(sampler.split) if text not in texts]
    rng.shuffle(phrasings)
    for text in phrasings[:count]:
        texts.add(text)
        reply = intent.answer if intent.kind == "page" else rng.choice(intent.answers)
        out.append(_question(sampler.split, intent, len(out), text, None, None, reply))
    return out


def _sql_questions(
    sampler: _Sampler, intent: Intent, count: int, rng: random.Random, texts: set[str], max_rows: int
) -> list[Question]:
    assert intent.sql is not None
    pools = {name: sampler.pool(intent, name) for name in intent.slots}
    decks: dict[str, list[Value]] = {name: [] for name in pools}
    phrasings: list[str] = []
    out: list[Question] = []
    while len(out) < count:
        if not phrasings:
            phrasings = list(intent.phrasings.of(sampler.split))
            rng.shuffle(phrasings)
        phrasing = phrasings.pop()
        for _ in range(_TRIES):
            values = {name: _deal(decks[name], pool, rng) for name, pool in pools.items()}
            made_up = False
            if intent.kind != "none_found" and rng.random() < sampler.invented:
                drawn, values = values, {n: _invent(sampler, intent, n, value, rng) for n, value in values.items()}
                made_up = values != drawn
            shown = {name: format_value(value) for name, value in values.items()}
            text = fill(phrasing, shown, where=f"intent '{intent.name}'")
            if text in texts:
                continue
            literals = {name: sql_literal(value) for name, value in values.items()}
            sql = fill(intent.sql, literals, where=f"intent '{intent.name}'")
            columns, rows = sampler.rows(sql, f"intent '{intent.name}'")
            reply: str | None
            if made_up:
                reply = "" if rows else fill(intent.answer_none, shown, where=f"intent '{intent.name}'")
            else:
                reply = _reply(intent, shown, columns, rows, max_rows)
            if reply is not None:
                texts.add(text)
                out.append(_question(sampler.split, intent, len(out), text, sql, rows, reply))
                break
        else:
            return out
    return out


def _deal(deck: list[Value], pool: Sequence[Value], rng: random.Random) -> Value:
    """The next value; every value comes once before any comes again."""
    if not deck:
        deck.extend(pool)
        rng.shuffle(deck)
    return deck.pop()


def _invent(sampler: _Sampler, intent: Intent, name: str, value: Value, rng: random.Random) -> Value:
    """A text like the pool's texts that no pool has: as many words as `value`, each from another value or of two.

    Numbers, and slots whose values are the same in all splits, stay as they are.
    """
    if not isinstance(value, str) or not intent.slots[name].split:
        return value
    places = [text.split() for text in map(str, sampler.pool(intent, name))]
    for _ in range(_TRIES):
        words = []
        for place, own in enumerate(value.split()):
            others = [text[place] for text in places if len(text) > place]
            word = rng.choice(others)
            if rng.random() < _SPLICED or len(others) < _FEW:
                other = rng.choice(others)
                word = word[: rng.randint(2, max(2, len(word) - 1))] + other[rng.randint(1, max(1, len(other) - 2)) :]
            words.append(word if own[:1].isupper() else word.lower())
        made = " ".join(words)
        if made.lower() not in sampler.known:
            return made
    return value


def _reply(
    intent: Intent, shown: Mapping[str, str], columns: Sequence[str], rows: Sequence[Sequence[Any]], max_rows: int
) -> str | None:
    """The answer for these rows, or None when the question is not one to ask (no rows, too many, a NULL to be said)."""
    where = f"intent '{intent.name}'"
    if intent.kind == "none_found":
        if rows:
            raise InputError(f"{where}: kind none_found, but the database has {list(rows[0])} for {dict(shown)}")
        return fill(intent.answer_none, shown, where=where)
    if not 1 <= len(rows) <= max_rows:
        return None
    template = intent.answer_many if len(rows) > 1 and intent.answer_many else intent.answer
    said = set(placeholders(template))
    first = dict(zip(columns, rows[0], strict=True))
    spoken = [first[name] for name in said & set(first)] + [v for row in rows for v in row if "rows" in said]
    if any(value is None for value in spoken) or all(value is None for row in rows for value in row):
        return None
    listed = ", ".join(_row_text(row) for row in rows)
    values = {name: format_value(value) for name, value in first.items()} | dict(shown) | {"rows": listed}
    return fill(template, values, where=where)


def _row_text(row: Sequence[Any]) -> str:
    """`a` or `a (b, c)`."""
    first, *rest = (format_value(value) for value in row)
    return f"{first} ({', '.join(rest)})" if rest else first


def _question(
    split: Split, intent: Intent, index: int, text: str, sql: str | None, rows: list[list[Any]] | None, reply: str
) -> Question:
    identity = f"{split}-{intent.name}-{index:03d}"
    fact = "\n".join(sentences(reply)) if intent.kind == "page" else ""
    return Question(identity, text, intent.name, intent.kind, split, sql, intent.page, rows, reply, fact)


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """One JSON object a line, whole or absent."""
    with atomic_file(path) as handle:
        for question in questions:
            handle.write(json.dumps(asdict(question), ensure_ascii=False) + "\n")


def read_questions(path: Path) -> list[Question]:
    """The inverse of `write_questions`. InputError names the line that cannot be read."""
    out = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line:
            try:
                out.append(Question(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}, line {number}: not a question ({error})") from None
    return out
