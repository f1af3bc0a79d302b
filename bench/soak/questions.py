"""Every question written for the invented businesses, over four builds of its database: which of them never work.

`python -m bench.soak.questions [--quick] [--json FILE]`, also `make soak-questions`. A question that works is asked of
the database it was put over: its query runs and brings something. `--quick`: one build. Peers do not apply.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from bench.common import Row, main_of, parser, read_options, say, table, write_report
from bench.parts.machine import machine
from riverrun.data.domain_questions import domain_questions, load_asked
from riverrun.data.domains import build_domain, load_domains
from riverrun.data.schema import make_joiner, read_schema

__all__ = ["NAME", "soak"]

NAME = "written questions that work in no build of their database"
BUILDS = 4


def soak(*, quick: bool) -> list[Row]:
    """One row for each language."""
    rows = []
    for language in ("en", "zh"):
        never, number = 0, 0
        for name, written in load_asked(language).items():
            worked = _worked(name, language, 1 if quick else BUILDS)
            missing = [item.q for place, item in enumerate(written) if f"asked/{place}" not in worked]
            for text in missing:
                say(f"  {name}: {text}")
            never, number = never + len(missing), number + len(written)
        most = number // 4 if quick else number // 100  # one build may lack a table, and columns
        rows.append(Row(f"{NAME} ({language})", never, "questions", most, note=f"of {number}"))
    return rows


def _worked(name: str, language: str, builds: int) -> set[str]:
    domain, found = load_domains(language)[name], set()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(builds):
            path = Path(folder) / f"{seed}.sqlite"
            spelled = build_domain(domain, path, seed=seed)
            with closing(sqlite3.connect(path)) as connection:
                joiner = make_joiner(read_schema(path))
                asked = domain_questions(
                    load_asked(language)[name], spelled, connection, joiner, language=language, seed=seed
                )
            found |= {question.intent for question in asked}
    return found


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    chosen = read_options(options.parse_args(), ())
    before = machine()
    rows = soak(quick=chosen.quick)
    print(table(rows))
    write_report(chosen.json, before, rows)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
