"""Facts in texts: one form for numbers, times and dates; a fact in other words; never with another number."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from riverrun.base.facts import is_value, rounds, says, says_value, tokens


@pytest.mark.parametrize(
    "group",
    [
        "12.50|12.5|£12.50|12.5 pounds|¥12.50",
        "1,200|1200|1200.0|$1,200.00",
        "9 am|9:00 am|09:00|9.00 a.m.|上午9点|早上九点",
        "14:30|2.30 pm|2:30pm|下午2点半|下午两点三十分",
        "noon|12:00|12 pm",
        "3 May 2024|May 3rd, 2024|2024-05-03|2024年5月3日|3rd of May 2024",
        "thirty|30|三十|30th",
        "twenty-three|23|二十三",
        "10%|10 percent|10 per cent|百分之十",
        "from 9 to 11 am|from 9:00 am to 11:00",
        "28万|280000",
        "二〇二四|2024",
        "-5|−5",
    ],
)
def test_one_form(group: str) -> None:
    assert len({tuple(tokens(text)) for text in group.split("|")}) == 1


def test_what_is_no_number() -> None:
    assert not any(map(is_value, tokens("A12 and one of them", spelled=False)))
    assert tokens("30min") == ["#30", "min"]
    assert tokens("3 may be borrowed")[0] == "#3"
    assert tokens("rows 3-5") == ["row", "#3", "#5"]
    assert tokens("31/2024-99-99") != []


NUMBERS = st.one_of(st.integers(0, 10**6), st.decimals(0, 10**4, places=2).map(float))


@settings(derandomize=True, max_examples=150, deadline=None)
@given(NUMBERS)
def test_a_number_is_said_however_it_is_written(number: float) -> None:
    forms = [str(number), f"{number:.2f}", f"{number:,.2f}", f"£{number:.2f}", f"about {number:.2f} in all."]
    assert all(says_value(form, number) for form in forms)
    assert not says_value(str(number + 1), number)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.floats(0.01, 1e6), st.integers(1, 4))
def test_a_rounded_number_is_said(number: float, decimals: int) -> None:
    assert rounds(number, f"{number:.{decimals}f}")
    assert not rounds(number, f"{number + 2 * 10.0**-decimals:.{decimals}f}")


def test_an_average_needs_a_decimal() -> None:
    assert says_value("3.33 on average", 10 / 3)
    assert not says_value("3 on average", 10 / 3)
    assert says_value("anything", None)
    assert says_value("It was sold on 3 May 2024 at 14:30.", "2024-05-03 14:30:00")
    assert not says_value("It was sold on 3 June 2024.", "2024-05-03")
    assert says_value("by O'Brien and Ann", "o’brien")
    assert not says_value("by Ann", "Ann Lee")


SENTENCE = "You can return a clean, unread book within 30 days of delivery."


def test_a_fact_in_other_words() -> None:
    assert says("A book that is clean and unread may be returned in thirty days from delivery.", SENTENCE)
    assert not says("A book that is clean and unread may be returned in 31 days from delivery.", SENTENCE)
    assert not says("Within 30 days.", SENTENCE)
    assert says("It costs £6.50, by bike.", "£6.50")
    assert not says("It costs £6.05, by bike.", "£6.50")
    assert says("Ask Ignatius Vole.", "Ignatius Vole")
    assert not says("Ask Ignatius.", "Ignatius Vole")
    assert says("年假须提前7天申请。", "7天")
    assert not says("年假须提前17天申请。", "7天")
    assert says("We keep parcels for 14 days.", "30 days\n14 days")
    assert not says("anything", "")
    far = "30 is a number. " + "Nothing here. " * 5 + "Days pass."
    assert not says(far, "30 days")


THINGS = ["harbour", "lantern", "kettle", "12", "14:30", "£3.20", "open", "Sunday", "三十天", "otter"]
WORDS = st.lists(st.sampled_from(THINGS), max_size=8)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_a_text_says_what_it_holds(before: list[str], fact: list[str], after: list[str]) -> None:
    line = " ".join(fact)
    assume(tokens(line))
    assert says(" ".join([*before, line, *after]), line)
    assert says(line.upper(), line)
    assert not says(" ".join(before), line + " 99173")


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.text(max_size=60), st.text(max_size=40))
def test_any_text_can_be_read(text: str, fact: str) -> None:
    assert says(text, fact) in (True, False)
    assert says_value(text, fact) in (True, False)
