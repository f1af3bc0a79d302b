"""Problems of the four operations with the steps that lead to the answer, for models that learn arithmetic.

A line reads `37*24=(841;470,8880)888`: a problem, its work in brackets, the answer. The work is what a learner does on
paper, lowest digit first, so that a carry is always behind, in widths that follow from the operands: the sum; the
difference as an odometer shows it, then its sign; for each digit of the second factor its product and the sum so far;
in a division for each digit that is brought down what is divided, the divisor's multiples up to the first that is more,
`q`, the quotient's digit and the multiple that is taken away, then the rest: a digit is counted and never guessed.

A division is whole with a remainder: `617/25=24r17`, `600/25=24`. Of every kind one problem in ten is held out by a
hash of the problem itself (3+5 and 5+3 are one problem); rows never hold one of those, tests hold nothing else.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from riverrun.base.errors import InputError

__all__ = ["OPERATIONS", "Problem", "draw", "read_answer", "rows", "unseen"]

Op = Literal["+", "-", "*", "/"]
OPERATIONS: tuple[Op, ...] = ("+", "-", "*", "/")
HELD_OUT = 10
"""One problem in so many is never trained on."""
_WEIGHTS = {"+": 1.0, "-": 1.0, "*": 2.0, "/": 3.0}
"""How often an operation comes in rows: the harder ones more often."""
_ALL = 200
"""Up to this bound all problems are gone through."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Two operands, both whole and not negative; a divisor is at least 1."""

    op: Op
    a: int
    b: int

    @property
    def question(self) -> str:
        return f"{self.a}{self.op}{self.b}="

    @property
    def answer(self) -> str:
        if self.op == "/":
            quotient, rest = divmod(self.a, self.b)
            return f"{quotient}r{rest}" if rest else str(quotient)
        return str({"+": self.a + self.b, "-": self.a - self.b, "*": self.a * self.b}[self.op])

    @property
    def held_out(self) -> bool:
        """Whether it belongs to the tests; the same for a problem and its commuted twin."""
        a, b = sorted((self.a, self.b)) if self.op in "+*" else (self.a, self.b)
        return zlib.crc32(f"{a}{self.op}{b}".encode()) % HELD_OUT == 0

    @property
    def work(self) -> str:
        return {"+": _sum, "-": _difference, "*": _product, "/": _quotient}[self.op](self.a, self.b)

    @property
    def carries(self) -> int:
        """Carries of an addition or a multiplication (all its sums and products), borrows of a subtraction; of a
        division the subtractions that were needed, which are its quotient digits above 0."""
        if self.op == "+":
            return _carried(self.a, self.b)
        if self.op == "-":
            return _borrowed(max(self.a, self.b), min(self.a, self.b))
        if self.op == "*":
            return _multiplied(self.a, self.b)
        return sum(digit != "0" for digit in str(self.a // self.b))

    def solution(self, *, work: bool = True) -> str:
        """What a model is to write after the question."""
        return f"({self.work}){self.answer}" if work else self.answer


def _turned(number: int, width: int) -> str:
    """Lowest digit first, filled with zeros."""
    return str(number).zfill(width)[::-1]


def _sum(a: int, b: int) -> str:
    return _turned(a + b, max(len(str(a)), len(str(b))) + 1)


def _difference(a: int, b: int) -> str:
    width = max(len(str(a)), len(str(b)))
    return _turned((a - b) % 10**width, width) + ("+" if a >= b else "-")


def _product(a: int, b: int) -> str:
    parts, total, width = [], 0, len(str(a)) + 1
    for place, digit in enumerate(reversed(str(b))):
        part = a * int(digit)
        total += part * 10**place
        parts.append(_turned(part, width) + ("," + _turned(total, width + place) if place else ""))
    return ";".join(parts)


def _quotient(a: int, b: int) -> str:
    digits, width = str(a), len(str(b)) + 1
    first = min(len(str(b)), len(digits)) - 1
    parts, rest = [], int(digits[:first] or 0)
    for digit in digits[first:]:
        current = rest * 10 + int(digit)
        times, rest = divmod(current, b)
        multiples = [_turned(count * b, width) for count in range(times + 2)]
        taken = f",{multiples[times]}" if times else ""
        parts.append(f"{_turned(current, width)}:{','.join(multiples[1:])}q{times}{taken}")
    return ";".join([*parts, _turned(rest, width - 1)])


def _carried(a: int, b: int) -> int:
    count = carry = 0
    while a or b or carry:
        carry = (a % 10 + b % 10 + carry) // 10
        count += carry
        a, b = a // 10, b // 10
    return count


def _borrowed(high: int, low: int) -> int:
    count = borrow = 0
    while high or low:
        borrow = int(high % 10 - low % 10 - borrow < 0)
        count += borrow
        high, low = high // 10, low // 10
    return count


def _multiplied(a: int, b: int) -> int:
    count = total = 0
    for place, digit in enumerate(reversed(str(b))):
        carry = 0
        for each in reversed(str(a)):
            carry = (int(each) * int(digit) + carry) // 10
            count += carry > 0
        part = a * int(digit) * 10**place
        count += _carried(total, part)
        total += part
    return count


def draw(op: Op, within: int, rng: random.Random, *, plain: bool = True) -> Problem:
    """A problem with operands from 0 to `within`, all equally likely; a dividend is no less than its divisor, and
    divisors of every length are as likely.

    Without `plain` three problems in ten are of what that leaves rare: short operands, 0, 1 and round ones, differences
    near 0.
    """
    a, b = rng.randint(0, within), rng.randint(0, within)
    if not plain and rng.random() < 0.3:
        a, b = (_rare(within, rng) for _ in range(2))
        if op == "-" and rng.random() < 0.3:
            a = min(within, max(0, b + rng.randint(-20, 20)))
    if op == "/":
        b = min(within, max(1, int((within + 1) ** rng.random())))
        a = rng.randint(b, within)
    return Problem(op, a, b)


def _rare(within: int, rng: random.Random) -> int:
    if rng.random() < 0.1:
        return rng.choice((0, 1, 10, within))
    return rng.randrange(10 ** rng.randint(1, len(str(within)) - 1))


def rows(
    count: int, *, within: Sequence[int] = (100, 1000), seed: int = 0, work: bool = True
) -> Iterator[dict[str, str]]:
    """`count` rows {"id", "prompt", "completion"} to learn from, none held out; the bounds take turns at random.

    InputError for a bound below 10.
    """
    for bound in within:
        _check(bound)
    rng = random.Random(f"arithmetic/{seed}")
    made = 0
    while made < count:
        (op,) = rng.choices(OPERATIONS, [_WEIGHTS[each] for each in OPERATIONS])
        problem = draw(op, rng.choice(within), rng, plain=False)
        if problem.held_out:
            continue
        made += 1
        yield {"id": str(made), "prompt": problem.question, "completion": problem.solution(work=work)}


def unseen(op: Op, within: int, count: int, *, above: int = 0, seed: int = 0) -> list[Problem]:
    """`count` different held-out problems with operands to `within`, of which one at least is above `above`.

    Where all that there are can be gone through, every one is as likely, and fewer than `count` may be all; beyond
    that they are drawn as `draw` does. InputError for more than it is sensible to draw.
    """
    _check(within)
    rng = random.Random(f"unseen/{op}/{within}/{seed}")
    if within <= _ALL:
        every = [
            problem
            for a in range(within + 1)
            for b in range(op == "/", (a if op == "/" else within) + 1)
            if max(a, b) > above and (problem := Problem(op, a, b)).held_out
        ]
        return rng.sample(every, min(count, len(every)))
    if count > (most := within * within // (4 * HELD_OUT)):
        raise InputError(f"{count} problems of {op} within {within} are more than is drawn: ask for {most} at most")
    found = dict[Problem, None]()
    while len(found) < count:
        problem = draw(op, within, rng)
        if problem.held_out and max(problem.a, problem.b) > above:
            found[problem] = None
    return list(found)


def _check(within: int) -> None:
    if within < 10:
        raise InputError(f"operands within {within} are too few to hold some out: give 10 or more")


def read_answer(text: str) -> str:
    """The answer in what a model wrote after a question: its work in brackets is left out, and what follows a line."""
    return re.sub(r"\([^()]*\)", "", text).partition("\n")[0].strip()
