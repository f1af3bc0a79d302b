"""What an invented business keeps, as domains/*.yaml says it: tables, columns and how values are made.

A file maps a domain's name to {about, tables}. tables: a noun in the singular -> {rows, columns, plain}; rows is about
how many; columns: a noun -> a generator: one of the words of _PLAIN, or a mapping of one of
  of: [values, drawn unequally often]     names: [[first words], [second words]], no name twice
  unique: [values, one a row]             code: "INV-####", # is a digit
  integer: [low, high]  number: [low, high, digits]  money: [low, high]
  date: [year, year]  datetime: [year, year]  year: [low, high]
  link: a table above, or the table itself for a tree
and, in a mapping, nulls: the share of missing values. Every table has a key, a `plain` one its links or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.config import load_yaml
from riverrun.base.errors import InputError, nearest

__all__ = ["FOLDER", "LISTS", "RANGES", "Domain", "DomainTable", "Generator", "load_domains", "most_values"]

FOLDER = Path(__file__).parent / "domains"
_PLAIN = ("first_name", "last_name", "full_name", "city", "country", "street", "phone", "email", "company", "flag")
LISTS = ("of", "unique")
RANGES: Mapping[str, int] = {"integer": 2, "number": 3, "money": 2, "date": 2, "datetime": 2, "year": 2}
_KINDS = (*_PLAIN, *LISTS, *RANGES, "names", "code", "link")


@dataclass(frozen=True)
class Generator:
    """How a column's values are made; `nulls` is the share of missing ones."""

    kind: str
    argument: Any = None
    nulls: float = 0.0


@dataclass(frozen=True)
class DomainTable:
    """A noun in the singular, about how many rows it has, its columns; `plain`: without a key of its own."""

    name: str
    rows: int
    columns: Mapping[str, Generator]
    plain: bool = False

    @property
    def links(self) -> dict[str, str]:
        """Columns that hold keys, with the table they lead to."""
        return {name: made.argument for name, made in self.columns.items() if made.kind == "link"}


@dataclass(frozen=True)
class Domain:
    """One business: its name, what it is about, its tables with parents before children."""

    name: str
    language: str
    about: str
    tables: tuple[DomainTable, ...]


def load_domains(language: str) -> dict[str, Domain]:
    """Every domain of domains/{language}*.yaml by its name. InputError for a malformed one, naming domain and table."""
    out: dict[str, Domain] = {}
    for path in sorted(FOLDER.glob(f"{language}*.yaml")):
        for name, data in load_yaml(path).items():
            if name in out:
                raise InputError(f"domain {name} of {path.name} is there already: give it another name")
            out[name] = _domain(name, language, data)
    if not out:
        raise InputError(f"there are no domains in language '{language}': add domains/{language}.yaml")
    return out


def _domain(name: str, language: str, data: Any) -> Domain:
    if not isinstance(data, dict) or set(data) != {"about", "tables"} or not isinstance(data["tables"], dict):
        raise InputError(f"domain {name} must be a mapping of about and tables, got {data!r:.80}")
    tables: dict[str, DomainTable] = {}
    for noun, table in data["tables"].items():
        where = f"domain {name}, table {noun}"
        if not isinstance(table, dict) or not {"rows", "columns"} <= set(table) <= {"rows", "columns", "plain"}:
            raise InputError(f"{where}: give rows, columns and, if you like, plain; got {table!r:.80}")
        rows, columns = table["rows"], table["columns"]
        if not isinstance(rows, int) or rows < 3 or not isinstance(columns, dict) or not columns:
            raise InputError(f"{where}: rows must be a whole number from 3 and columns a mapping, rows is {rows!r}")
        made = {str(column): _generator(f"{where}, column {column}", how) for column, how in columns.items()}
        for column, how in made.items():
            parent = noun if how.kind == "link" and how.argument == noun else None
            if how.kind == "link" and parent is None and (how.argument not in tables or tables[how.argument].plain):
                raise InputError(f"{where}: {column} links to '{how.argument}', which is no table with a key above it")
            if (most := most_values(how)) is not None and most < rows:
                raise InputError(f"{where}: {column} has {most} unique values for {rows} rows: add values")
        tables[str(noun)] = DomainTable(str(noun), rows, made, bool(table.get("plain")))
    return Domain(name, language, str(data["about"]), tuple(tables.values()))


def _generator(where: str, how: Any) -> Generator:
    given = {how: True} if isinstance(how, str) else dict(how) if isinstance(how, dict) else {}
    nulls = given.pop("nulls", 0.0)
    if len(given) != 1 or not isinstance(nulls, int | float) or not 0 <= nulls < 1:
        raise InputError(f"{where}: give one generator and nulls from 0 to 1, got {how!r}")
    ((kind, argument),) = given.items()
    if kind not in _KINDS:
        raise InputError(f"{where}: unknown generator '{kind}'.{nearest(str(kind), _KINDS)}")
    if kind in _PLAIN:
        good = argument is True
    elif kind in LISTS:
        good = _is_list(argument, 2)
    elif kind == "names":
        good = isinstance(argument, list) and [_is_list(part, 1) for part in argument] == [True, True]
    elif kind in RANGES:
        numbers = argument if isinstance(argument, list) and len(argument) == RANGES[kind] else [0, 0]
        good = all(type(value) in (int, float) for value in numbers) and numbers[0] < numbers[1]
    else:
        good = isinstance(argument, str) and (kind == "link" or "#" in argument)
    if not good:
        raise InputError(f"{where}: {kind} cannot be made of {argument!r:.100}")
    return Generator(kind, argument, float(nulls))


def _is_list(value: Any, least: int) -> bool:
    """A list of at least so many texts and numbers, none twice; YAML's own reading of yes and dates is refused."""
    if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
        return False
    return len(value) >= least and len(set(value)) == len(value) and not any(isinstance(item, bool) for item in value)


def most_values(how: Generator) -> int | None:
    """How many different values there are, for a generator that gives none twice."""
    if how.kind == "names":
        return len(how.argument[0]) * len(how.argument[1])
    return len(how.argument) if how.kind == "unique" else None
