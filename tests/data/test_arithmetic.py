"""Arithmetic to learn from: right answers, steps that lead to them, and a hold-out that nothing leaks through."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.data.arithmetic import HELD_OUT, OPERATIONS, Problem, draw, read_answer, rows, unseen

numbers = st.integers(0, 1000)


def replayed(problem: Problem) -> str:
    """The answer that follows from the written steps alone: digits are read, nothing is computed from the operands."""
    if problem.op == "+":
        return str(int(problem.work[::-1]))
    if problem.op == "-":
        shown, sign = int(problem.work[-2::-1]), problem.work[-1]
        return str(shown) if sign == "+" else str(shown - 10 ** (len(problem.work) - 1))
    if problem.op == "*":
        return str(int(problem.work.split(";")[-1].split(",")[-1][::-1]))
    *steps, rest = problem.work.split(";")
    quotient = int("".join(re.findall(r"q(\d)", problem.work)))
    for step in steps:
        current, listed, digit, taken = re.fullmatch(r"(\d+):([\d,]+)q(\d),?(\d*)", step).groups()  # type: ignore[union-attr]
        below = [each for each in listed.split(",") if int(each[::-1]) <= int(current[::-1])]
        assert len(below) == listed.count(",") == int(digit)
        assert taken == (below[-1] if below else "")
        assert int(taken[::-1] or 0) == int(digit) * problem.b <= int(current[::-1])
    left = int(rest[::-1])
    return f"{quotient}r{left}" if left else str(quotient)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(st.sampled_from(OPERATIONS), numbers, numbers)
def test_answer_and_steps_agree_with_integers(op: str, a: int, b: int) -> None:
    problem = Problem(op, a, max(b, 1) if op == "/" else b)  # type: ignore[arg-type]
    exact = {"+": a + b, "-": a - b, "*": a * b}.get(op)
    if exact is not None:
        assert int(problem.answer) == exact
    else:
        quotient, _, rest = problem.answer.partition("r")
        assert int(quotient) * problem.b + int(rest or 0) == a
        assert 0 <= int(rest or 0) < problem.b
        assert rest != "0"
    assert replayed(problem) == problem.answer
    assert read_answer(problem.solution()) == read_answer(problem.solution(work=False)) == problem.answer
    assert set(problem.solution()) <= set("0123456789()+-,;:qr")


def test_steps_of_known_problems() -> None:
    assert Problem("+", 345, 678).solution() == "(3201)1023"
    assert Problem("-", 345, 678).solution() == "(766-)-333"
    assert Problem("*", 37, 24).solution() == "(841;470,8880)888"
    assert Problem("/", 617, 25).solution() == "(160:520,050,570q2,050;711:520,050,570,001,521q4,001;71)24r17"
    assert Problem("/", 3, 25).solution() == "(300:520q0;30)0r3"


@pytest.mark.parametrize(
    ("problem", "count"),
    [(Problem("+", 95, 7), 2), (Problem("+", 12, 7), 0), (Problem("-", 7, 100), 2), (Problem("-", 77, 12), 0),
     (Problem("*", 12, 3), 0), (Problem("*", 15, 3), 1), (Problem("/", 617, 25), 2), (Problem("/", 600, 6), 1)],
)  # fmt: skip
def test_carries_are_counted(problem: Problem, count: int) -> None:
    assert problem.carries == count


def test_rows_hold_no_problem_of_the_tests_in_either_order() -> None:
    kept = {row["prompt"] for row in rows(6000, seed=3)}
    for op in OPERATIONS:
        for bound, above in ((100, 0), (1000, 100)):
            for problem in unseen(op, bound, 150, above=above):
                assert problem.held_out
                assert above < max(problem.a, problem.b) <= bound
                assert problem.question not in kept
                if op in "+*":
                    assert Problem(op, problem.b, problem.a).held_out
                    assert f"{problem.b}{op}{problem.a}=" not in kept


def test_a_tenth_of_all_problems_is_held_out() -> None:
    for op in OPERATIONS:
        share = sum(Problem(op, a, b).held_out for a in range(1, 101) for b in range(1, 101)) / 10_000
        assert abs(share - 1 / HELD_OUT) < 0.015


def test_rows_are_the_same_for_the_same_seed_and_right() -> None:
    first, again, other = (list(rows(300, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert {row["prompt"].strip("0123456789=") for row in first} == set(OPERATIONS)
    assert all("(" not in row["completion"] for row in rows(50, work=False))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sampled_from(OPERATIONS), st.integers(10, 1000), st.integers(0, 99), st.booleans())
def test_drawn_operands_keep_to_their_bound(op: str, within: int, seed: int, plain: bool) -> None:
    problem = draw(op, within, random.Random(seed), plain=plain)  # type: ignore[arg-type]
    assert 0 <= problem.a <= within
    assert 0 <= problem.b <= within
    assert op != "/" or 1 <= problem.b <= problem.a


def test_small_bounds_are_gone_through() -> None:
    every = {problem.question for problem in unseen("/", 60, 10_000)}
    assert every == {f"{a}/{b}=" for a in range(1, 61) for b in range(1, a + 1) if Problem("/", a, b).held_out}
    assert len(unseen("*", 100, 50)) == 50
    assert len({problem.question for problem in unseen("*", 1000, 300, above=100)}) == 300


def test_a_bound_too_small_to_hold_some_out_is_refused() -> None:
    with pytest.raises(InputError, match="give 10 or more"):
        list(rows(1, within=(5,)))
    with pytest.raises(InputError, match="give 10 or more"):
        unseen("+", 9, 1)
    with pytest.raises(InputError, match="ask for 2250 at most"):
        unseen("+", 300, 9000)


@pytest.mark.parametrize(
    ("written", "answer"),
    [("(05)15", "15"), ("15", "15"), ("(0;5,1)(2) 15\nmore", "15"), ("(051", "(051"), ("", "")],
)
def test_an_answer_is_read_behind_its_work(written: str, answer: str) -> None:
    assert read_answer(written) == answer
