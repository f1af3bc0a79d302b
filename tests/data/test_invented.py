"""The invented country: facts agree, every one is told, and what is measured with is nowhere in the text."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from riverrun.chain.study.pretraining import OPTIONS, cloze_items
from riverrun.data.invented import SMALLEST, make_world

WORLD = make_world(0)


def test_a_seed_makes_one_country() -> None:
    again = make_world(0)
    assert again == WORLD
    assert again.articles(3) == WORLD.articles(3)
    assert again.book() == WORLD.book()
    assert make_world(1).entities != WORLD.entities
    assert len(WORLD.facts) == 156
    assert len({fact.id for fact in WORLD.facts}) == 156


@settings(max_examples=15, deadline=None)
@example(258432, 0.1)
@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 1.0, 2.0]))
def test_facts_agree_with_each_other(seed: int, scale: float) -> None:
    world = make_world(seed, scale=scale)
    kinds = {kind: {each.name for each in world.entities if each.kind == kind} for kind in ("town", "person", "river")}
    assert min(len(names) for names in kinds.values()) >= SMALLEST
    assert len({entity.name for entity in world.entities}) == len(world.entities)
    for fact in world.facts:
        assert fact.value not in fact.others
        assert len(set(fact.others)) >= OPTIONS - 1
        kind = {"river": "river", "birthplace": "town", "inventor": "person", "founder": "person"}.get(fact.relation)
        if kind:
            assert {fact.value, *fact.others} <= kinds[kind]
        if fact.relation == "teacher":
            assert fact.name != fact.value


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_every_fact_is_told_and_none_in_the_words_it_is_measured_with(seed: int) -> None:
    world = make_world(seed, scale=0.5)
    text = "\n".join(part for _, part in world.articles(3) + world.book())
    for fact in world.facts:
        assert sum(told in text for told in fact.told()) >= 2, "two wordings at least in three articles"
        assert not any(held in text for held in fact.held())
        assert not any(question in text for question in fact.asked(unseen=True))
        assert all(said.startswith(beginning) for said, beginning in zip(fact.held(), fact.beginnings(), strict=True))
        assert fact.asked(unseen=True)[0] not in fact.asked(unseen=False)
        assert fact.value in fact.answer


def test_articles_change_order_and_words() -> None:
    articles = [text for name, text in WORLD.articles(6) if name.startswith(f"article-{WORLD.entities[0].name}-")]
    assert len(articles) == len(set(articles)) == 6
    facts = WORLD.entities[0].facts
    wordings = [Counter(told for article in articles for told in fact.told() if told in article) for fact in facts]
    assert all(set(each.values()) == {1} and len(each) == 6 for each in wordings), "each wording once in six articles"


def test_chapters_follow_the_facts() -> None:
    chapters = WORLD.book()
    towns = [each for each in WORLD.entities if each.kind == "town"]
    assert len(chapters) == len(towns)
    for (_, chapter), town in zip(chapters, towns, strict=True):
        born = [
            each.name
            for each in WORLD.entities
            for f in each.facts
            if (f.relation, f.value) == ("birthplace", town.name)
        ]
        assert all(name in chapter for name in [town.name, town.facts[0].value, *born])


def test_halves_share_no_thing() -> None:
    first, second = WORLD.halves()
    assert len(first) + len(second) == len(WORLD.facts)
    assert not {fact.name for fact in first} & {fact.name for fact in second}
    assert {fact.relation for fact in first} == {fact.relation for fact in second}


def test_cloze_items_have_four_values_of_one_kind_and_no_favourite_place() -> None:
    items = cloze_items(WORLD, 0)
    assert len(items) == 2 * len(WORLD.facts)
    facts = {f"{fact.id}-{number}": fact for fact in WORLD.facts for number in range(2)}
    for item in items:
        fact = facts[item.id]
        assert item.options[item.answer] == f" {fact.value}."
        assert {option[1:-1] for option in item.options} <= {fact.value, *fact.others}
        assert len(item.options) == OPTIONS
        assert fact.value in item.context
    places = Counter(item.answer for item in items)
    assert min(places.values()) > len(items) / OPTIONS * 0.7
    assert cloze_items(WORLD, 0) == items != cloze_items(WORLD, 1)


def test_wordings_that_do_not_end_in_the_value_are_refused() -> None:
    from riverrun.data.invented import _Relation

    good = {
        "value": "year",
        "told": ["a {value}", "b {value}"],
        "held": ["x {value}."],
        "asked": ["q", "r"],
        "answer": "a",
    }
    _Relation.model_validate(good)
    with pytest.raises(ValueError, match="must end in"):
        _Relation.model_validate(good | {"held": ["{value} is it."]})
