"""How a composition is asked: sentences from wording/LANGUAGE.yaml filled with nouns made from the schema's own names.

A sentence is an operation around a set of rows; both have lists to learn from (train), to choose with (dev) and to
measure with (sealed), and a question uses those of its own split alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from riverrun.base.config import load_yaml
from riverrun.data.composition import Composition, Slot, unit_of
from riverrun.data.names import (
    concept_of,
    is_person_table,
    is_table_of,
    plural,
    say_column,
    say_table,
    singular,
    split_name,
    without_identifier,
)
from riverrun.data.schema import Column, Schema, Table

__all__ = ["LANGUAGES", "Speech", "wording"]

LANGUAGES = ("en", "zh")
_FOLDER = Path(__file__).parent / "wording"
_MARK = re.compile(r"\{(\w+)\}")
_AGGREGATES = ("sum", "avg", "max", "min")
CONCEPT_SHARE = 0.5
"""How often a sentence made for what a column is about is taken before a general one."""
SYNONYM_SHARE = 0.2
DATED = ("year", "month", "day", "after", "before", "parent_year", "parent_month")
"""Sets of rows by a date."""
ROUGH_SHARE = 0.3
"""How often a question is typed as people type: no capital, no mark at the end."""
OPENING_SHARE = 0.06


@cache
def wording(language: str) -> Mapping[str, Any]:
    """The sentences of a language."""
    return load_yaml(_FOLDER / f"{language}.yaml")


@dataclass
class Speech:
    """The sentences of one language over the names of one schema."""

    language: str
    schema: Schema

    @cached_property
    def words(self) -> Mapping[str, Any]:
        return wording(self.language)

    @cached_property
    def prefix(self) -> str:
        """The first word of all tables' names, where they share one (`shop_orders`, `shop_items`)."""
        firsts = {split_name(table.name)[:1] for table in self.schema.tables if len(split_name(table.name)) > 1}
        whole = len(self.schema.tables) >= 3 and all(len(split_name(t.name)) > 1 for t in self.schema.tables)
        return next(iter(firsts))[0] if whole and len(firsts) == 1 else ""

    # Nouns.

    def table(self, table: Table, rng: random.Random | None = None) -> str:
        """A table's noun, now and then another word for it."""
        noun = say_table(table.name, self.language, self.prefix)
        noun = str(self.words["rows"].get(noun, noun))
        others = self.words["tables"].get(noun)
        return str(rng.choice(others)) if others and rng and rng.random() < SYNONYM_SHARE else noun

    def column(self, column: Column, table: Table, rng: random.Random | None = None) -> str:
        """A column's noun."""
        noun = self._noun(column, table)
        if column.kind == "flag":
            words = [word for word in noun.split() if word not in ("is", "has", "flag")]
            return " ".join(words).removeprefix("是否") or noun
        if self.language == "en" and column.kind == "date" and noun.endswith((" on", " at")):
            noun = str(self.words["days"].get(noun[:-3], f"{noun[:-3]} date"))
        others = self.words["nouns"].get(self.about(column, table))
        share = 0.8 if noun in ("milliseconds", "seconds", "bytes") else 1.5 * SYNONYM_SHARE
        return str(rng.choice(others)) if others and rng and rng.random() < share else noun

    def _noun(self, column: Column, table: Table) -> str:
        """What the author calls it, in the language of the questions; else what its name says."""
        chinese = bool(re.search("[\u3400-\u9fff]", column.spoken))
        if column.spoken and chinese == (self.language == "zh"):
            return column.spoken if chinese else column.spoken.lower()
        return say_column(column.name, table.name, self.language)

    def about(self, column: Column, table: Table) -> str:
        """What a column is about; "" where the table has another before it that is about the same (price, cost)."""
        concept = concept_of(column.name)
        first = next((other for other in table.columns if concept_of(other.name) == concept), column)
        return concept if first.name == column.name else ""

    def done(self, column: Column, table: Table) -> str:
        """What happened on a day: `paid_on` -> paid, `入职日期` -> 入职; "" where the name does not say it."""
        words = split_name(column.name)
        if self.language == "en":
            known = self.words["participles"]
            if (
                words
                and words[0] in known
                and (len(words) == 1 or set(words[1:]) <= {"on", "at", "date", "time", "day"})
            ):
                return words[0]
            return str(self.words["happenings"].get(" ".join(words), ""))
        noun = self._noun(column, table)
        verb = re.sub("(日期|时间|日)$", "", noun)
        known = verb != noun and re.fullmatch("[\u4e00-\u9fff]{2,4}", verb) and verb not in self.words["participles"]
        return verb if known else ""

    def role(self, name: str) -> str:
        """A link's noun: `SupportRepId` -> support representative."""
        words = without_identifier(split_name(name))
        if others := self.words["nouns"].get(concept_of(name) if concept_of(name) == "manager" else ""):
            return str(others[0])
        return say_column(" ".join(words), "", self.language)

    def many(self, noun: str) -> str:
        return plural(noun) if self.language == "en" else noun

    def article(self, noun: str) -> str:
        if self.language != "en" or plural(noun) == noun:
            return noun
        vowel = noun[:1].lower() in "aeiou" and not noun.lower().startswith(("uni", "use", "eu", "one", "once"))
        spelled = re.match(r"[A-Z]{2,}\b", noun)
        vowel = noun[0] in "AEFHILMNORSX" if spelled else vowel or noun.startswith(("hour", "honor", "honour"))
        return f"an {noun}" if vowel else f"a {noun}"

    # Values.

    def entity(self, slot: Slot, row: Sequence[Any], rng: random.Random) -> str:
        """A row's name as it is said: first and last name, a label, or `invoice 123`."""
        if slot.show.startswith("of "):
            table = self.schema.by_name[slot.show[3:]]
            form = str(rng.choice(self.words["keyed"]))
            return form.replace("{t}", self.table(table)).replace("{id}", str(row[0]))
        texts = [str(value) for value in row]
        han = all(re.fullmatch(r"[\u3400-\u9fff]+", text) for text in texts)
        return "".join(reversed(texts)) if han and len(texts) == 2 else " ".join(texts)

    def value(self, slot: Slot, value: Any, rng: random.Random) -> str:
        """A value as it is said: months by name, thresholds with their unit, codes by their meaning."""
        if meaning := dict(slot.codes).get(value):
            return str(meaning)
        if slot.show in ("day", "month"):
            year, month, *day = (int(part) for part in str(value).split("-"))
            form = str(rng.choice(self.words[slot.show]))
            return form.format(year=year, month=month, day=(day or [1])[0], name=self.words["months"][month - 1])
        if slot.show in self.words["units"]:
            return str(self.words["units"][slot.show]).replace("{v}", f"{value:g}")
        return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)

    # Sentences.

    def marks(self, item: Composition, shown: Mapping[str, str], rng: random.Random) -> dict[str, str]:
        """Every mark of the sentences that has a value here."""
        noun = self.table(item.table, rng)
        out = {"t": noun, "ts": self.many(noun), "at": self.article(noun), **shown}
        if item.op == "ambiguous":
            out["e"] = shown["v"]
        out["who"] = str(self.words["who"][0 if is_person_table(item.table.name) else 1]).replace("{t}", noun)
        parent = item.parent
        out |= self._person_marks(item, out)
        about = item.column or item.by
        if item.form in ("each_year", "each_month"):
            out["p"] = str(self.words["periods"][item.form])
        elif item.form in ("column", "column_year") and item.by is not None:
            out["p"] = self.column(item.by, item.table, rng)
            about = item.column
        elif item.form == "parent_column" and item.by is not None and parent is not None:
            out["p"] = self.joined(self.table(parent), self.column(item.by, parent, rng))
            about = item.column
        elif parent is not None:
            known = self.table(parent, rng)
            out["p"] = self.role(item.role) if item.role and (item.form == "own" or rng.random() < 0.6) else known
        if "p" in out:
            out |= {"ps": self.many(out["p"]), "at_p": self.article(out["p"])}
            person = parent is not None and item.form in ("parent", "grand", "own") and is_person_table(parent.name)
            out["who_p"] = str(self.words["who"][0 if person else 1]).replace("{t}", out["p"])
            if person:
                out["whom"] = out["who_p"]
            if person and parent is not None and is_table_of(parent.name, "buyers"):
                out["who_buys"] = out["who_p"]
        if item.child is not None:
            child = self.table(item.child, rng)
            out |= {"k": child, "ks": self.many(child), "at_k": self.article(child)}
        if about is not None:
            owner = parent if parent is not None and item.op == "parent_fact" else item.table
            out |= self._column_marks("c", about, owner, rng)
            if said := self.done(about, owner):
                out["done"] = said
        if item.other is not None:
            out |= self._column_marks("c2", item.other, item.table, rng)
        if item.form == "column_year":
            out["ts"] = _MARK.sub(lambda match: out[match.group(1)], str(self.words["in_time"]))
        return out | self._levels(item, rng)

    def _person_marks(self, item: Composition, out: Mapping[str, str]) -> dict[str, str]:
        """Marks for sentences that fit people alone, and those that buy."""
        marks: dict[str, str] = {}
        if is_person_table(item.table.name):
            marks |= {"person": out["t"], "people": out["ts"], "who_all": out["who"]}
        named = item.table if item.op.startswith(("lookup", "parent", "ambiguous")) else item.parent
        if "e" in out and named is not None and is_person_table(named.name):
            marks["he"] = out["e"]
        elif "e" in out and named is not None:
            marks["thing"] = out["e"]
        between = item.child.name if item.form == "junction" and item.child is not None else ""
        if item.form != "junction" or is_table_of(between, "sales"):
            if "he" in marks and named is not None and is_table_of(named.name, "buyers"):
                marks["buyer"] = marks["he"]
            if is_table_of(item.table.name, "buyers"):
                marks["buyers"] = out["ts"]
        return marks

    def joined(self, thing: str, noun: str) -> str:
        """`customer country`."""
        return f"{thing}{noun}" if self.language == "zh" else f"{thing} {noun}"

    def _column_marks(self, name: str, column: Column, table: Table, rng: random.Random) -> dict[str, str]:
        noun = self.column(column, table, rng)
        marks = {name: noun, f"{name}s": self.many(noun), f"a{name}": self.article(noun)}
        counted = self.language == "en" and singular(noun.rpartition(" ")[2]) != noun.rpartition(" ")[2]
        if counted and column.kind == "integer" and not unit_of(column)[0]:
            marks[f"many_{name}"] = noun
        return marks

    def _levels(self, item: Composition, rng: random.Random) -> dict[str, str]:
        """Total, average, highest; superlatives."""
        out: dict[str, str] = {}
        if item.op in ("latest", "earliest"):
            out["g"] = str(self.words["levels"]["dated"][int(item.op == "earliest")][0])
        if item.op in _AGGREGATES:
            out["g"] = str(rng.choice(self.words["aggregates"][item.op]))
        if item.op.startswith(("top", "low")) and item.column is not None:
            low = int(item.op.startswith("low"))
            dated = item.column.kind in ("date", "year")
            out["top"] = str(rng.choice(self.words["levels"]["dated" if dated else "default"][low]))
            if adjectives := self.words["adjectives"].get(self.about(item.column, item.table)):
                out["adj"] = str(rng.choice(adjectives[low]))
        return out

    def plain_date(self, column: Column | None, table: Table) -> bool:
        """Whether rows are spoken of as being "of" this day, without saying what happened: the only kind of date."""
        if column is None or column.kind != "date" or is_person_table(table.name):
            return column is None or column.kind != "date"
        first = next(other for other in (*table.columns, column) if other.kind == "date")
        return first.name == column.name and concept_of(column.name) in ("date", "published")

    def set_phrase(self, item: Composition, split: str, marks: Mapping[str, str], rng: random.Random) -> str:
        """The rows that are spoken of, as a noun phrase."""
        if item.form not in self.words["sets"] or item.op.startswith(("most", "each", "over", "parent", "lookup")):
            return marks["ts"]
        about = self._about(item)
        owner = item.parent if item.form == "parent_equal" and item.parent is not None else item.table
        by = dict(marks)
        if item.by is not None:
            by.pop("done", None)
            by |= self._column_marks("c", item.by, owner, rng)
            by |= {"done": said} if (said := self.done(item.by, owner)) else {}
        special = self.words["concepts"].get(about, {}).get(item.form, {}).get(split, ())
        general = self.words["sets"][item.form][split]
        date = item.by if item.form in DATED else None
        if not self.plain_date(date, item.table):
            general = _saying_what(general, by)
        return self._pick(special, general, by, rng, 0.85 if item.form in ("open", "happened") else CONCEPT_SHARE)

    def _about(self, item: Composition) -> str:
        if item.form == "own":
            return concept_of(item.role)
        owner = (
            item.parent if item.form in ("parent_equal", "parent_column") and item.parent is not None else item.table
        )
        return self.about(item.by, owner) if item.by is not None else ""

    def question(self, item: Composition, split: str, shown: Mapping[str, str], rng: random.Random) -> str:
        """One way to ask for the composition with these values."""
        marks = self.marks(item, shown, rng)
        marks["set"] = self.set_phrase(item, split, marks, rng)
        if item.op in _AGGREGATES and item.form == "all" and rng.random() < 0.5:
            marks["set"] = _MARK.sub(lambda match: marks[match.group(1)], str(self.words["everything"]))
        special, general = self._sentences(item, split)
        if item.op in ("latest", "earliest") and not self.plain_date(item.column, item.table):
            general = _saying_what(general, marks)
        if item.op in ("list", "count") and item.form in ("year", "month", "day"):
            special = special if self.plain_date(item.by, item.table) else _saying_what(special, marks, bare=True)
        text = self._pick(special, general, marks, rng)
        if "e" in marks and marks["set"].startswith(f"{marks['e']}'s "):
            text = text.replace(f"the {marks['set']}", marks["set"])
        return self.typed(text, split, shown, rng)

    def _sentences(self, item: Composition, split: str) -> tuple[Sequence[str], Sequence[str]]:
        """Sentences for what the column is about, and the general ones."""
        op = item.op
        key = "aggregate" if op in _AGGREGATES else "lookup" if op == "ambiguous" else op.replace("low", "top")
        if key == "top" and item.form != "all":
            key = "top_set"
        owner = item.parent if op == "parent_fact" and item.parent is not None else item.table
        about = self._about(item) if item.column is None else self.about(item.column, owner)
        if about in ("date", "price", "quantity") and op in ("lookup", "ambiguous", "parent_fact"):
            about = about if bool(item.table.label) == (about != "date") else ""
        if op == "parent" and item.form == "own":
            about = concept_of(item.role)
        wanted = "lookup" if op == "ambiguous" else op if key != "top_set" else ""
        said = self.words["concepts"].get(about, {})
        special = [*said.get(wanted, {}).get(split, ()), *said.get(f"{op}.{item.form}", {}).get(split, ())]
        if about == "amount" and not _is_income(item.table):
            special = [text for text in special if {"c", "t", "ts", "set"} & set(_MARK.findall(text))]
        on = self.words["asked"].get(f"{op}.{item.form}", {}).get(split, ())
        return special or on, self.words["ops"][key][split]

    def _pick(
        self,
        special: Sequence[str],
        general: Sequence[str],
        marks: Mapping[str, str],
        rng: random.Random,
        share: float = CONCEPT_SHARE,
    ) -> str:
        """A sentence all of whose marks have a value, filled."""
        fitting = [text for text in special if set(_MARK.findall(text)) <= set(marks)]
        if not fitting or rng.random() >= share:
            fitting = [text for text in general if set(_MARK.findall(text)) <= set(marks)] or fitting
        chosen = str(rng.choice(fitting))
        return _MARK.sub(lambda match: marks[match.group(1)], chosen)

    def typed(self, text: str, split: str, shown: Mapping[str, str], rng: random.Random) -> str:
        """Now and then without capital and end mark, or after a greeting; what is named stays as it is."""
        changed = text
        if rng.random() < OPENING_SHARE:
            opening = str(rng.choice(self.words["openings"][split]))
            changed = opening + (text[0].lower() + text[1:] if not text.startswith(("I ", "I'")) else text)
        elif rng.random() < ROUGH_SHARE:
            changed = text[0].lower() + text[1:] if not text.startswith(("I ", "I'")) else text
            changed = re.sub(r"[?.!？。！]+$", "", changed)
        changed = (
            re.sub(r"\b(total|average) \1\b", r"\1", changed).replace("the all ", "all the ").replace("总总", "总")
        )
        return changed if all(value in changed for value in shown.values()) else text

    def reply(self, name: str, marks: Mapping[str, str]) -> str:
        """A stock answer."""
        return _MARK.sub(lambda match: marks.get(match.group(1), ""), str(self.words["replies"][name]))


def _saying_what(sentences: Sequence[str], marks: Mapping[str, str], bare: bool = False) -> Sequence[str]:
    """Those that name the column or what happened, and fit; all of them where none does, unless `bare`."""
    used = {text: set(_MARK.findall(text)) for text in sentences}
    found = [text for text, names in used.items() if {"c", "ac", "done"} & names and names <= set(marks)]
    return found if bare else found or sentences


def _is_income(table: Table) -> bool:
    """Whether a table's amounts are what the business takes: "how much did we make" is asked of no other."""
    return is_table_of(table.name, "sales") and not is_table_of(table.name, "expenses")
