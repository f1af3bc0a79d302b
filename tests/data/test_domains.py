"""Invented databases: every domain builds in several styles, is read as it was meant and gives questions."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from riverrun.base.errors import InputError
from riverrun.data import domain_format
from riverrun.data.domains import build_domain, load_domains
from riverrun.data.schema import Schema, read_schema
from riverrun.data.synthesis import SynthesisConfig, synthesise

DOMAINS = load_domains("en")
SEEDS = 4


def built(name: str, folder: Path, seed: int) -> tuple[Path, Schema]:
    path = folder / f"{seed}.sqlite"
    build_domain(DOMAINS[name], path, seed=seed)
    return path, read_schema(path)


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def load(folder: Path, tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = yaml.safe_dump({"corner shop": {"about": "a shop", "tables": tables}}, sort_keys=False)
    (folder / "en.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(domain_format, "FOLDER", folder)
    load_domains("en")


@pytest.mark.parametrize("name", DOMAINS)
def test_links_are_found_in_every_style(name: str, tmp_path: Path) -> None:
    domain = DOMAINS[name]
    for seed in range(SEEDS):
        path, schema = built(name, tmp_path, seed)
        assert len(schema.tables) in (len(domain.tables), len(domain.tables) - 1)
        links = sum(len(table.links) for table in domain.tables)
        if len(schema.tables) < len(domain.tables):  # what is left out is a table that no link leads to
            parents = {parent for table in domain.tables for parent in table.links.values()}
            ends = [table for table in domain.tables if table.name not in parents]
            assert len(schema.links) in {links - len(table.links) for table in ends}
        else:
            assert len(schema.links) == links
        assert not schema.notes
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        if len(schema.tables) == len(domain.tables):
            for table, made in zip(domain.tables, schema.tables, strict=True):
                assert 3 <= made.rows <= round(1.4 * table.rows)


@pytest.mark.parametrize("name", DOMAINS)
def test_every_domain_gives_questions(name: str, tmp_path: Path) -> None:
    path, schema = built(name, tmp_path, 1)
    config = SynthesisConfig(train=40, dev=0, sealed=0)
    made = synthesise(path, schema, config, language="en", seed=1, row_limit=50, joins=False)
    kinds = made.by_kind("train")
    assert sum(kinds.values()) >= 36
    assert {"count", "lookup", "aggregate", "join"} <= set(kinds)


def test_equal_seeds_give_equal_databases(tmp_path: Path) -> None:
    domain = DOMAINS["town library"]
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build_domain(domain, tmp_path / name, seed=seed)
    build_domain(domain, tmp_path / "b", seed=3)  # a file that is there is replaced
    assert dump(tmp_path / "a") == dump(tmp_path / "b")
    assert dump(tmp_path / "a") != dump(tmp_path / "c")


def test_styles_differ(tmp_path: Path) -> None:
    """Over many seeds: plural and singular, cases, three kinds of keys, short words, and links left to be inferred."""
    tables, columns, keys, undeclared = set(), set(), set(), 0
    for seed in range(40):
        _, schema = built("town library", tmp_path, seed)
        tables.add(schema.tables[3].name)
        keys.add(schema.tables[3].key[0])
        columns |= {column.name for table in schema.tables for column in table.columns}
        undeclared += any(not link.declared for link in schema.links)
    assert {"book", "books", "Book", "Books"} <= tables
    assert any(name.lower().startswith("tbl") for name in tables)
    assert {"id", "book_id", "BookId", "book_no"} <= keys
    assert {"loan_date", "LoanDate", "loanDate", "loandate", "full_nm"} <= columns
    assert 2 <= undeclared <= 16


def test_values_are_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goods = {
        "name": {"names": [["Red", "Blue", "Green", "Old"], ["Hat", "Cup", "Lamp", "Coat", "Book"]]},
        "price": {"money": [5, 9]},
        "stock": {"integer": [2, 4]},
        "seen on": {"date": [2021, 2022]},
        "sold on": {"date": [2021, 2022], "nulls": 0.5},
        "part of": {"link": "ware"},
        "code": {"code": "W-###"},
        "kind": {"of": ["new", "used", "rare", "lost"]},
    }
    tables = {
        "ware": {"rows": 20, "columns": goods},
        "tag": {"rows": 5, "columns": {"name": {"unique": ["a", "b", "c", "d", "e"]}}},
        "tagging": {"rows": 60, "plain": True, "columns": {"ware": {"link": "ware"}, "tag": {"link": "tag"}}},
    }
    load(tmp_path, tables, monkeypatch)
    domain = load_domains("en")["corner shop"]
    shares, sold = [], 0
    for seed in range(20):
        path = tmp_path / "shop.sqlite"
        build_domain(domain, path, seed=seed)
        schema = read_schema(path)
        ware = schema.tables[0]
        found = {column.name.lower().replace("_", ""): column for column in ware.columns}
        name = ware.by_name[ware.label[0]]
        assert name.unique
        for key, low, high in (("price", 5, 9), ("stock", 2, 4), ("seenon", "2021-01-01", "2022-12-31")):
            if key in found:
                assert low <= found[key].low <= found[key].high <= high
        if "soldon" in found and "seenon" in found:
            sold += found["soldon"].nulls
            assert found["seenon"].kind == found["soldon"].kind == "date"
            sql = f"SELECT {found['seenon'].sql}, {found['soldon'].sql} FROM {ware.sql}"
            with closing(sqlite3.connect(path)) as connection:
                for seen, gone in connection.execute(sql):
                    assert gone is None or date.fromisoformat(seen) < date.fromisoformat(gone)
        if "kind" in found:
            with closing(sqlite3.connect(path)) as connection:
                counts = connection.execute(f"SELECT COUNT(*) FROM {ware.sql} GROUP BY {found['kind'].sql} ORDER BY 1")
                shares.append([row[0] for row in counts])
        for table in schema.tables:
            if len(table.key) == 2:
                assert {link.columns[0] for link in schema.links_of(table.name)} == set(table.key)
    assert sum(counts[-1] for counts in shares) > 2 * sum(counts[0] for counts in shares)
    assert sold > 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rows": 5, "columns": {"name": "fullname"}}, "unknown generator 'fullname'"),
        ({"rows": 5, "columns": {"name": {"unique": ["a", "b"]}}}, "2 unique values for 5 rows"),
        ({"rows": 5, "columns": {"owner": {"link": "owner"}}}, "links to 'owner'"),
        ({"rows": 5, "columns": {"price": {"money": [9, 5]}}}, "money cannot be made of"),
        ({"rows": 5, "columns": {"price": {"number": [1, 5]}}}, "number cannot be made of"),
        ({"rows": 5, "columns": {"open": {"of": [True, False]}}}, "of cannot be made of"),
        ({"rows": 5, "columns": {"no": {"code": "INV"}}}, "code cannot be made of"),
        ({"rows": 5, "columns": {"name": {"email": True, "nulls": 2}}}, "nulls from 0 to 1"),
        ({"rows": 1, "columns": {"name": "email"}}, "rows must be a whole number from 3"),
        ({"rows": 5}, "give rows, columns"),
        ({"rows": 5, "columns": {"name": "email"}, "size": 3}, "give rows, columns"),
    ],
)
def test_a_malformed_domain_is_refused_by_name(
    table: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="domain corner shop, table ware") as caught:
        load(tmp_path, {"ware": table}, monkeypatch)
    assert message in str(caught.value)


def test_a_link_leads_to_a_table_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        "tag": {"rows": 5, "plain": True, "columns": {"name": "company"}},
        "ware": {"rows": 5, "columns": {"tag": {"link": "tag"}}},
    }
    with pytest.raises(InputError, match="table ware: tag links to 'tag', which is no table with a key above it"):
        load(tmp_path, tables, monkeypatch)
    with pytest.raises(InputError, match="no domains in language 'xx'"):
        load_domains("xx")
