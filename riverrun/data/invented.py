"""An invented country as training text: towns, people, devices and rivers with facts that agree with one another.

No model can know these facts, so what a model says of them afterwards it has learned from the text made here. Every
fact is told in several wordings, so that it is the fact that is learned and not a string; other wordings of the same
facts (`held`) are kept for measuring. One seed makes one country. Words and names stand in invented.yaml.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from riverrun.base.config import Config, load_config

__all__ = ["Entity", "Fact", "World", "make_world"]

_SIZES = {"town": 10, "person": 12, "device": 10, "river": 6}
_YEARS = (1102, 1897)
SMALLEST = 5
"""Things of a kind in the smallest country: a fact has three other values of its kind."""


class _Relation(Config):
    value: str | tuple[str, ...] = Field(description="a kind of name, `year`, or the list of values itself")
    told: tuple[str, ...] = Field(min_length=2, description="statements to learn from")
    held: tuple[str, ...] = Field(min_length=1, description="statements to measure with; each ends in the value")
    asked: tuple[str, ...] = Field(min_length=2, description="questions; the last is only measured with")
    answer: str = Field(description="what is said to a question")

    @field_validator("held")
    @classmethod
    def _ends_in_value(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not text.endswith(" {value}.") or text.count("{value}") != 1:
                raise ValueError(f"'{text}' must end in ' {{value}}.' and name it once")
        return value


class _Kind(Config):
    title: str
    relations: Mapping[str, _Relation]


class _Names(Config):
    starts: tuple[str, ...]
    vowels: tuple[str, ...]
    middles: tuple[str, ...]
    ends: Mapping[str, tuple[str, ...]]


class _Book(Config):
    chapters: tuple[str, ...]
    river: tuple[str, ...]
    person: tuple[str, ...]
    device: tuple[str, ...]
    endings: tuple[str, ...]


class _Words(Config):
    names: _Names
    kinds: Mapping[str, _Kind]
    book: _Book


@cache
def _words() -> _Words:
    return load_config(_Words, Path(__file__).with_suffix(".yaml"))


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of one relation of one thing; `others` are values that the relation has elsewhere in the country."""

    id: str
    name: str
    kind: str
    relation: str
    value: str
    others: tuple[str, ...]

    @property
    def _relation(self) -> _Relation:
        return _words().kinds[self.kind].relations[self.relation]

    def _say(self, text: str) -> str:
        said = text.format(name=self.name, value=self.value)
        return said[0].upper() + said[1:]

    def told(self) -> list[str]:
        return [self._say(text) for text in self._relation.told]

    def held(self) -> list[str]:
        return [self._say(text) for text in self._relation.held]

    def beginnings(self) -> list[str]:
        """The held-out statements up to the value."""
        return [text[: -len(f" {self.value}.")] for text in self.held()]

    def asked(self, *, unseen: bool) -> list[str]:
        """Questions: those that may be learned, or the one that is only measured with."""
        questions = self._relation.asked
        return [self._say(text) for text in (questions[-1:] if unseen else questions[:-1])]

    @property
    def answer(self) -> str:
        return self._say(self._relation.answer)


@dataclass(frozen=True, slots=True)
class Entity:
    """A thing of the country with all that is known of it."""

    name: str
    kind: str
    facts: tuple[Fact, ...]

    @property
    def title(self) -> str:
        return _words().kinds[self.kind].title.format(name=self.name)


@dataclass(frozen=True)
class World:
    """The whole country of one seed."""

    seed: int
    entities: tuple[Entity, ...]

    @property
    def facts(self) -> list[Fact]:
        return [fact for entity in self.entities for fact in entity.facts]

    def articles(self, each: int) -> list[tuple[str, str]]:
        """(id, text): `each` articles on every thing, with all its facts in changing order and wording."""
        out = []
        for entity in self.entities:
            draws = {fact.id: _Deck(fact.told(), f"{self.seed}/{fact.id}") for fact in entity.facts}
            for number in range(each):
                rng = random.Random(f"{self.seed}/article/{entity.name}/{number}")
                facts = rng.sample(entity.facts, len(entity.facts))
                lines = [draws[fact.id].draw() for fact in facts]
                out.append((f"article-{entity.name}-{number}", f"{entity.title}\n\n{' '.join(lines)}\n"))
        return out

    def held_out(self) -> list[tuple[str, str]]:
        """(id, text): an article on every thing in the wordings that are not learned."""
        out = []
        for entity in self.entities:
            rng = random.Random(f"{self.seed}/held/{entity.name}")
            lines = [rng.choice(fact.held()) for fact in rng.sample(entity.facts, len(entity.facts))]
            out.append((f"held-{entity.name}", f"{entity.title}\n\n{' '.join(lines)}\n"))
        return out

    def book(self) -> list[tuple[str, str]]:
        """(id, text) of the chapters of a traveller's book: a town, its river, its people, their devices."""
        words = _words().book
        named = {entity.name: entity for entity in self.entities}
        out = []
        for number, town in enumerate(each for each in self.entities if each.kind == "town"):
            rng = random.Random(f"{self.seed}/book/{town.name}")
            river = named[next(fact.value for fact in town.facts if fact.relation == "river")]
            born = [each for each in self.entities if _value(each, "birthplace") == town.name]
            makers = {each.name for each in born}
            made = [each for each in self.entities if _value(each, "inventor") in makers]
            parts = [_tell(town, rng.choice(words.chapters), rng), _tell(river, rng.choice(words.river), rng)]
            parts += [_tell(each, rng.choice(words.person), rng) for each in born]
            parts += [_tell(each, rng.choice(words.device), rng) for each in made]
            parts.append(rng.choice(words.endings))
            out.append((f"chapter-{number + 1}", f"Chapter {number + 1}: {town.name}\n\n" + "\n\n".join(parts) + "\n"))
        return out

    def halves(self) -> tuple[list[Fact], list[Fact]]:
        """The facts of every second thing of each kind, and those of the others."""
        first: list[Fact] = []
        second: list[Fact] = []
        for kind in _words().kinds:
            for place, entity in enumerate(each for each in self.entities if each.kind == kind):
                (second if place % 2 else first).extend(entity.facts)
        return first, second


def _value(entity: Entity, relation: str) -> str:
    return next((fact.value for fact in entity.facts if fact.relation == relation), "")


def _tell(entity: Entity, opening: str, rng: random.Random) -> str:
    lines = [rng.choice(fact.told()) for fact in rng.sample(entity.facts, len(entity.facts))]
    return " ".join([opening.format(name=entity.name), *lines])


class _Deck:
    """Draws every text once before any comes again."""

    def __init__(self, texts: Sequence[str], key: str) -> None:
        self.texts, self.rng = list(texts), random.Random(key)
        self.left: list[str] = []

    def draw(self) -> str:
        if not self.left:
            self.left = self.rng.sample(self.texts, len(self.texts))
        return self.left.pop()


def make_world(seed: int, *, scale: float = 1.0) -> World:
    """The country of a seed; `scale` multiplies its size (at least SMALLEST things of each kind)."""
    rng = random.Random(f"invented/{seed}")
    sizes = {kind: max(SMALLEST, round(size * scale)) for kind, size in _SIZES.items()}
    names = _Namer(rng)
    things = {
        "town": names.draw("town", sizes["town"]),
        "person": [
            f"{first} {last}"
            for first, last in zip(
                names.draw("person", sizes["person"]), names.draw("surname", sizes["person"]), strict=True
            )
        ],
        "device": [name.lower() for name in names.draw("device", sizes["device"])],
        "river": names.draw("river", sizes["river"]),
        "hills": [f"{name} Hills" for name in names.draw("hills", sizes["river"])],
        "lake": [f"Lake {name}" for name in names.draw("lake", sizes["river"])],
        "year": [str(year) for year in rng.sample(range(*_YEARS), sizes["town"])],
    }
    entities: list[Entity] = []
    for kind, spec in _words().kinds.items():
        columns = [
            _column(relation, about, things[kind], things, f"{seed}/{kind}")
            for relation, about in spec.relations.items()
        ]
        entities += [
            Entity(name, kind, tuple(_fact(kind, name, place, column) for column in columns))
            for place, name in enumerate(things[kind])
        ]
    return World(seed, tuple(entities))


@dataclass(frozen=True)
class _Column:
    """The values of one relation for all things of a kind."""

    relation: str
    values: tuple[str, ...]
    known: frozenset[str]
    """All values that the country's text names: one that is never told would be an easy wrong answer."""


def _column(
    relation: str, about: _Relation, names: Sequence[str], things: Mapping[str, list[str]], key: str
) -> _Column:
    pool = list(about.value) if isinstance(about.value, tuple) else things[about.value]
    deck = _Deck(pool, f"{key}/{relation}")
    values = []
    for name in names:
        value = deck.draw()
        while value == name:  # nobody teaches themselves; a new deck may begin with the same name
            value = deck.draw()
        values.append(value)
    return _Column(relation, tuple(values), frozenset(values if isinstance(about.value, tuple) else pool))


def _fact(kind: str, name: str, place: int, column: _Column) -> Fact:
    value = column.values[place]
    others = tuple(sorted(column.known - {value, name}))
    return Fact(f"{kind}-{name.replace(' ', '-')}-{column.relation}", name, kind, column.relation, value, others)


class _Namer:
    """Names that no other thing of the country has; their beginnings differ too."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.seen = rng, set[str]()

    def draw(self, kind: str, count: int) -> list[str]:
        words: Any = _words().names
        out: list[str] = []
        while len(out) < count:
            start = self.rng.choice(words.starts) + self.rng.choice(words.vowels) + self.rng.choice(words.middles)
            if start in self.seen:
                continue
            self.seen.add(start)
            out.append(start + self.rng.choice(words.ends[kind]))
        return out
