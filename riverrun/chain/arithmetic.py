"""How well a model computes, and what it gets wrong: by operation, digits, carries, and the way numbers are tokens.

Every problem is held out (`data.arithmetic`), asked as a conversation of one question, and answered greedily. An answer
is right when what is left without the work in brackets is the answer to the character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json, write_text
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.data.arithmetic import OPERATIONS, Problem, read_answer, unseen
from riverrun.evaluate.statistics import wilson
from riverrun.web.charts import Bar, BarGroup, bar_chart
from riverrun.web.page import Both, Content, badge, details, join, page, paragraph, section, table, tiles

__all__ = ["BOUNDS", "NAMES", "Answer", "ask", "problems", "render", "summarize", "write_arithmetic"]

BOUNDS = (100, 1000)
LONGEST = 200
"""Tokens of the longest answer with work; digit by digit none within 1,000 takes more than 120."""
NAMES = {
    "+": Both("addition", "加法"),
    "-": Both("subtraction", "减法"),
    "*": Both("multiplication", "乘法"),
    "/": Both("division with remainder", "带余除法"),
}
EXAMPLES = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """A problem within a bound and everything that a model wrote."""

    problem: Problem
    within: int
    written: str

    @property
    def given(self) -> str:
        return read_answer(self.written)

    @property
    def right(self) -> bool:
        return self.given == self.problem.answer

    @property
    def fault(self) -> str:
        """Where it went wrong: `work` (the steps differ first), `answer` (right steps, wrong answer), `end` (it never
        ended its steps); empty for a right answer."""
        if self.right:
            return ""
        opened, closed = "(" in self.written, ")" in self.written
        if opened and not closed:
            return "end"
        return "answer" if not opened or f"({self.problem.work})" in self.written else "work"


def problems(count: int, bounds: Sequence[int] = BOUNDS, seed: int = 0) -> list[tuple[Problem, int]]:
    """`count` held-out problems of every operation within every bound, those of a larger one above the smaller."""
    out = []
    for below, bound in zip((0, *bounds), bounds, strict=False):
        for op in OPERATIONS:
            out += [(problem, bound) for problem in unseen(op, bound, count, above=below, seed=seed)]
    return out


def ask(model: LanguageModel, asked: Sequence[tuple[Problem, int]]) -> list[Answer]:
    """Every problem in a conversation of its own, greedily."""
    params = SamplingParams(temperature=0.0, max_tokens=LONGEST)
    requests = [Request((Message.of("user", problem.question),), params=params) for problem, _ in asked]
    done = model.generate(requests)
    return [
        Answer(problem, within, completion.message.require_text("model"))
        for (problem, within), completion in zip(asked, done, strict=True)
    ]


def _cells(answers: Iterable[Answer], key: Callable[[Answer], str]) -> list[dict[str, Any]]:
    """Right and all by a key, in the key's order, with Wilson's interval."""
    counts: dict[str, list[int]] = {}
    for answer in answers:
        cell = counts.setdefault(key(answer), [0, 0])
        cell[0] += answer.right
        cell[1] += 1
    out = []
    for name, (right, n) in sorted(counts.items(), key=lambda item: (len(item[0]), item[0])):
        low, high = wilson(right, n)
        out.append({"key": name, "right": right, "n": n, "accuracy": right / n, "low": low, "high": high})
    return out


def _digits(answer: Answer) -> str:
    if answer.problem.op == "/":
        return f"{len(str(answer.problem.a))}/{len(str(answer.problem.b))}"
    shorter, longer = sorted(len(str(each)) for each in (answer.problem.a, answer.problem.b))
    return f"{longer}{answer.problem.op}{shorter}"


def summarize(answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy by bound, by operation, by digits of the operands and by carries; faults by kind; some wrong answers."""
    wrong = [answer for answer in answers if not answer.right]
    return {
        "within": _cells(answers, lambda answer: str(answer.within)),
        "operations": {
            str(bound): _cells((a for a in answers if a.within == bound), lambda answer: answer.problem.op)
            for bound in sorted({answer.within for answer in answers})
        },
        "digits": {op: _cells((a for a in answers if a.problem.op == op), _digits) for op in OPERATIONS},
        "carries": {
            op: _cells((a for a in answers if a.problem.op == op), lambda answer: str(answer.problem.carries))
            for op in OPERATIONS
        },
        "faults": {
            op: {kind: sum(a.fault == kind for a in wrong if a.problem.op == op) for kind in ("work", "answer", "end")}
            for op in OPERATIONS
        },
        "examples": [
            {
                "question": answer.problem.question,
                "right": answer.problem.answer,
                "given": answer.given,
                "work": answer.problem.work,
                "written": answer.written,
                "fault": answer.fault,
            }
            for op in OPERATIONS
            for answer in [a for a in wrong if a.problem.op == op][:EXAMPLES]
        ],
    }


def _bars(cells: Sequence[Mapping[str, Any]], name: Content) -> list[Bar]:
    return [Bar(name, cell["accuracy"], cell["low"], cell["high"]) for cell in cells]


def _by_operation(runs: Mapping[str, Mapping[str, Any]], bound: str, goal: float | None) -> Content:
    """One group an operation, one bar a way of writing numbers."""
    groups = []
    for op in OPERATIONS:
        bars = []
        for name, summary in runs.items():
            bars += _bars([c for c in summary["operations"].get(bound, []) if c["key"] == op], name)
        groups.append(BarGroup(NAMES[op], bars))
    title = Both(f"Unseen problems within {bound}: right answers", f"{bound} 以内未见过的题:正确率")
    return bar_chart(groups, title=title, percent=True, limit=goal)


def _split(summary: Mapping[str, Any], kind: str, title: Content) -> Content:
    """A chart for each operation, one bar a key."""
    charts = []
    for op in OPERATIONS:
        groups = [BarGroup(f"{cell['key']} (n = {cell['n']})", _bars([cell], NAMES[op])) for cell in summary[kind][op]]
        charts.append(bar_chart(groups, title=join(NAMES[op], ": ", title), percent=True))
    return join(*charts)


_FAULTS = {
    "work": Both("the steps", "步骤有误"),
    "answer": Both("the answer after right steps, or no steps", "步骤正确而答案有误,或没有步骤"),
    "end": Both("no end of the steps", "步骤没有结束"),
}


def _errors(summary: Mapping[str, Any]) -> Content:
    columns = [Both("Operation", "运算"), *_FAULTS.values()]
    counts = [[NAMES[op], *(summary["faults"][op][kind] for kind in _FAULTS)] for op in OPERATIONS]
    heads = [
        Both("Problem", "题目"),
        Both("Right", "正确答案"),
        Both("Given", "模型答案"),
        Both("Right steps", "正确步骤"),
        Both("What it wrote", "模型所写"),
        Both("Fault", "错误所在"),
    ]
    rows = [
        [row["question"], row["right"], row["given"], row["work"], row["written"], _FAULTS[row["fault"]]]
        for row in summary["examples"]
    ]
    return join(
        table(columns, counts, numeric=(1, 2, 3), caption=Both("Where errors begin", "错误从哪里开始")),
        details(Both("Wrong answers", "错误的答案"), table(heads, rows), open=len(rows) <= EXAMPLES),
    )


def _why(name: str, summary: Mapping[str, Any]) -> Content:
    """Where the wrong answers are: most of which operation, and how many begin in the steps."""
    counts = {op: sum(summary["faults"][op].values()) for op in OPERATIONS}
    wrong = sum(counts.values())
    if not wrong:
        return paragraph(Both(f"{name}: no wrong answer.", f"{name}:没有错误答案。"))
    op = max(counts, key=lambda each: counts[each])
    worst = min((cell for cell in summary["digits"][op]), key=lambda cell: (cell["accuracy"], -cell["n"]))
    steps = sum(summary["faults"][each]["work"] for each in OPERATIONS)
    share = f"{100 * worst['accuracy']:.1f} %"
    return paragraph(
        Both(
            f"{name}: {wrong} wrong answers, {counts[op]} of them in {NAMES[op].en} (least at {worst['key']} digits: "
            f"{share} right); {steps} begin in the steps, {wrong - steps} behind right ones or without any.",
            f"{name}:{wrong} 个错误答案,其中{NAMES[op].zh}占 {counts[op]} 个(最低为 {worst['key']} 位:正确率 {share});"
            f"{steps} 个从步骤开始出错,{wrong - steps} 个步骤正确或没有步骤。",
        )
    )


def render(runs: Mapping[str, Mapping[str, Any]], goals: Mapping[int, float]) -> str:
    """The page. `runs` are summaries by what was compared; the first is the one that goals and details are of."""
    name, summary = next(iter(runs.items()))
    shown = []
    for cell in summary["within"]:
        goal = goals.get(int(cell["key"]))
        worst = min(each["accuracy"] for each in summary["operations"][cell["key"]])
        met = "" if goal is None else badge(f"≥ {100 * goal:.0f} %", kind="good" if worst >= goal else "bad")
        label = Both(f"within {cell['key']}, all operations", f"{cell['key']} 以内,四则运算")
        shown.append((label, f"{100 * cell['accuracy']:.2f} %", join(f"n = {cell['n']}; ", met)))
    words = Both(
        "Every problem is one that training never saw. Work in brackets is the model's own; the answer behind it is "
        "what counts. Whiskers are 95 % intervals.",
        "所有题目在训练中都未出现过。括号中的步骤由模型自己写出,只按其后的答案计分。须线为 95 % 区间。",
    )
    parts = [
        section(Both("In short", "概要"), tiles(shown), paragraph(words)),
        section(Both("Why it is not 100 %", "为什么不是 100 %"), *(_why(each, of) for each, of in runs.items())),
        section(
            Both("By operation and way of writing numbers", "按运算与数字写法"),
            *(_by_operation(runs, cell["key"], goals.get(int(cell["key"]))) for cell in summary["within"]),
        ),
        section(
            Both(f"By digits of the operands ({name})", f"按操作数位数({name})"),
            _split(summary, "digits", Both("by digits", "按位数")),
        ),
        section(
            Both(f"By carries, borrows or quotient digits ({name})", f"按进位、借位或商的位数({name})"),
            _split(summary, "carries", Both("by their number", "按个数")),
        ),
        *(section(Both(f"Errors: {each}", f"错误:{each}"), _errors(of)) for each, of in runs.items()),
    ]
    return page(Both("Arithmetic", "算术能力"), *parts)


def write_arithmetic(folder: Path, runs: Mapping[str, Sequence[Answer]], goals: Mapping[int, float]) -> dict[str, Any]:
    """`arithmetic.json` and `arithmetic.html` for the answers of one model or several; the summaries by name."""
    summaries = {name: summarize(answers) for name, answers in runs.items()}
    write_json(folder / "arithmetic.json", summaries)
    write_text(folder / "arithmetic.html", render(summaries, goals))
    return summaries
