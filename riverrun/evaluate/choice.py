"""Open-book multiple choice: the page stands in the prompt, the model's probability of each option decides.

Every question is asked in all rotations of its options (`circular`). The pick is the option whose continuation has the
greatest total log-probability; the mean per token is kept beside it, since long options have smaller totals. The
rotations of one question follow one another, so that a model with a prefix cache reads the page once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from riverrun.base.errors import InputError
from riverrun.base.protocols import LanguageModel
from riverrun.base.types import Message
from riverrun.evaluate.circular import Outcome, by_question, letters, measure, rotations
from riverrun.evaluate.statistics import Difference, PairedComparison, Rate, compare_outcomes, paired_bootstrap

__all__ = [
    "Choice",
    "ChoiceComparison",
    "ChoiceRecord",
    "Reading",
    "compare",
    "default_answer",
    "default_prompt",
    "run",
    "score",
]

Prompt = Callable[[str, str, Sequence[str]], str]
Answer = Callable[[str, str], str]
Reading = Literal["total", "mean"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with its options, the index of the right one, and the id of the page that answers it."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    page: str = ""

    def __post_init__(self) -> None:
        letters(len(self.options))
        if not 0 <= self.answer < len(self.options):
            raise InputError(
                f"choice '{self.id}': the answer must be an index from 0 to {len(self.options) - 1}, got {self.answer}"
            )
        if len(set(self.options)) < len(self.options):
            raise InputError(f"choice '{self.id}' has the same option twice: {', '.join(self.options)}")

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, id: str = "") -> Choice:
        """Read {page, question, options, answer}; the id is page and question unless given."""
        if missing := [key for key in ("question", "options", "answer") if key not in value]:
            raise InputError(f"a choice lacks the key '{missing[0]}': {str(dict(value))[:160]}")
        question, options = str(value["question"]), tuple(map(str, value["options"]))
        page = str(value.get("page") or "")
        name = str(value.get("id") or id or f"{page}: {question}")
        return cls(name, question, options, int(value["answer"]), page)


@dataclass(frozen=True, slots=True)
class ChoiceRecord:
    """One rotation: summed and per-token log-probabilities (nats) of each option in the order shown."""

    id: str
    pattern: tuple[int, ...]
    options: tuple[str, ...]
    answer: int
    totals: tuple[float, ...]
    means: tuple[float, ...]

    def picked(self, reading: Reading = "total") -> int:
        """The place with the greatest figure, the first of equal ones."""
        figures = self.totals if reading == "total" else self.means
        return max(range(len(figures)), key=figures.__getitem__)

    def outcome(self, reading: Reading = "total") -> Outcome:
        return Outcome(self.id, self.pattern, self.answer, self.picked(reading))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ChoiceRecord:
        lists = {key: tuple(value[key]) for key in ("pattern", "options", "totals", "means")}
        return cls(id=value["id"], answer=value["answer"], **lists)


def default_prompt(passage: str, question: str, options: Sequence[str]) -> str:
    """Page, question, lettered options, one line each."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters(len(options)), options, strict=True))
    return f"{passage}\n\nQuestion: {question}\n{listed}\nAnswer with the letter and the text of the right option."


def default_answer(letter: str, option: str) -> str:
    return f"{letter}. {option}"


def run(
    model: LanguageModel,
    items: Sequence[Choice],
    *,
    passages: Mapping[str, str] | None = None,
    system: str = "",
    prompt: Prompt = default_prompt,
    answer: Answer = default_answer,
) -> list[ChoiceRecord]:
    """Score every rotation of every question. `passages` maps page ids to texts; InputError when a page lacks."""
    texts = {} if passages is None else passages
    if absent := sorted({item.page for item in items if item.page and item.page not in texts}):
        raise InputError(f"{len(absent)} pages that questions name are not there, the first is '{absent[0]}'")
    opening = (Message.of("system", system),) if system else ()
    records = []
    for item in items:
        for variant in rotations(item.options, item.answer):
            text = prompt(texts.get(item.page, ""), item.question, variant.options)
            named = zip(letters(len(variant.options)), variant.options, strict=True)
            scores = model.score((*opening, Message.of("user", text)), [answer(*pair) for pair in named])
            records.append(
                ChoiceRecord(
                    item.id,
                    variant.pattern,
                    variant.options,
                    variant.answer,
                    tuple(each.total for each in scores),
                    tuple(each.mean for each in scores),
                )
            )
    return records


def _right(records: Sequence[ChoiceRecord], reading: Reading) -> dict[str, list[bool]]:
    groups = by_question([record.outcome(reading) for record in records])
    return {name: [outcome.correct for outcome in group] for name, group in groups.items()}


def score(records: Sequence[ChoiceRecord]) -> dict[str, Any]:
    """Circular metrics of the picks by total, with Wilson's interval for `perf`; the same by mean under `by_mean`."""
    out = [
        measure([record.outcome(reading) for record in records]).as_dict()
        | {"perf_interval": Rate.of([all(group) for group in _right(records, reading).values()]).as_dict()}
        for reading in ("total", "mean")
    ]
    return out[0] | {"by_mean": out[1]}


@dataclass(frozen=True, slots=True)
class ChoiceComparison:
    """`perf`: questions right on all rotations (Tango, McNemar). `acc`: mean of each question's share (bootstrap)."""

    perf: PairedComparison
    acc: Difference

    def as_dict(self) -> dict[str, Any]:
        return {"perf": self.perf.as_dict(), "acc": self.acc._asdict()}


def compare(
    before: Sequence[ChoiceRecord], after: Sequence[ChoiceRecord], reading: Reading = "total"
) -> ChoiceComparison:
    """Paired by question; the rotations of a question count as one item, since they are not independent."""
    first, second = _right(before, reading), _right(after, reading)
    if apart := sorted(set(first) ^ set(second)):
        raise InputError(
            f"the two runs differ in {len(apart)} questions, the first is '{apart[0]}': compare equal sets"
        )
    pairs = [(first[name], second[name]) for name in first]
    return ChoiceComparison(
        compare_outcomes([all(one) for one, _ in pairs], [all(two) for _, two in pairs]),
        paired_bootstrap([sum(one) / len(one) for one, _ in pairs], [sum(two) / len(two) for _, two in pairs]),
    )
