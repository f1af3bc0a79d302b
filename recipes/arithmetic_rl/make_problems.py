"""Sums of two numbers from 1 to 49 after five solved ones: problems.jsonl to learn from, held_out.jsonl to measure on.

The two files share no sum, the other way round counted as the same one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

SOLVED = ((3, 14), (32, 5), (18, 29), (41, 26), (7, 45))
TRAIN, HELD_OUT = 400, 100


def main() -> None:
    here = Path(__file__).parent
    sums = [(a, b) for a in range(1, 50) for b in range(a, 50) if (a, b) not in SOLVED and (b, a) not in SOLVED]
    rng = random.Random(0)
    chosen = [tuple(rng.sample(pair, 2)) for pair in rng.sample(sums, TRAIN + HELD_OUT)]
    before = "".join(f"{a} + {b} = {a + b}\n" for a, b in SOLVED)
    for name, some in (("problems", chosen[:TRAIN]), ("held_out", chosen[TRAIN:])):
        rows = [{"id": f"{a}+{b}", "prompt": f"{before}{a} + {b} =", "answer": str(a + b)} for a, b in some]
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
