"""Every written attack on the query tool, a sample of their mutations, and the judge over a tool that lets go."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from bench.parts.sql_attacks import HANG_SECONDS, Worker, attack, rows_of
from bench.parts.sql_attempts import ATTEMPTS, REFUSED, SCRIPT, SECRET, mutations
from riverrun.agent.tools.sql import DatabaseTool
from riverrun.base.artifacts import digest_file
from riverrun.base.errors import InputError


def test_every_written_attempt_gets_nowhere() -> None:
    verdicts = list(attack(ATTEMPTS, seconds=0.15, grace=HANG_SECONDS))
    assert [(verdict.problems, verdict.sql, verdict.said) for verdict in verdicts if verdict.problems] == []
    assert [row.passed for row in rows_of(verdicts, HANG_SECONDS, least=60)] == [True, True, True]
    assert len({sql for _, sql in ATTEMPTS}) == len(ATTEMPTS) >= 300
    assert set(REFUSED) < set(Counter(kind for kind, _ in ATTEMPTS))


def test_a_sample_of_mutations_gets_nowhere() -> None:
    changed = mutations(200, seed=3)
    assert changed == mutations(200, seed=3)
    assert len(set(changed) - {sql for _, sql in ATTEMPTS}) > 150
    verdicts = list(attack([("mutation", sql) for sql in changed], seconds=0.15, grace=HANG_SECONDS))
    assert [(verdict.problems, verdict.sql, verdict.said) for verdict in verdicts if verdict.problems] == []


class Weak(Worker):
    """A worker whose answers are given by hand, and which does what it is told to the folder."""

    def ask(self, sql: str) -> dict[str, object]:
        self.start()
        if sql == "write":
            with closing(sqlite3.connect(self.database)) as connection:
                connection.execute("UPDATE books SET price = 0")
                connection.commit()
        if sql == "file":
            (self.folder / "cwd" / "evil.txt").touch()
        answer = {"error": sql != "allow", "told": sql == "tell", "said": "", "raised": sql == "raise"}
        numbers = {"seconds": 9.0 if sql == "slow" else 0.0, "grown": 10**9 if sql == "grow" else 0}
        return {"problem": "hangs"} if sql == "hang" else answer | numbers


def test_the_judge_sees_what_gets_anywhere(tmp_path: Path) -> None:
    worker = Weak(tmp_path / "w", 0.1)
    try:
        found = {sql: worker.attempt("write", sql).problems for sql in ("", "write", "file", "tell", "allow")}
        found |= {sql: worker.attempt("text", sql).problems for sql in ("slow", "grow", "raise", "hang", "again")}
    finally:
        worker.stop()
    assert found == {
        "": (),
        "write": ("writes",),
        "file": ("makes a file",),
        "tell": ("tells",),
        "allow": ("allowed",),
        "slow": ("slow",),
        "grow": ("memory",),
        "raise": ("crashes",),
        "hang": ("hangs",),
        "again": (),
    }


def test_the_process_that_is_attacked_is_a_real_one(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "w", 0.5)
    try:
        first = worker.attempt("text", "SELECT name FROM customers WHERE id = 1")
        assert (first.problems, first.said) == ((), "name: Ada Vale")
        assert worker.process is not None
        worker.process.kill()
        worker.process.wait()
        assert worker.ask("SELECT 1")["said"] == "1: 1", "a dead process is started again"
    finally:
        worker.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(SCRIPT)
        connection.execute("CREATE TABLE g (id INTEGER PRIMARY KEY, mail TEXT, low TEXT AS (lower(mail)))")
        connection.execute("INSERT INTO g(mail) VALUES (?)", (SECRET,))
        connection.commit()
    return file


def test_full_text_and_rtree_tables_can_be_asked(path: Path) -> None:
    tool = DatabaseTool(path)
    search = "SELECT title FROM pages WHERE pages MATCH 'book'"
    assert tool.run({"sql": search}).content == "title: Returns"
    assert tool.run({"sql": "SELECT id FROM shapes WHERE low < 1"}).content == "id: 1"
    for sql in ("PRAGMA data_version", f"{search}; PRAGMA data_version", "SELECT * FROM pragma_data_version"):
        assert tool.run({"sql": sql}).is_error


def test_generated_columns_can_be_shown_and_denied(path: Path) -> None:
    assert "g(id, mail, low)" in DatabaseTool(path).schema_text()
    tool = DatabaseTool(path, deny_columns=["g.mail", "g.low"])
    assert "private" in tool.run({"sql": "SELECT low FROM g"}).content
    with pytest.raises(InputError, match="lwo"):
        DatabaseTool(path, deny_columns=["g.lwo"])


def test_views_in_a_circle_do_not_hide_the_rest(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIEW one AS SELECT * FROM other")
        connection.execute("CREATE VIEW other AS SELECT * FROM one")
    tool = DatabaseTool(path)
    assert tool.run({"sql": "SELECT count(*) AS n FROM customers"}).content == "n: 2"
    assert tool.run({"sql": "SELECT * FROM one"}).is_error


def test_a_database_in_wal_mode_gets_no_files_beside_it(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = digest_file(path)
    assert DatabaseTool(path).run({"sql": "SELECT count(*) AS n FROM customers"}).content == "n: 2"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert digest_file(path) == before
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        tool = DatabaseTool(path)
        writer.execute("INSERT INTO customers(name) VALUES ('Cy Dale')")
        assert tool.run({"sql": "SELECT count(*) AS n FROM customers"}).content == "n: 3", "what the log holds is read"
