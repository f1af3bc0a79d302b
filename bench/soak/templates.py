"""Every built-in chat template against transformers: 200 random conversations a family, text and ids and labels.

`python -m bench.soak.templates [--quick] [--json FILE] [--seed N]`, also `make soak-templates`. Conversations hold
tools, calls, results, system turns, Chinese, emoji, and special tokens that users and tools wrote (`--quick`: 20 a
family). Equal must be the text, the ids where nobody wrote a special token, and the template's own special tokens
where somebody did; labels are compared with the difference of renderings. Needs transformers; no network.

Peers do not apply.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from bench.common import Row, main_of, parser, read_options, say, table, write_report
from bench.parts.machine import machine
from bench.parts.template_parity import problems_of, reference
from bench.parts.template_talks import FAMILIES

__all__ = ["soak"]

TALKS, QUICK = 200, 20


def soak(*, quick: bool, seed: int) -> list[Row]:
    """A row a family: conversations that differ, of all."""
    out: list[Row] = []
    count = QUICK if quick else TALKS
    for name in FAMILIES:
        began, different = time.monotonic(), 0
        with tempfile.TemporaryDirectory() as folder:
            other = reference(name, Path(folder))
            for number in range(count):
                problems = problems_of(name, other, random.Random(f"{name} {seed} {number}"))
                different += bool(problems)
                for problem in problems:
                    say(f"  {problem[:2000]}")
        say(f"  {name}: {count} conversations in {time.monotonic() - began:.1f} s, {different} differ")
        out.append(Row(f"chat template {name}: conversations that differ", different, f"of {count}", 0))
    return out


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    options.add_argument("--seed", type=int, default=1, help="of the conversations")
    chosen = read_options(options.parse_args(), ())
    began = time.monotonic()
    rows = soak(quick=chosen.quick, seed=chosen.rest.seed)
    print(table(rows))
    write_report(chosen.json, machine(), rows, seconds=time.monotonic() - began)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
