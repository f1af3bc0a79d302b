"""Questions with gold SQL from nothing but a database: drawn by shares, split by entity, phrasing and composition.

Entities (names and keys of rows, values of columns with many) are divided by hash as in `questions`; a split uses its
own sentences only; a part of the compositions is never trained on. Every gold query has been run, and answers whose
order depends on equal values are not asked for. Pages, small talk and questions that need both are added beside.
"""

from __future__ import annotations

import math
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import Field

from riverrun.base.config import Config
from riverrun.base.errors import InputError
from riverrun.base.sql import VALUE_BYTES, quote_literal
from riverrun.data.composition import Composition, Slot
from riverrun.data.intents import SPLITS, Split
from riverrun.data.paraphrase import ParaphraseConfig
from riverrun.data.phrasing import Speech
from riverrun.data.questions import Question, format_value, split_of
from riverrun.data.schema import Schema, make_joiner, read_only
from riverrun.data.shapes import compositions
from riverrun.wire.joins import Joiner

__all__ = ["SynthesisConfig", "Synthesised", "synthesise", "talk_questions"]

SHARES: Mapping[str, float] = {
    "lookup": 17.0,
    "join": 14.0,
    "join2": 7.0,
    "filter": 9.0,
    "list": 2.5,
    "range": 5.0,
    "date": 5.0,
    "count": 16.0,
    "aggregate": 10.0,
    "top": 10.0,
    "distinct": 4.0,
    "group": 10.0,
    "negation": 5.0,
    "none_found": 4.0,
    "ambiguous": 2.0,
}
"""How often each kind is asked, in parts; a kind that a database has nothing for leaves its part to the others."""
TRIES = 60
LIMITS: Mapping[str, Sequence[int]] = {"train": (3, 5, 10), "dev": (2, 4, 5), "sealed": (3, 4, 5)}
QUERY_SECONDS = 2.0
ENTITY_CHARACTERS = 60
_ENDLESS = (math.inf, -math.inf)
"""The query tool shows them as NULL."""
VALUES = ("column", "column_year", "parent_column", "each_year", "each_month")
"""Sets whose groups are values, not rows with names."""
LISTED = 10
"""Rows that an answer names."""


class SynthesisConfig(Config):
    """Questions made from the database itself."""

    train: int = Field(default=1500, ge=1)
    """Training questions, the pages and small talk included."""
    dev: int = Field(default=100, ge=0)
    """Development questions."""
    sealed: int = Field(default=240, ge=0)
    """Sealed test questions."""
    held_out: float = Field(default=0.08, ge=0, le=0.5)
    """Share of the compositions (what is asked of which columns) that is never trained on, only tested."""
    pages: float = Field(default=0.12, ge=0, le=0.8)
    """Share of the questions that need a page, when there are documents."""
    both: float = Field(default=0.02, ge=0, le=0.3)
    """Share that needs the database and a page, when there are documents."""
    talk: float = Field(default=0.04, ge=0, le=0.5)
    """Share that needs neither: greetings, thanks, what lies outside."""
    invented: float = Field(default=0.2, ge=0, le=1)
    """Share of the training questions about a named thing that name one which does not exist: they teach to copy."""
    paraphrase: ParaphraseConfig | None = None
    max_rows: int = Field(default=20, ge=1)
    """A test question with more rows than this is not asked; at most database.row_limit."""

    def count(self, split: str) -> int:
        return {"train": self.train, "dev": self.dev, "sealed": self.sealed}[split]


@dataclass
class Synthesised:
    """Questions by split, the compositions kept from training, and what could not be asked, with the reason.

    `more` holds further training questions by the name of their draw.
    """

    questions: dict[str, list[Question]]
    held_out: frozenset[str] = frozenset()
    left_out: list[str] = field(default_factory=list)
    more: dict[str, list[Question]] = field(default_factory=dict)

    def by_kind(self, split: str) -> dict[str, int]:
        return dict(sorted(Counter(question.kind for question in self.questions[split]).items()))


def synthesise(
    database: Path,
    schema: Schema,
    config: SynthesisConfig,
    *,
    language: str,
    seed: int,
    row_limit: int = 20,
    joins: bool = True,
    more: Mapping[str, Mapping[str, int]] = {},
) -> Synthesised:
    """Database questions for all splits. InputError when the schema offers nothing to ask.

    `row_limit` is the query tool's: a training question with more rows keeps as many as the tool will show. `joins`:
    whether the SQL holds the joins; without, it is what a tool that completes them is given. `more` names draws of
    further training questions, each with a number by kind. They come after all splits, so entities are divided as
    without them and no text comes again.
    """
    items = compositions(_without_marks(schema))
    if not items:
        raise InputError(f"{database} offers nothing to ask: no table with columns is shown")
    held = _held_out(items, config.held_out)
    out = Synthesised({split: [] for split in SPLITS}, held)
    with read_only(database) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES)  # as the query tool does
        speech, joiner = Speech(language, schema), make_joiner(schema)
        drawer = _Drawer(connection, speech, joiner, joins, config.max_rows, row_limit, seed, config.invented)
        for split in SPLITS:
            count = config.count(split)
            wanted = [item for item in items if split != "train" or item.name not in held]
            if split != "train":
                trained = {question.intent.partition("/")[2] or question.intent for question in out.questions["train"]}
                wanted = [item for item in wanted if item.name in held or item.name in trained] or wanted
            out.questions[split] = _of_split(drawer, wanted, split, count)
        groups = _by_kind([item for item in items if item.name not in held])
        for name, counts in more.items():
            drawn = [drawer.draw(groups.get(kind, ()), kind, "train", counts[kind], name) for kind in sorted(counts)]
            out.more[name] = [question for questions in drawn for question in questions]
    there = {question.kind for questions in out.questions.values() for question in questions}
    out.left_out = [
        f"no question of kind {kind}: the database has nothing for it" for kind in SHARES if kind not in there
    ]
    if not out.questions["train"]:
        raise InputError(f"{database} gave no question: its tables hold too few rows that can be named or counted")
    return out


def _without_marks(schema: Schema) -> Schema:
    """The schema without names that hold braces: they would be read as the marks of a sentence."""
    plain = {t.name: [c.name for c in t.columns if not {*c.name} & {*"{}"}] for t in schema.tables}
    wanted = {table: columns for table, columns in plain.items() if columns and not {*table} & {*"{}"}}
    return schema.narrowed(wanted) if wanted else Schema(())


def _held_out(items: Sequence[Composition], share: float) -> frozenset[str]:
    """Compositions kept for the tests, by hash; only of shapes that are trained on in at least three other places."""
    shapes = Counter((item.op, item.form) for item in items)
    chosen = []
    for item in items:
        part = int.from_bytes(sha256(item.name.encode("utf-8", "surrogatepass")).digest()[:4], "big") / 2**32
        if part < share and shapes[item.op, item.form] > 3:
            shapes[item.op, item.form] -= 1
            chosen.append(item.name)
    return frozenset(chosen)


def _of_split(drawer: _Drawer, items: Sequence[Composition], split: Split, count: int) -> list[Question]:
    """`count` questions spread over kinds by SHARES; what a kind cannot give is asked of the others."""
    groups = _by_kind(items)
    total = sum(SHARES[kind] for kind in groups)
    out: list[Question] = []
    quotas = {kind: count * SHARES[kind] / total for kind in groups}
    for kind in sorted(groups, key=lambda kind: (len(groups[kind]), kind)):
        wanted = round(quotas[kind])
        got = drawer.draw(groups[kind], kind, split, wanted)
        out += got
        if missing := wanted - len(got):
            later = [other for other in quotas if other not in {question.kind for question in out} and other != kind]
            for other in later:
                quotas[other] += missing / len(later)
    order = random.Random(f"{drawer.seed}/{split}/order")
    order.shuffle(out)
    return [
        Question(f"{split}-{number:04d}", q.text, q.intent, q.kind, q.split, q.sql, q.page, q.rows, q.reply)
        for number, q in enumerate(out[:count])
    ]


def _by_kind(items: Sequence[Composition]) -> dict[str, list[Composition]]:
    groups: dict[str, list[Composition]] = {}
    for item in items:
        groups.setdefault(item.kind, []).append(item)
    named = [item for item in items if _names_one(item)]
    if named:
        groups["none_found"] = named
    return groups


def _names_one(item: Composition) -> bool:
    """Whether a composition is about one row that has a name, and could be asked about a row that is not there."""
    named = len(item.slots) == 1 and item.slots[0].form == "entity" and not item.slots[0].show
    return named and item.op in ("lookup", "parent", "list")


@dataclass
class _Drawer:
    """Draws values, runs the queries, words the questions. Keeps the pools of values of each query."""

    connection: sqlite3.Connection
    speech: Speech
    joiner: Joiner
    joins: bool
    max_rows: int
    row_limit: int
    seed: int
    invented: float = 0.0
    pools: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    splits: dict[str, dict[str, list[tuple[Any, ...]]]] = field(default_factory=dict)
    assigned: dict[str, Split] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)

    def rows(self, sql: str) -> list[tuple[Any, ...]] | None:
        """At most one row more than a question may have; None when the query fails or takes too long."""
        deadline = time.monotonic() + QUERY_SECONDS
        self.connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
        try:
            return self.connection.execute(self.joiner.complete(sql)).fetchmany(max(self.max_rows, self.row_limit) + 1)
        except (sqlite3.Error, OverflowError):
            return None
        finally:
            self.connection.set_progress_handler(None, 0)

    def draw(self, items: Sequence[Composition], kind: str, split: Split, count: int, name: str = "") -> list[Question]:
        """Up to `count` questions, the compositions taken by their weights; one that yields nothing gives way."""
        rng = random.Random("/".join(filter(None, (str(self.seed), split, kind, name))))
        order = sorted(items, key=lambda item: item.name)
        rng.shuffle(order)
        alive = {item.name: item for item in order}
        out: list[Question] = []
        while alive and len(out) < count:
            for name in _spread([(item.name, item.weight) for item in alive.values()], count - len(out), rng):
                if name not in alive:
                    continue
                question = self.question(alive[name], kind, split, rng)
                if question is None:
                    del alive[name]
                else:
                    out.append(question)
        return out

    def question(self, item: Composition, kind: str, split: Split, rng: random.Random) -> Question | None:
        """One new question of the composition, or None when there is none to be found."""
        for _ in range(TRIES if item.slots else 8):
            made_up = split == "train" and kind not in ("none_found", "ambiguous") and rng.random() < self.invented
            made_up = made_up and any(slot.form == "entity" for slot in item.slots)
            drawn = self._values(item, "none_found" if made_up else kind, split, rng)
            if drawn is None:
                return None
            shown, parts = drawn
            sql = re.sub(r"\{(\w+)\}", lambda match, parts=parts: parts[match.group(1)], item.sql)  # type: ignore[misc]
            rows = self.rows(sql)
            if rows is None:
                return None
            if not made_up and not self._good(item, kind, split, rows, parts):
                continue
            text = self.speech.question(item, split, shown, rng)
            if text.casefold() in self.texts:
                continue
            self.texts.add(text.casefold())
            # without a reply the conversation ends with the call: there is nothing true to say
            reply = "" if made_up else self._reply(item, kind, rows, shown, rng)
            name = f"none/{item.name}" if kind == "none_found" else item.name
            kept = [list(row) for row in rows[: self.row_limit]]
            whole = self.joiner.complete(sql) if self.joins else sql
            return Question("", text, name, kind, split, whole, None, kept, reply)
        return None

    def _good(
        self, item: Composition, kind: str, split: Split, rows: Sequence[Sequence[Any]], parts: Mapping[str, str]
    ) -> bool:
        """Whether the rows make an answer: enough, in a test not too many, something in them, no tie at the end."""
        if kind == "none_found":
            return not rows
        if not rows or (split != "train" and len(rows) > self.max_rows):
            return False
        if any(all(value is None for value in row) for row in rows):
            return False
        if any(isinstance(value, bytes) or value in _ENDLESS for row in rows for value in row):
            return False
        if item.op == "count" and rows[0][0] == 0 and item.form != "all" and item.table.rows:
            return False
        if item.op == "ambiguous":
            return len(rows) > 1
        if item.tie:
            keys = self.rows(re.sub(r"\{(\w+)\}", lambda match: parts[match.group(1)], item.tie))
            return keys is not None and (len(keys) <= len(rows) or keys[-1] != keys[-2])
        return True

    # Values.

    def _values(
        self, item: Composition, kind: str, split: Split, rng: random.Random
    ) -> tuple[dict[str, str], dict[str, str]] | None:
        """What is shown and what stands in the SQL, by mark; None when a slot has no value for this split."""
        rows: dict[str, Sequence[Any]] = {}
        for slot in item.slots:
            pool = [(number,) for number in LIMITS[split]] if slot.form == "limit" else self._pool(slot, split)
            if slot.name == "w":  # the upper end of a range
                pool = [row for row in pool if row[0] > rows["v"][0]]
            elif slot.name == "v" and any(other.name == "w" for other in item.slots):
                pool = pool[:-1]
            elif slot.name == "u":  # the other of two values
                pool = [row for row in pool if row != rows["v"]]
            if not pool:
                return None
            made_up = kind == "none_found" and slot.form == "entity"
            rows[slot.name] = self._unheard(slot, pool, rng) if made_up else rng.choice(pool)
        said = {slot.name: self._said(slot, rows[slot.name], rng) for slot in item.slots}
        return {name: shown for name, (shown, _) in said.items()}, {name: sql for name, (_, sql) in said.items()}

    def _unheard(self, slot: Slot, pool: Sequence[tuple[Any, ...]], rng: random.Random) -> tuple[Any, ...]:
        """A made-up name that no split has; where none can be made, one of the pool."""
        known = {_text(row).casefold() for row in self.pools[self._key(slot)]}
        made = (_made_up(pool, rng) for _ in range(TRIES))
        return next((row for row in made if _text(row).casefold() not in known), pool[0])

    def _key(self, slot: Slot) -> str:
        return f"{slot.form}/{slot.factor}/{slot.split}/{slot.query}"

    def _said(self, slot: Slot, row: Sequence[Any], rng: random.Random) -> tuple[str, str]:
        """A value as the question shows it and as the SQL holds it."""
        if slot.form == "entity":
            conditions = (f"{name} = {quote_literal(v)}" for name, v in zip(slot.columns, row, strict=True))
            return self.speech.entity(slot, row, rng), " AND ".join(conditions)
        value = row[0]
        if slot.form == "number":
            return self.speech.value(slot, value, rng), quote_literal(value * slot.factor)
        if slot.form in ("prefix", "name"):
            return self.speech.value(slot, value.strip(), rng), quote_literal(f"{value}%")
        if slot.form == "part":
            return str(value), quote_literal(f"%{value}%")
        return self.speech.value(slot, value, rng), quote_literal(value)

    def _pool(self, slot: Slot, split: Split) -> list[tuple[Any, ...]]:
        """The values a split may use."""
        key = self._key(slot)
        if key not in self.pools:
            found = self.rows_of(slot.query)
            if slot.form == "number":
                found = _thresholds([row[0] for row in found], slot.factor)
            elif slot.form == "part":
                found = _common_words([str(row[0]) for row in found])
            self.pools[key] = [row for row in found if all(_sayable(value) for value in row)]
            texts = {_text(row): row for row in self.pools[key]}
            parts = self._divide(sorted(texts)) if slot.split else {}
            self.splits[key] = {
                name: [row for text, row in texts.items() if parts.get(text) == name] for name in SPLITS
            }
        return self.splits[key][split] if slot.split else self.pools[key]

    def _divide(self, texts: Sequence[str]) -> dict[str, Split]:
        """A split for each text, the same in every pool; in pools that lack a split, texts new to us are moved."""
        fresh = [text for text in texts if text not in self.assigned]
        self.assigned |= {text: split_of(text) for text in fresh}
        for wanted in SPLITS:
            there = Counter(self.assigned[text] for text in texts)
            movable = [text for text in fresh if there[self.assigned[text]] > 1]
            if not there[wanted] and movable:
                self.assigned[movable[-1]] = wanted
        return {text: self.assigned[text] for text in texts}

    def rows_of(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a query for values."""
        with suppress(sqlite3.Error):
            return self.connection.execute(self.joiner.complete(sql)).fetchall()
        return []

    # Answers.

    def _reply(
        self, item: Composition, kind: str, rows: Sequence[Sequence[Any]], shown: Mapping[str, str], rng: random.Random
    ) -> str:
        marks = self.speech.marks(item, shown, rng)
        marks["set"] = self.speech.set_phrase(item, "train", marks, rng)
        owner = (
            item.parent
            if item.parent is not None and item.op.startswith(("parent", "most", "each", "over"))
            else item.table
        )
        says_names = item.op.startswith(("list", "top", "low", "parent", "most", "each", "over", "ambiguous"))
        whole = item.op != "parent_fact" and item.form not in VALUES
        is_pair = says_names and whole and len(owner.label) == 2
        named = [[" ".join(map(str, row[:2])), *row[2:]] if is_pair else row for row in rows[:LISTED]]
        listed = ", ".join(map(_row_text, named))
        if len(rows) > LISTED:
            listed = str(self.speech.words["replies"]["more"]).replace("{rows}", listed)
        marks["rows"] = listed
        names = {"lookup": "value", "lookup_two": "two", "parent": "parent", "count": "count", "ambiguous": "ambiguous"}
        names |= dict.fromkeys(("sum", "avg", "max", "min"), "aggregate")
        names |= {"parent_fact": "value", "latest": "aggregate", "earliest": "aggregate"}
        name = "none" if kind == "none_found" else names.get(item.op, "top" if item.tie else "list")
        return self.speech.reply(name, marks)


def _spread(weights: Sequence[tuple[str, float]], count: int, rng: random.Random) -> list[str]:
    """`count` names at even distances along their weights: each comes as often as its weight says, give or take one."""
    total = sum(weight for _, weight in weights)
    if total <= 0 or count < 1:
        return []
    step, at, out = total / count, rng.random() * total / count, []
    reached = 0.0
    for name, weight in weights:
        reached += weight
        while at < reached:
            out.append(name)
            at += step
    return out


def _text(row: Sequence[Any]) -> str:
    return " ".join(str(value) for value in row)


def _row_text(row: Sequence[Any]) -> str:
    """`a` or `a (b, c)`."""
    first, *rest = (format_value(value) for value in row if value is not None)
    return f"{first} ({', '.join(rest)})" if rest else first


def _sayable(value: Any) -> bool:
    """Whether a value can stand in a question as it is."""
    if isinstance(value, str):
        tidy = value.strip() in (value, value[:-1]) and not re.search(r"[\n\r\t\0{}]|[\ud800-\udfff]|\ufffd", value)
        return 0 < len(value) <= ENTITY_CHARACTERS and tidy
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thresholds(values: Sequence[Any], factor: int) -> list[tuple[Any, ...]]:
    """Round numbers between the tenth and the ninetieth part of the values, in units of `factor`."""
    numbers = sorted(value / factor for value in values if isinstance(value, int | float) and math.isfinite(value))
    if len(numbers) < 2 or numbers[0] == numbers[-1]:
        return []
    whole = all(value == int(value) for value in numbers) or factor > 1
    found: dict[str, float] = {}
    for step in range(1, 30):
        value = numbers[min(len(numbers) - 1, int(len(numbers) * step / 30))]
        for digits in (1, 2):
            rounded = float(f"{value:.{digits}g}")
            if whole:
                rounded = float(int(rounded))
            if numbers[0] <= rounded < numbers[-1] and abs(rounded) < 1e12:
                found[str(rounded)] = rounded
    if not found and whole:
        found = {str(value): value for value in numbers[:-1]}
    return [(int(value) if value == int(value) else value,) for value in sorted(found.values())]


def _common_words(texts: Sequence[str]) -> list[tuple[Any, ...]]:
    """Words that a few of the texts share: not all, not one alone."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(set(re.findall(r"[^\W\d_]{4,}|[\u3400-\u9fff]{2}", text)))
    least = 2 if len(texts) > 20 else 1
    return [(word,) for word, number in sorted(counts.items()) if least <= number <= max(2, len(texts) // 4)]


def _made_up(pool: Sequence[tuple[Any, ...]], rng: random.Random) -> tuple[Any, ...]:
    """A name that sounds like the others: the beginning of one and the end of another; of numbers, one like them."""
    first, second = rng.choice(pool), rng.choice(pool)
    if len(first) == 1 and isinstance(first[0], int):
        return (rng.randint(1, 2 * abs(first[0]) + 10),)
    if len(first) > 1:
        return (first[0], *second[1:])
    one, other = str(first[0]).split(), str(second[0]).split()
    if len(one) == len(other) == 1:
        half, rest = str(first[0]), str(second[0])
        return (half[: max(1, len(half) // 2)] + rest[len(rest) // 2 :],)
    return (" ".join([*one[: max(1, len(one) // 2)], *other[len(other) // 2 :]]),)


def talk_questions(language: str, split: Split, count: int, *, name: str, topics: str, seed: int) -> list[Question]:
    """Greetings, thanks and what lies outside, each sentence once; fewer when there are no more of them."""
    from riverrun.data.phrasing import wording

    rng = random.Random(f"{seed}/{split}/talk")
    found: list[Question] = []
    for number, group in enumerate(wording(language)["chat"]):
        for text in group[split]:
            reply = str(rng.choice(group["answers"])).replace("{name}", name).replace("{topics}", topics)
            found.append(Question("", text, f"talk.{number}", "chat", split, None, None, None, reply))
    rng.shuffle(found)
    return [
        Question(f"{split}-talk-{index:03d}", q.text, q.intent, q.kind, split, None, None, None, q.reply)
        for index, q in enumerate(found[:count])
    ]
