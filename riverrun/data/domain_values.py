"""Names and values of invented databases: one spelling for all tables of a database, values drawn unequally often."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate
from typing import Any

from riverrun.base.config import load_yaml
from riverrun.base.errors import ConfigError
from riverrun.data.domain_format import FOLDER, RANGES, DomainTable, Generator
from riverrun.data.names import lexicon, plural

__all__ = ["NameStyle", "ValueMaker", "uneven"]

HAN = re.compile(r"[\u3400-\u9fff]")


@cache
def _words(language: str) -> Mapping[str, list[str]]:
    known = load_yaml(FOLDER / "words.yaml")
    if language not in known:
        raise ConfigError(f"words.yaml has no names of people and places in '{language}': add them")
    words: Mapping[str, list[str]] = known[language]
    return words


@dataclass
class NameStyle:
    """How one database spells its names, drawn once."""

    rng: random.Random
    short: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = self.rng
        self.table_case, self.column_case = draw.choices(
            [("snake", "snake"), ("pascal", "pascal"), ("camel", "camel"), ("pascal", "camel"), ("pascal", "snake"),
             ("snake", "camel"), ("lower", "lower")],
            [45, 22, 8, 8, 8, 4, 5],
        )[0]  # fmt: skip
        self.plural, self.declared = draw.random() < 0.6, draw.random() < 0.8
        self.prefix = "tbl" if draw.random() < 0.08 else ""
        self.key = draw.choices(["id", "{} id", "{} no"], [40, 50, 10])[0]
        self.types = draw.choice(
            [("INTEGER", "REAL", "TEXT", "TEXT"), ("INT", "DECIMAL(10,2)", "VARCHAR(100)", "DATE")]
        )
        self.order = draw.choice([0, 0, -1, 1])  # links as written, first, last
        if draw.random() < 0.2 and self.column_case != "lower":
            for short, word in lexicon()["abbreviations"].items():
                if draw.random() < 0.5:
                    self.short[str(word)] = str(short)

    def spell(self, phrase: str, case: str) -> str:
        if HAN.search(phrase):
            return re.sub(r"\s+", "", phrase)
        words = re.findall(r"[^\W_]+", phrase.lower())
        if case == "snake":
            return "_".join(words)
        joined = "".join(words) if case == "lower" else "".join(word[:1].upper() + word[1:] for word in words)
        return joined[:1].lower() + joined[1:] if case == "camel" else joined

    def table(self, noun: str) -> str:
        if HAN.search(noun):
            return self.spell(noun, "") + ("表" if self.prefix else "")
        return self.spell(f"{self.prefix} {plural(noun) if self.plural else noun}", self.table_case)

    def columns(self, table: DomainTable) -> dict[str, str]:
        """The name of each column, and of the key under ""; no two are equal but for case."""
        out: dict[str, str] = {}
        ending = "no" if self.key == "{} no" else "id"
        wanted = {} if table.plain else {"": [self.key.format(table.name), "id", f"{table.name} key"]}
        for noun in sorted(table.columns, key=lambda noun: noun not in table.links):
            if noun in table.links:
                wanted[noun] = [self._shortened(f"{noun} {ending}"), f"{noun} id", f"{noun} key"]
            else:
                wanted[noun] = [self._shortened(noun), noun, f"{noun} text"]
        for noun, phrases in wanted.items():
            if HAN.search(table.name) and (noun == "" or noun in table.links):
                phrases = [re.sub(r" ?(id|no)$", "编号", phrase) for phrase in phrases]
            names = [self.spell(phrase, self.column_case) for phrase in phrases]
            out[noun] = next(name for name in names if name.lower() not in {taken.lower() for taken in out.values()})
        return out

    def _shortened(self, phrase: str) -> str:
        whole = self.short.get(phrase)
        return whole or " ".join(self.short.get(word, word) for word in phrase.split(" "))


def uneven(values: Sequence[Any], rng: random.Random, power: float = 0.8) -> tuple[list[Any], list[float]]:
    """The values in a drawn order and their cumulated weights, which fall by rank."""
    order = rng.sample(list(values), len(values))
    return order, list(accumulate(1 / (rank + 1.5) ** power for rank in range(len(order))))


class ValueMaker:
    """Values of one database's columns. Names and address of a row belong to one person."""

    def __init__(self, language: str, rng: random.Random) -> None:
        self.words, self.chinese = _words(language), language == "zh"
        self.places = {
            kind: uneven(rng.sample(self.words[kind], min(len(self.words[kind]), rng.randint(low, high))), rng)
            for kind, low, high in (("city", 8, 24), ("country", 4, 14))
        }

    def column(self, how: Generator, count: int, rng: random.Random, rows: list[dict[str, Any]]) -> list[Any]:
        """`count` values; `rows` holds what earlier columns said of the same row."""
        kind, argument = how.kind, how.argument
        if kind == "unique":
            values = list(argument[:count])
        elif kind == "names":
            first, second = argument
            gap = "" if self.chinese else " "
            drawn = rng.sample(range(len(first) * len(second)), count)
            values = [f"{first[n // len(second)]}{gap}{second[n % len(second)]}" for n in drawn]
        elif kind == "code":
            values = []
            while len(values) < count:
                value = re.sub("#", lambda _: str(rng.randint(0, 9)), argument)
                if value not in values or len(values) >= 10 ** argument.count("#") // 2:
                    values.append(value)
        elif kind == "of" or kind in self.places:
            order, weights = uneven(argument, rng) if kind == "of" else self.places[kind]
            values = rng.choices(order, cum_weights=weights, k=count)
        elif kind == "flag":
            share = rng.uniform(0.2, 0.85)
            values = [int(rng.random() < share) for _ in range(count)]
        elif kind in ("date", "datetime"):
            values = [self._date(kind, argument, rng, row) for row in rows]
        elif kind in RANGES:
            values = self._numbers(kind, argument, count, rng)
        else:
            values = [self._of_person(kind, rng, row) for row in rows]
        return [None if how.nulls and rng.random() < how.nulls else value for value in values]

    def _numbers(self, kind: str, argument: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
        low, high = argument[:2]
        peak = rng.uniform(low, low + (high - low) * 0.6)
        if kind in ("integer", "year"):
            return [min(high, int(rng.triangular(low, high + 1, peak))) for _ in range(count)]
        digits = argument[2] if kind == "number" else rng.choice([2, 2, 2, 0 if high >= 200 else 1])
        return [float(round(rng.triangular(low, high, peak), digits)) for _ in range(count)]

    def _date(self, kind: str, years: Sequence[int], rng: random.Random, row: dict[str, Any]) -> str:
        """A day of these years; a second date of a row comes after the first."""
        mark = f"{kind}/{years}"
        day: datetime
        if mark in row:
            day = row[mark] + timedelta(days=rng.randint(1, 40), minutes=rng.randint(0, 600))
        else:
            span = (datetime(years[1] + 1, 1, 1) - datetime(years[0], 1, 1)).days
            day = datetime(years[0], 1, 1, 7) + timedelta(days=int(span * rng.random() ** 0.8))
            day += timedelta(minutes=rng.randint(0, 840))
        row[mark] = day
        return day.strftime("%Y-%m-%d" if kind == "date" else "%Y-%m-%d %H:%M:%S")

    def _of_person(self, kind: str, rng: random.Random, row: dict[str, Any]) -> str:
        words = self.words
        if kind == "street":
            number, street = rng.randint(1, 180), rng.choice(words["street"])
            return f"{street}{number}号" if self.chinese else f"{number} {street}"
        if kind == "phone":
            return "".join(rng.choice("0123456789") if mark == "#" else mark for mark in rng.choice(words["phone"]))
        if kind == "company":
            return rng.choice(words["company"]) + ("" if self.chinese else " ") + rng.choice(words["company_end"])
        if "person" not in row or kind in row["said"]:  # a second name in a row is somebody else's
            row["person"], row["said"] = (rng.choice(words["first_name"]), rng.choice(words["last_name"])), set()
        row["said"].add(kind)
        first: str
        last: str
        first, last = row["person"]
        if kind == "email":
            local = (
                f"user{rng.randint(1000, 9999)}" if self.chinese else re.sub("[^a-z.]", "", f"{first}.{last}".lower())
            )
            return f"{local}@{rng.choice(words['mail'])}"
        if kind == "full_name":
            return last + first if self.chinese else f"{first} {last}"
        return first if kind == "first_name" else last
