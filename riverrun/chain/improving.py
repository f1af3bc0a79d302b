"""What to change after a round of training that missed its bar: one change, from figures alone.

A round is a training and its score on the development questions. Evidence is what fails (by intent, or by kind where
questions are synthesised) and how the loss went: hardly fallen, still falling, or low while new questions fail. A
change builds on the best round so far; what did not gain is dropped, and is not proposed again before something else
has gained. Nothing here looks at retention, safety or the sealed test, and only what the trainer can do is proposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean, median
from typing import Any

from riverrun.evaluate.statistics import Rate

__all__ = ["Change", "Loss", "Round", "Settings", "best", "most_work", "propose", "stop_reason", "targets"]

FIRST, DATA, EPOCHS, FASTER, SLOWER, RANK = "first", "data", "epochs", "higher rate", "lower rate", "rank"
HARDLY, LOW = 0.5, 0.1
"""The loss at the end, over that of the untrained model: above the first little was learned, below the second most."""
FALLING = 0.85
"""Loss at the end over loss in the middle, below which it is still falling."""
FEW_STEPS = 60
"""With fewer steps a loss that is still high says nothing about the rate."""
MOST_RATE, LEAST_RATE, MOST_RANK = 4e-3, 5e-5, 64
NEAR = 0.15
"""A group this close below the bar gets as many new questions as it has had, others twice as many."""
LEAST_NEW, MOST_TRIPLED = 8, 800
"""New questions of a group at least; new ones of one change that may be more than there were, up to twice as many."""
SHOWN = 6


@dataclass(frozen=True)
class Settings:
    """What a change may change in the trainer's settings; `epochs` are those over all questions since the base."""

    rank: int
    alpha: float
    learning_rate: float
    epochs: int


@dataclass(frozen=True)
class Change:
    """One proposal. `start` is the round whose adapter is trained further, 0 for the base model.

    `passes` are the epochs of this round, `more` the new training questions by group.
    """

    what: str
    why: str
    settings: Settings
    passes: int
    start: int = 0
    more: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """Mean loss of the untrained model, in the middle fifth of a training, and in its last tenth."""

    start: float
    middle: float
    end: float

    @classmethod
    def of(cls, losses: Sequence[float], start: float | None = None) -> Loss:
        """`start` for a training that went on from an adapter: the first loss was then not the base model's."""
        count = len(losses)
        tenth = max(1, count // 10)
        first = mean(losses[:tenth]) if start is None else start
        from_, to = 2 * count // 5, max(3 * count // 5, 2 * count // 5 + 1)
        return cls(first, mean(losses[from_:to]), mean(losses[-tenth:]))


@dataclass(frozen=True)
class Round:
    """A finished round: what was changed, what came of it on the development questions, and whether it is built on.

    `gain` compares with the best round before, question by question: difference, low, high, p; empty in the first.
    """

    number: int
    change: Change
    success: Rate
    groups: Mapping[str, Rate]
    loss: Loss
    steps: int
    gain: Mapping[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        return not self.gain or self.gain["difference"] > 0

    def as_dict(self) -> dict[str, Any]:
        groups = {name: rate.as_dict() for name, rate in self.groups.items()}
        return asdict(self) | {"success": self.success.as_dict(), "groups": groups, "kept": self.kept}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Round:
        change = Change(**{**value["change"], "settings": Settings(**value["change"]["settings"])})
        groups = {name: _rate(rate) for name, rate in value["groups"].items()}
        loss = Loss(**value["loss"])
        return cls(value["number"], change, _rate(value["success"]), groups, loss, value["steps"], value["gain"])


def _rate(value: Mapping[str, Any]) -> Rate:
    return Rate(value["successes"], value["n"])


def best(history: Sequence[Round]) -> Round:
    """The round with the highest development score, of equals the earliest."""
    return max(history, key=lambda each: (each.success.value, -each.number))


def stop_reason(history: Sequence[Round], *, most: int, bar: float | None, patience: int) -> str:
    """Why there is no further round: met, most or patience; empty while there may be one."""
    if not history:
        return ""
    top = best(history)
    if bar is not None and top.success.value >= bar:
        return "met"
    if len(history) >= most:
        return "most"
    return "patience" if history[-1].number - top.number >= patience else ""


def targets(history: Sequence[Round], trained: Mapping[str, int], bar: float | None) -> dict[str, int]:
    """New training questions that each failing group should get; `trained` is what each has had so far."""
    wanted = 1.0 if bar is None else bar
    failing = {name: rate for name, rate in best(history).groups.items() if rate.value < wanted}
    usual = round(median(trained.values())) if trained else 0
    counts = {}
    for name, rate in failing.items():
        had = max(LEAST_NEW, trained.get(name) or usual)
        counts[name] = had if wanted - rate.value <= NEAR else 2 * had
    limit = _most_new(sum(trained.values()))
    scale = min(1.0, limit / max(1, sum(counts.values())))
    return {name: max(1, int(count * scale)) for name, count in counts.items()}


def _most_new(questions: int) -> int:
    """New questions of one change at most."""
    return max(questions, min(2 * questions, MOST_TRIPLED))


def most_work(rounds: int, questions: int) -> float:
    """Training of so many rounds at most, in units of the first round's (of so many questions)."""
    sizes = [max(1, questions)]  # after each change of the data
    work = sizes[0]
    for kept in range(rounds - 1):
        anew = max(sizes[data] * (1 + kept - data) for data in range(kept + 1))
        new = _most_new(sizes[-1])
        work += max(anew, new + min(new, sizes[-1]))
        sizes.append(sizes[-1] + new)
    return work / sizes[0]


def propose(history: Sequence[Round], *, bar: float | None, drawn: Mapping[str, int]) -> Change | None:
    """The next change, or None when nothing is left to try. `drawn`: new questions that can be had, by group."""
    top = best(history)
    refused = {each.change.what for each in history if each.number > top.number}
    undone = {FASTER: SLOWER, SLOWER: FASTER}
    refused |= {undone[each.change.what] for each in history if each.change.what in undone}
    first = history[0].change.settings
    return next((change for change in _candidates(top, first, bar, drawn, refused) if change.what not in refused), None)


def _candidates(
    top: Round, first: Settings, bar: float | None, drawn: Mapping[str, int], refused: set[str]
) -> Iterator[Change]:
    """All changes that can be made, the one that the evidence speaks for first."""
    now, loss = top.change.settings, top.loss
    went = f"the loss went from {loss.start:.3g} over {loss.middle:.3g} to {loss.end:.3g}"
    changes: dict[str, Change] = {}
    if more := {name: count for name, count in drawn.items() if count}:
        changes[DATA] = Change(DATA, _failing(top, more, bar), now, first.epochs, top.number, more)
    longer = replace(now, epochs=now.epochs + first.epochs)
    changes[EPOCHS] = Change(EPOCHS, f"{went}: it can be trained longer", longer, first.epochs, top.number)
    if 2 * now.learning_rate <= MOST_RATE:
        faster = replace(now, learning_rate=2 * now.learning_rate)
        changes[FASTER] = Change(FASTER, f"{went}: little was learned in {top.steps} steps", faster, now.epochs)
    if now.learning_rate / 2 >= LEAST_RATE:
        slower = replace(now, learning_rate=now.learning_rate / 2)
        changes[SLOWER] = Change(SLOWER, f"{went}, and new questions fail: it learned by heart", slower, now.epochs)
    if 2 * now.rank <= MOST_RANK:
        wider = replace(now, rank=2 * now.rank, alpha=2 * now.alpha)
        helped = "more data did not help" if DATA in refused else "there is no more data"
        changes[RANK] = Change(RANK, f"{went}, and {helped}", wider, now.epochs)
    hardly, low = loss.end > HARDLY * loss.start, loss.end <= LOW * loss.start
    falling = loss.end < FALLING * loss.middle
    if hardly and top.steps >= FEW_STEPS:
        order = [FASTER, EPOCHS, DATA, RANK]
    elif low:
        order = [DATA, RANK, SLOWER]
    else:
        order = [DATA, *([EPOCHS] if hardly or falling else []), RANK, FASTER]
    return (changes[what] for what in order if what in changes)


def _failing(top: Round, more: Mapping[str, int], bar: float | None) -> str:
    """The groups that fail most, with their counts and intervals."""
    worst = sorted(more, key=lambda name: (top.groups[name].successes - top.groups[name].n, name))
    told = []
    for name in worst[:SHOWN]:
        rate = top.groups[name]
        told.append(f"{name} {rate.successes} of {rate.n} [{rate.interval.low:.0%}, {rate.interval.high:.0%}]")
    others = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
    return f"below {1.0 if bar is None else bar:.0%}: {', '.join(told)}{others}"
