"""The query tool under thousands of changed attacks: nothing written, no file made, nothing told, every answer in time.

`python -m bench.soak.sql [--quick] [--json FILE] [--seed N]`, also `make soak-sql`. First the written attempts of
`bench/parts/sql_attempts.py`, then 5,000 seeded mutations of them (`--quick`: 500). What got anywhere is printed whole.

Peers do not apply.
"""

from __future__ import annotations

import time

from bench.common import Row, main_of, parser, read_options, say, table, write_report
from bench.parts import sql_attacks
from bench.parts.machine import machine
from bench.parts.sql_attempts import ATTEMPTS, mutations

__all__ = ["MUTATED", "soak"]

MUTATED = "SQL tool: mutations of the attempts"
MUTATIONS, QUICK = 5_000, 500
SECONDS = 0.2
"""The tool's own limit here: a runaway costs no more than this."""


def soak(*, quick: bool, seed: int) -> list[Row]:
    """The rows of the written attempts and of their mutations."""
    changed = [("mutation", sql) for sql in mutations(QUICK if quick else MUTATIONS, seed)]
    out: list[Row] = []
    for name, attempts, least in ((sql_attacks.NAME, ATTEMPTS, 60), (MUTATED, changed, 500)):
        verdicts = []
        for verdict in sql_attacks.attack(attempts, seconds=SECONDS):
            verdicts.append(verdict)
            if verdict.problems:
                say(f"  {', '.join(verdict.problems)}: {verdict.sql!r} -> {verdict.said!r}")
            if len(verdicts) % 1000 == 0:
                say(f"  {name}: {len(verdicts)} of {len(attempts)}")
        out += sql_attacks.rows_of(verdicts, SECONDS, least=least, name=name)
    return out


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    options.add_argument("--seed", type=int, default=1, help="of the mutations")
    chosen = read_options(options.parse_args(), ())
    began = time.monotonic()
    rows = soak(quick=chosen.quick, seed=chosen.rest.seed)
    print(table(rows))
    write_report(chosen.json, machine(), rows, seconds=time.monotonic() - began)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
