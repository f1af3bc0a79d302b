"""Finding a peer's best setting, and comparing it with ours: tries on a short budget, then turns on the same rows.

A line is one kind of setting in growing batches. Each of its points is tried once; a line ends where a bigger batch has
become slower than `DROP` of the line's best or does not run, and what was left out is told. A setting that fails is
told with its last words and does not end the bench.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.common import middle, say
from riverrun.base.errors import RiverrunError

__all__ = ["Answer", "Search", "Setting", "Try", "fair_problems", "rate", "rates_of", "ratio", "search", "turns"]

Answer = Mapping[str, Any]
Setting = Mapping[str, Any]
Try = Callable[[Setting], Answer]
DROP = 0.85
NOISE = 0.02


def rate(answer: Answer) -> float:
    """Useful tokens a second."""
    return float(answer["row_tokens"] / answer["seconds"])


def rates_of(results: Mapping[str, Sequence[Answer]]) -> dict[str, list[float]]:
    return {name: [rate(answer) for answer in answers] for name, answers in results.items()}


@dataclass
class Search:
    """Tokens a second of every setting that ran, why others did not, and the settings themselves."""

    rates: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The fastest; RiverrunError when none ran."""
        if not self.rates:
            raise RiverrunError(f"no setting of the peer ran: {'; '.join(f'{k}: {v}' for k, v in self.failed.items())}")
        return max(self.rates, key=self.rates.__getitem__)

    def run(self, name: str, setting: Setting, contest: Try) -> float | None:
        """Try one setting."""
        self.settings[name] = dict(setting)
        say(f"  try: {name}")
        try:
            self.rates[name] = rate(contest(setting))
        except (RiverrunError, ZeroDivisionError) as error:
            self.failed[name] = str(error)
            say(f"    {error}")
            return None
        say(f"    {self.rates[name]:.1f} tokens/s")
        return self.rates[name]


def search(lines: Mapping[str, Sequence[tuple[str, Setting]]], contest: Try) -> Search:
    """Try every line; `lines` gives each one's points (name, setting) by growing batch."""
    found = Search()
    for points in lines.values():
        best = 0.0
        for number, (name, setting) in enumerate(points):
            got = found.run(name, setting, contest)
            if got is None or got < DROP * best:
                why = f"{name} failed" if got is None else f"slower and slower, {name} {got:.0f}"
                found.failed |= {later: f"not tried: {why}" for later, _ in points[number + 1 :]}
                break
            best = max(best, got)
    return found


def turns(
    contestants: Mapping[str, Callable[[], Answer]], rounds: int, ours: str
) -> tuple[dict[str, list[Answer]], dict[str, str]]:
    """All take turns. (answers by name, last words of the peers that failed: they are left out); ours may not fail."""
    results: dict[str, list[Answer]] = {}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for name, contest in contestants.items():
            if name in failed:
                continue
            say(f"  round {number + 1}/{rounds}: {name}")
            try:
                results.setdefault(name, []).append(contest())
            except RiverrunError as error:
                if name.startswith(ours):
                    raise
                failed[name] = str(error)
                say(f"    {error}")
    return {name: answers for name, answers in results.items() if name not in failed}, failed


def fair_problems(results: Mapping[str, Sequence[Answer]], ours: str, *, labels: bool = True) -> list[str]:
    """Why two sides did not do the same work: other tokens, other labels, or another loss before training.

    Without `labels` theirs are not compared: litgpt's pre-training learns the token behind a sequence as well.
    """
    own, problems = results[ours][0], []
    for name, answers in results.items():
        theirs = answers[0]
        for key in ("row_tokens", "label_tokens") if labels else ("row_tokens",):
            if theirs[key] != own[key]:
                problems.append(f"{name} has {theirs[key]} {key.replace('_', ' ')}, ours {own[key]}")
        if theirs.get("first_loss") and abs(theirs["first_loss"] / own["first_loss"] - 1) > NOISE:
            problems.append(f"{name} starts at loss {theirs['first_loss']:.4f}, ours at {own['first_loss']:.4f}")
    return problems


def ratio(results: Mapping[str, Sequence[Answer]], ours: str, name: str) -> float:
    """Median of ours over the median of the other."""
    rates = rates_of(results)
    return middle(rates[ours]) / middle(rates[name])
