"""Names of tables and columns as words a person would say: split, spelled out, singular and plural, zh and en."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from riverrun.base.config import load_yaml
from riverrun.base.sql import quote_name
from riverrun.base.words import STOP_WORDS

__all__ = [
    "chinese_words",
    "concept_of",
    "is_identifier",
    "is_label_name",
    "is_minor",
    "is_person_table",
    "is_personal",
    "is_secret",
    "is_table_of",
    "lexicon",
    "names_table",
    "other_words",
    "plural",
    "same_thing",
    "say_column",
    "say_table",
    "singular",
    "split_name",
    "without_identifier",
]

_LEXICON = Path(__file__).parent / "lexicons" / "names.yaml"
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_PIECE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W_]+")


@cache
def lexicon() -> Mapping[str, Any]:
    """The word lists of lexicons/names.yaml."""
    return load_yaml(_LEXICON)


@cache
def split_name(name: str) -> tuple[str, ...]:
    """`SupportRepId` -> support, representative, id; `cust_nm` -> customer, name; `订单编号` stays whole."""
    out: list[str] = []
    for piece in _PIECE.findall(name):
        word = piece.lower()
        full = lexicon()["abbreviations"].get(word)
        out.extend((full or word).split())
    if len(out) > 1 and out[-1] == "minimum" and out[-2] in lexicon()["timed"]:
        out[-1] = "minutes"  # `duration_min`, but `min_price`
    return tuple(out)


def singular(word: str) -> str:
    """`cities` -> city, `boxes` -> box; a word that is no plural comes back as it is."""
    if not word.isascii() or len(word) < 3:
        return word
    if word in lexicon()["plurals"]:
        return word
    for one, many in lexicon()["plurals"].items():
        if word == many:
            return str(one)
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is", "ics")):
        return word[:-1]
    return word


def plural(phrase: str) -> str:
    """The plural of a noun phrase's last word; Chinese has none."""
    if not phrase or _HAN.search(phrase[-1]):
        return phrase
    head, _, last = phrase.rpartition(" ")
    known = lexicon()["plurals"]
    if last in known:
        many = str(known[last])
    elif last in known.values():
        many = last
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = last[:-1] + "ies"
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        many = last if last.endswith("s") and singular(last) != last else last + "es"
    elif last[-1].isalpha():
        many = last + "s"
    else:
        many = last
    return f"{head} {many}".strip()


def without_identifier(words: Sequence[str]) -> tuple[str, ...]:
    """`customer id` -> customer; a name that is an identifier and nothing else comes back whole."""
    kept = list(words)
    while len(kept) > 1 and kept[-1] in lexicon()["identifiers"]:
        kept.pop()
    if kept and _HAN.search(kept[-1]):
        for ending in lexicon()["identifiers_zh"]:
            if kept[-1].endswith(ending) and len(kept[-1]) > len(ending):
                kept[-1] = kept[-1].removesuffix(ending)
                break
    return tuple(kept)


def _table_words(name: str, prefix: str = "") -> tuple[str, ...]:
    words = list(split_name(name))
    if prefix and len(words) > 1 and words[0] == prefix and not words[1].isdigit():
        words.pop(0)
    while len(words) > 1 and words[0] in lexicon()["prefixes"]:
        words.pop(0)
    if words and words[-1].endswith("表") and len(words[-1]) > 2:
        words[-1] = words[-1].removesuffix("表")
    return (*words[:-1], singular(words[-1])) if words else (name,)


@cache
def names_table(column: str, table: str) -> bool:
    """Whether a link's column says no more than the table it leads to: `customer_id`, not `billing_customer_id`."""
    bare = without_identifier(split_name(column))
    return bool(bare) and (*bare[:-1], singular(bare[-1])) == _table_words(table)


@cache
def same_thing(column: str, table: str, key: str) -> bool:
    """Whether a column's name speaks of a key of the table: `customer_id`, `CustomerNo`, `customer`, `客户编号`."""
    words, thing = split_name(column), _table_words(table)
    if not words:
        return False
    if split_name(key) == words and len(words) > 1:
        return True  # the very name of the parent's key, unless it is a bare `id`
    bare = without_identifier(words)
    if bare == words and key == "id" and words == ("id",):
        return True
    last = (*bare[:-1], singular(bare[-1]))
    return last == thing or (len(bare) < len(words) and len(last) > len(thing) and last[-len(thing) :] == thing)


def say_table(name: str, language: str, prefix: str = "") -> str:
    """A table's noun in the singular: `tbl_OrderItems` -> order item, in zh 订单商品 where every word is known."""
    return _translate(_table_words(name, prefix), language) or name


def say_column(name: str, table: str, language: str) -> str:
    """A column's noun: the table's own name in front and identifiers' endings left out, as people speak."""
    words = split_name(name)
    thing = _table_words(table)
    if len(words) > len(thing) and words[: len(thing)] == thing:
        words = words[len(thing) :]
    elif len(words) > 1 and words[0] == thing[-1]:
        words = words[1:]
    if len(words) > 1 and (words[-1] in lexicon()["measures"] or words[-2] in lexicon()["timed"]):
        words = words[:-1]
    return _translate(words, language) or name


def _translate(words: Sequence[str], language: str) -> str:
    joined = " ".join(words)
    if language == "zh":
        return _to_chinese(words) or joined
    if _HAN.search(joined):
        known = {str(zh): str(en) for en, zh in reversed(lexicon()["zh"].items())}
        return known.get(joined, joined)
    return joined


def _to_chinese(words: Sequence[str]) -> str:
    """Every word's Chinese, two-word terms first; empty if one is not known."""
    known, out, index = lexicon()["zh"], [], 0
    while index < len(words):
        pair = " ".join(words[index : index + 2])
        if pair in known and " " in pair:
            out.append(known[pair])
            index += 2
            continue
        word = words[index]
        if _HAN.search(word):
            out.append(word)
        elif (found := known.get(word) or known.get(singular(word))) is not None:
            out.append(found)
        else:
            return ""
        index += 1
    return "".join(out)


def _matches(words: str, terms: Iterable[str]) -> int:
    """Length of the longest term that ends or begins the words (Chinese: stands in them); 0 if none does."""
    best = 0
    for term in terms:
        if _HAN.search(term):
            hit = term in words
        else:
            hit = words == term or words.endswith(" " + term) or words.startswith(term + " ")
        best = max(best, len(term)) if hit else best
    return best


@cache
def concept_of(name: str) -> str:
    """What a column is about (price, duration, city, ...); empty if its words say nothing known."""
    words = " ".join(split_name(name))
    found = {concept: _matches(words, terms) for concept, terms in lexicon()["concepts"].items()}
    best = max(found, key=lambda concept: found[concept])
    return best if found[best] else ""


@cache
def is_label_name(name: str, table: str) -> float:
    """How well a column's name says that it names its row: 4 `name`, 3 `..._name`, 1 a code, 0.5 unknown, 0 never."""
    lists, words = lexicon()["labels"], " ".join(split_name(name))
    said = say_column(name, table, "en")
    if words in lists["exact"] or said in lists["exact"]:
        return 4.0 if words in ("first name", "last name") or not words.endswith(("title", "caption")) else 3.8
    if is_secret(name) or _matches(words, lists["never"]):
        return 0.0
    if words in ("first name", "last name"):
        return 1.5
    if _matches(words, lists["ending"]):
        return 3.0
    return 1.0 if _matches(words, lists["codes"]) else 0.5


def is_person_role(column: str) -> bool:
    """Whether a column is a key of somebody in a role: `manager_id`, `sales_agent_no`; not `manager` alone, a name."""
    words = split_name(column)
    bare = without_identifier(words)
    return len(bare) < len(words) and (
        concept_of(column) == "manager" or _matches(" ".join(bare), lexicon()["people"]) > 0
    )


def is_person_table(name: str) -> bool:
    """Whether the rows of a table of this name are people."""
    return _matches(" ".join(_table_words(name)), lexicon()["people"]) > 0


def is_table_of(name: str, kind: str) -> bool:
    """Whether the rows of a table of this name are of a kind the lexicon lists: buyers, sales."""
    return _matches(" ".join(_table_words(name)), lexicon()[kind]) > 0


def is_secret(name: str) -> bool:
    """Credentials and the like."""
    return _matches(" ".join(split_name(name)), lexicon()["secrets"]) > 0


def is_personal(name: str) -> bool:
    """How to reach a person, and birthdays."""
    return _matches(" ".join(split_name(name)), lexicon()["personal"]) > 0


def is_minor(name: str) -> bool:
    """Columns that are rarely asked for."""
    return _matches(" ".join(split_name(name)), lexicon()["minor"]) > 0


def chinese_words(
    tables: Sequence[tuple[str, Sequence[str]]], spoken: Mapping[tuple[str, str], str] | None = None
) -> dict[str, list[str]]:
    """Chinese words that a person may say for tables and columns with other names: `电话` for clinics.phone.

    tables: (name, columns). spoken: (table, column) -> what the database's author calls it. A word that would stand for
    more than three things is left out.
    """
    found: dict[str, list[str]] = {}

    def add(said: str, name: str) -> None:
        if not _HAN.search(said):
            return
        shorter = re.sub("(日期|时间|编号|数量|数|号)$", "", said)
        words = {said, shorter if len(shorter) > 1 else said}
        words |= {word for group in lexicon()["zh_alike"] if group[0] in words for word in group}
        for word in sorted(words):
            if len(word) > 1 and name not in found.setdefault(word, []):
                found[word].append(name)

    for table, columns in tables:
        if not _HAN.search(table):
            add(say_table(table, "zh"), quote_name(table))
        for column in columns:
            if not _HAN.search(column) and not is_identifier(column):
                name = f"{quote_name(table)}.{quote_name(column)}"
                add((spoken or {}).get((table, column), ""), name)
                add(say_column(column, table, "zh"), name)
    dull = {"名称", "姓名", "编号", "日期", "时间"}
    return {word: names for word, names in found.items() if len(names) <= 3 and word not in dull}


def is_identifier(name: str) -> bool:
    """Whether a name says that its values are numbers of rows: `clinic_id`, `code`."""
    return split_name(name)[-1:] != () and split_name(name)[-1] in lexicon()["identifiers"]


def other_words(tables: Sequence[tuple[str, Sequence[str]]]) -> dict[str, list[str]]:
    """Words that a person may say for a table or column of another name: `client` for owners, `pay` for vets.salary.

    tables: (name, columns). A word that would stand for more than three things is left out.
    """
    found: dict[str, list[str]] = {}
    for table, columns in tables:
        thing = " ".join(_table_words(table))
        for group in lexicon()["alike"]:
            if thing in group or thing.split()[-1] in group:
                for word in group:
                    found.setdefault(word, []).append(quote_name(table))
        for column in columns:
            said = " ".join(split_name(column))
            words = set(lexicon()["concepts"].get(concept_of(column), ()))
            words |= set(split_name(column))  # an abbreviation is said in full
            words |= {word for group in lexicon()["columns_alike"] if _matches(said, group) for word in group}
            words -= {"date", "time", "name", "count", *lexicon()["identifiers"], *STOP_WORDS}
            for word in sorted(word for word in words if " " not in word):
                found.setdefault(str(word), []).append(f"{quote_name(table)}.{quote_name(column)}")
    return {word: names for word, names in found.items() if len(names) <= 3}
