"""Databases that nobody tidied up, through `init` and the chain with doubles; what is refused, in one sentence."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bench.common import Done
from bench.parts.hostile import Outcome, judge, rows_of
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.chain.run import run_app
from riverrun.chain.stage import read_json
from riverrun.cli.init import init_command
from tests.chain.conftest import APP
from tests.chain.doubles import PARTS
from tests.chain.test_drafting import TINY
from tests.data.hostile import REFUSED, SCHEMAS, make

WHOLE = {"odd_names", "odd_values", "same_but_for_case", "indexes", "empty", "one_row"}
"""Those that go through every stage; the others end after the data."""


def started(tmp_path: Path, database: Path, language: str = "en") -> Path:
    """The folder of an application drafted over a database, the model beside it."""
    shutil.copytree(APP / "model", tmp_path / "model")
    init_command(tmp_path / "app", str(database), None, language, (), False)
    return tmp_path / "app"


@pytest.mark.parametrize(("name", "language"), [*((name, "en") for name in SCHEMAS), ("chinese", "zh")])
def test_hostile_databases_run(name: str, language: str, tmp_path: Path) -> None:
    app = started(tmp_path, make(name, tmp_path / "any thing.sqlite"), language)
    out, until = tmp_path / "run", "" if name in WHOLE else "data"
    options = [*TINY, *(["select.dev_questions=0"] if until else [])]
    run_app(app, options, out=out, until=until, progress=Progress("quiet"), parts=PARTS, isolate=False)
    counts = read_json(out / "summary.json")["stages"]["data"]["counts"]
    assert sum(counts["train_by_kind"].values()) > 40
    assert set(counts["train_by_kind"]) - {"chat"}
    assert until or (out / "report" / "index.html").is_file()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_database_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    spoil, words = REFUSED[name]
    spoil(tmp_path / "any.sqlite")
    with pytest.raises(InputError) as refused:
        init_command(tmp_path / "app", str(tmp_path / "any.sqlite"), None, "en", (), False)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ": " in str(refused.value), "the next step is named"
    assert not (tmp_path / "app").exists()


def test_a_database_that_is_open_elsewhere_is_copied_whole(tmp_path: Path) -> None:
    file = tmp_path / "live.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        for sql, rows in SCHEMAS["undeclared"]():
            writer.executemany(sql, rows) if rows else writer.execute(sql)
        app, out = started(tmp_path, file), tmp_path / "run"
        options = [*TINY, "select.dev_questions=0"]
        run_app(app, options, out=out, until="data", progress=Progress("quiet"), parts=PARTS, isolate=False)
        first = read_json(out / "data" / "lineage.json")
        run_app(app, options, out=out, until="data", progress=Progress("quiet"), parts=PARTS, isolate=False)
        assert read_json(out / "data" / "lineage.json") == first, "nothing changed, the stage stands"
        writer.execute("DELETE FROM tbl_orders WHERE order_no > 50")
        run_app(app, options, out=out, until="data", progress=Progress("quiet"), parts=PARTS, isolate=False)
    with closing(sqlite3.connect(out / "data" / "shop.sqlite")) as copy:
        assert copy.execute("SELECT COUNT(*) FROM tbl_orders").fetchone() == (51,), "a change in the log is seen"
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_the_judge_of_the_bench() -> None:
    def done(code: int, output: str) -> Done:
        return Done(code, 1.0, 0, output)

    assert judge(done(0, "app/app.yaml\n")) == ("", [])
    assert judge(done(2, "[1/9] select ...\nerror: x is empty: give another\n")) == ("x is empty: give another", [])
    for code, output in (
        (1, "error: it failed\n"),
        (2, "Traceback (most recent call last):\n  File\nKeyError: 'v'\n"),
        (2, "error: one\nand more of it\n"),
        (2, ""),
        (0, "error: it failed\n"),
    ):
        assert judge(done(code, output))[1]
    fine = [Outcome(f"d{number}", "runs: 9 training questions of 2 kinds") for number in range(12)]
    assert rows_of(fine)[0].passed is True
    assert rows_of(fine[1:])[0].passed is False, "the issue asks for twelve"
    assert rows_of([*fine, Outcome("d", "no", ("exit code 1",))])[0].passed is False
