"""Any business: a database that nobody prepared, through `init`, `run` and `ask`, without editing a file.

`python -m bench.any_business [--quick] [--peers none] [--json FILE] [--run FOLDER] [--documents DIR] [--only PART]`.
Parts: chinook, weak (a crippled start: rounds to the gate), hostile (databases nobody tidied up), sql (attacks on the
query tool). The database is Chinook in RIVERRUN_SHARED (../shared); the sixty questions in a person's words
(`parts/own_questions.jsonl`, with their SQL) were written without sight of the templates. Peers do not apply. `--quick`
asks the questions of a finished run (--run) and makes none.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.common import ROOT, Done, Options, Row, home, main_of, parser, read_options, run, say, table, write_report
from bench.parts import hostile, sql_attacks, weak_start
from bench.parts.machine import machine
from riverrun.base.errors import InputError, RiverrunError
from riverrun.evaluate.tooltasks import same_rows

__all__ = ["MINUTES", "OWN", "SEALED", "cause", "exact", "main"]

MINUTES = "Chinook through init, unedited: minutes to its report"
SEALED = "Chinook through init, unedited: sealed task success"
OWN = "60 questions of one's own about Chinook, in a person's words: exact"
QUESTIONS = Path(__file__).parent / "parts" / "own_questions.jsonl"
Rows = Sequence[Sequence[Any]]
_ROUND = re.compile(r"round\s*\(.*?,\s*(\d)\s*\)", re.IGNORECASE | re.DOTALL)
CLI = [sys.executable, "-m", "riverrun.cli.main"]


def chinook() -> Path:
    """The database; InputError where it is not on this machine."""
    shared = Path(os.environ.get("RIVERRUN_SHARED") or ROOT.parent / "shared")
    path = shared / "corpora" / "biz_chinook" / "Chinook_Sqlite.sqlite"
    if not path.is_file():
        raise InputError(f"not run here: {path} does not exist; set RIVERRUN_SHARED to the folder of the corpora")
    return path


def exact(gold: Rows, rows: Rows | None, gold_sql: str = "") -> bool:
    """The gold rows, or their first column (what was asked), stand in the answer's rows: as a whole or as a column.

    An answer with as many columns as the gold must be it wholly: a right name beside a wrong figure is wrong.
    Numbers and texts may stand in either order, two columns of one kind may not. Where one side's fractions are rounded
    to what the gold query rounds to (two decimals, if it does not), the other's may be unrounded.
    """
    if rows is None:
        return False
    wide = bool(rows and gold) and len(rows[0]) == len(gold[0]) > 1
    columns = [[[row[i]] for row in rows] for i in range(len(rows[0]))] if rows and not wide else []
    wanted = [gold] if wide else [gold, [[row[0]] for row in gold]]
    said = _ROUND.findall(gold_sql)
    places = max(map(int, said)) if said else 2
    return any(_same(one, other, places) for one in wanted for other in [rows, *columns])


def _same(gold: Rows, rows: Rows, places: int) -> bool:
    gold, rows = _by_kind(gold), _by_kind(rows)
    if same_rows(gold, rows):
        return True
    if not any(isinstance(value, float) for row in gold for value in row):
        return False
    short, shorter = _rounded(gold, places), _rounded(rows, places)
    return (short == gold or shorter == rows) and same_rows(short, shorter)


def _by_kind(rows: Rows) -> Rows:
    """Columns of text first, then columns of numbers, each in their order."""
    numbers = [all(isinstance(value, int | float | None) for value in column) for column in zip(*rows, strict=True)]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    return [[row[place] for place in order] for row in rows]


def _rounded(rows: Rows, places: int) -> Rows:
    """Fractions rounded as SQLite does, halves away from zero; whole numbers stay exact."""

    def short(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return math.copysign(math.floor(abs(value) * 10**places + 0.5 + 1e-9) / 10**places, value)

    return [[short(value) for value in row] for row in rows]


def cause(answer: Mapping[str, Any], gold_sql: str) -> str:
    """Why an answer is not exact, as far as its query shows."""
    sql = str(answer.get("sql") or "")
    if answer.get("error"):
        return "the query fails"
    if not sql:
        return "the pages are searched" if answer.get("pages") or answer.get("page") else "no query"
    known = {"album", "artist", "customer", "employee", "genre", "invoice", "invoiceline", "mediatype", "playlist"}
    known |= {"playlisttrack", "track"}

    def tables(text: str) -> set[str]:
        return {word for word in text.lower().replace(",", " ").replace('"', "").split() if word in known}

    if tables(sql) != tables(gold_sql):
        return "other tables"
    return "other columns or conditions"


def make_run(work: Path, documents: Path | None) -> tuple[Path, Done]:
    """`init` and `run`, as a newcomer types them."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    extra = ["--documents", str(documents)] if documents else []
    first = run([*CLI, "init", "music", "--database", str(chinook()), *extra], log=work / "init.log", cwd=work)
    if first.code:
        raise RiverrunError(f"init ended with code {first.code}: see {work / 'init.log'}")
    return work / "run", run([*CLI, "run", "music", "--out", "run"], log=work / "run.log", cwd=work)


def ask_own(finished: Path) -> tuple[int, int, Counter[str]]:
    """(exact, asked, causes of the misses)."""
    log = home() / "any-business-ask.log"
    done = run([*CLI, "ask", str(finished), "--questions", str(QUESTIONS), "--json"], log=log)
    if done.code:
        raise RiverrunError(f"ask ended with code {done.code}: see {log}")
    answers = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    right, causes = 0, Counter[str]()
    with closing(sqlite3.connect(chinook().resolve().as_uri() + "?mode=ro", uri=True)) as connection:
        for question, answer in zip(questions, answers, strict=True):
            gold = [list(row) for row in connection.execute(question["sql"])]
            if exact(gold, answer.get("rows"), question["sql"]):
                right += 1
            else:
                causes[cause(answer, question["sql"])] += 1
                say(f"  miss: {question['question']} | {answer.get('sql') or answer.get('answer')}")
    return right, len(questions), causes


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    options.add_argument("--run", type=Path, help="a finished run of Chinook; none is made then")
    options.add_argument("--documents", type=Path, help="folder of pages given to init")
    options.add_argument("--only", choices=tuple(PARTS), help="this part alone; all unless given")
    chosen = read_options(options.parse_args(), ())
    before = machine()
    rows: list[Row] = []
    for part, measure in PARTS.items():
        if chosen.rest.only in (None, part):
            say(f"--- {part}")
            rows += measure(chosen)
    print(table(rows))
    write_report(chosen.json, before, rows, run=str(chosen.rest.run or ""))
    return 1 if any(row.passed is False for row in rows) else 0


def _hostile(chosen: Options) -> list[Row]:
    return hostile.rows(quick=chosen.quick)


def _sql(chosen: Options) -> list[Row]:
    return sql_attacks.rows()


def _weak(chosen: Options) -> list[Row]:
    if chosen.quick:
        return []
    work = home() / "weak-start"
    return weak_start.weak_start_rows(weak_start.weak_start(chinook(), work), work / "opened.log")


def _chinook(chosen: Options) -> list[Row]:
    rows: list[Row] = []
    finished = chosen.rest.run
    if finished is None:
        if chosen.quick:
            raise InputError("--quick makes no run: give a finished one with --run")
        finished, done = make_run(home() / "any-business", chosen.rest.documents)
        rows.append(Row(MINUTES, done.seconds / 60, "min", 25, note=f"exit code {done.code}", holds=done.code == 0))
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    tuned = summary["scores"]["tool"]["tuned"]
    note = ", ".join(f"{kind} {100 * value:.0f}" for kind, value in tuned["by_kind"].items())
    rows.append(Row(SEALED, 100 * tuned["success"], "%", 75, "at least", note=f"n = {tuned['n']}: {note}"))
    right, asked, causes = ask_own(finished)
    told = ", ".join(f"{name} {number}" for name, number in causes.most_common())
    rows.append(Row(OWN, 100 * right / asked, "%", 45, "at least", note=f"{right} of {asked}; misses: {told}"))
    return rows


PARTS = {"chinook": _chinook, "weak": _weak, "hostile": _hostile, "sql": _sql}


if __name__ == "__main__":
    main_of(main)
