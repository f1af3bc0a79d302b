"""Which change follows from which figures, on histories made up for it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from riverrun.chain.improving import Change, Loss, Round, Settings, best, most_work, propose, stop_reason, targets
from riverrun.evaluate.statistics import Rate

OWN = Settings(rank=16, alpha=32, learning_rate=1e-3, epochs=2)
FALLING, LOW, FLAT, HIGH = Loss(2.0, 0.9, 0.5), Loss(2.0, 0.2, 0.1), Loss(2.0, 0.52, 0.5), Loss(2.0, 1.8, 1.7)
GROUPS = {"join": Rate(2, 10), "lookup": Rate(11, 20), "chat": Rate(10, 10)}
DRAWN = {"join": 40, "lookup": 30}


def first(loss: Loss = FLAT, steps: int = 200, **changes: object) -> Round:
    settings = replace(OWN, **changes)  # type: ignore[arg-type]
    return Round(1, Change("first", "", settings, settings.epochs), Rate(23, 40), GROUPS, loss, steps)


def after(history: list[Round], change: Change, right: int, loss: Loss = FLAT) -> list[Round]:
    """The history with one round more, which has so many right of 40."""
    gain = (right - best(history).success.successes) / 40
    figures = {"difference": gain, "low": gain - 0.1, "high": gain + 0.1, "p": 0.5}
    return [*history, Round(len(history) + 1, change, Rate(right, 40), GROUPS, loss, 200, figures)]


def proposed(history: list[Round], drawn: Mapping[str, int] = DRAWN) -> Change:
    change = propose(history, bar=0.7, drawn=drawn)
    assert change is not None
    return change


def test_failing_groups_get_new_questions_by_how_far_they_are_below() -> None:
    trained = {"join": 100, "lookup": 60, "chat": 40}
    assert targets([first()], trained, 0.7) == {"join": 200, "lookup": 60}
    assert targets([first()], {"lookup": 60, "chat": 40}, 0.7) == {"join": 100, "lookup": 60}, (
        "never trained: the usual"
    )
    assert sum(targets([first()], {"join": 900, "lookup": 500}, 0.7).values()) <= 1400
    assert "chat" in targets([replace(first(), groups={"chat": Rate(9, 10)})], trained, None), "without a bar: all"
    change = proposed([first()])
    assert (change.what, change.more, change.start, change.settings) == ("data", DRAWN, 1, OWN)
    assert change.why == "below 70%: lookup 11 of 20 [34%, 74%], join 2 of 10 [6%, 51%]"


def test_a_loss_that_hardly_fell_wants_a_higher_rate_but_not_after_a_few_steps() -> None:
    change = proposed([first(HIGH)])
    assert (change.what, change.start, change.passes) == ("higher rate", 0, 2)
    assert change.settings == replace(OWN, learning_rate=2e-3)
    assert "2 over 1.8 to 1.7: little was learned in 200 steps" in change.why
    assert proposed([first(HIGH, steps=20)]).what == "data"
    assert proposed([first(HIGH, learning_rate=3e-3)]).what == "epochs", "the rate is near its end"


def test_a_loss_that_still_falls_is_trained_on_when_there_is_no_more_data() -> None:
    change = proposed([first(FALLING)], {"join": 0})
    assert (change.what, change.start, change.passes, change.settings.epochs) == ("epochs", 1, 2, 4)
    change = proposed([first(FLAT)], {})
    assert (change.what, change.start) == ("rank", 0)
    assert change.settings == replace(OWN, rank=32, alpha=64)
    assert "there is no more data" in change.why


def test_what_did_not_gain_is_not_proposed_again_before_something_has() -> None:
    history = [first(FALLING)]
    history = after(history, proposed(history), 23, FALLING)
    assert not history[-1].kept, "as many right as before is no gain"
    second = proposed(history)
    assert second.what == "epochs"
    assert second.start == 1, "it builds on the best round"
    history = after(history, second, 26, FALLING)
    third = proposed(history)
    assert (third.what, third.start, third.settings.epochs) == ("data", 3, 4)
    history = after(history, third, 20)
    history = after(history, proposed(history), 26)
    assert [each.kept for each in history] == [True, False, True, False, False]
    assert best(history).number == 3
    sixth = proposed(history)
    assert (sixth.what, sixth.settings.rank, sixth.settings.epochs, sixth.passes) == ("rank", 32, 4, 4)
    assert "more data did not help" in sixth.why


def test_learned_by_heart() -> None:
    history = [first(LOW)]
    seen = []
    while change := propose(history, bar=0.7, drawn=DRAWN):
        seen.append(change)
        history = after(history, change, 20, LOW)
    assert [change.what for change in seen] == ["data", "rank", "lower rate"]
    assert seen[-1].settings.learning_rate == 5e-4
    assert "by heart" in seen[-1].why


@pytest.mark.parametrize("loss", [FALLING, LOW, FLAT, HIGH])
def test_without_any_gain_nothing_is_proposed_twice_and_it_ends(loss: Loss) -> None:
    history = [first(loss)]
    while change := propose(history, bar=0.7, drawn=DRAWN):
        assert change.what not in {each.change.what for each in history}
        history = after(history, change, 22, loss)
    assert 3 <= len(history) <= 6


def test_nothing_is_proposed_that_cannot_be_done() -> None:
    assert propose([first(LOW, rank=64, learning_rate=6e-5)], bar=0.7, drawn={}) is None
    assert propose([first(FLAT, rank=64, learning_rate=3e-3)], bar=0.7, drawn={}) is None


def test_a_rate_is_not_raised_and_lowered_by_turns() -> None:
    history = [first(HIGH)]
    history = after(history, proposed(history), 30, LOW)
    assert history[-1].change.what == "higher rate"
    names = []
    while change := propose(history, bar=0.9, drawn=DRAWN):
        names.append(change.what)
        history = after(history, change, 20, LOW)
    assert names == ["data", "rank"]


def test_rounds_stop() -> None:
    def reason(rights: list[int], most: int = 5, bar: float | None = 0.7, patience: int = 2) -> str:
        history = [replace(first(), success=Rate(rights[0], 40))]
        for right in rights[1:]:
            history = after(history, Change("data", "", OWN, 2), right)
        return stop_reason(history, most=most, bar=bar, patience=patience)

    assert stop_reason([], most=1, bar=0.0, patience=1) == ""
    assert reason([28]) == "met"
    assert reason([27]) == ""
    assert reason([30, 20], bar=None) == ""
    assert reason([20, 21, 22, 23, 24]) == "most"
    assert reason([20, 20]) == ""
    assert reason([20, 20, 19]) == "patience"
    assert reason([20, 20], patience=1) == "patience"


def test_the_best_of_equals_is_the_earliest() -> None:
    history = after([first()], Change("data", "", OWN, 2), 23)
    assert best(history).number == 1
    assert best(after(history, Change("epochs", "", OWN, 2), 24)).number == 3


def test_a_round_comes_back_from_json() -> None:
    history = after([first(FALLING)], proposed([first(FALLING)]), 25)
    for each in history:
        assert Round.from_dict(json.loads(json.dumps(each.as_dict()))) == each


def test_losses_are_summed_up() -> None:
    assert Loss.of([2.0, 1.0, 0.5]) == Loss(2.0, 1.0, 0.5)
    assert Loss.of([3.0, 1.0], start=9.0).start == 9.0
    long = Loss.of([4.0] * 10 + [2.0] * 80 + [1.0] * 10)
    assert (long.start, long.middle, long.end) == (4.0, 2.0, 1.0)


@pytest.mark.parametrize("questions", [100, 600, 2000])
@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5])
def test_no_course_of_changes_costs_more_than_foreseen(rounds: int, questions: int) -> None:
    """Every order of kept changes, each as dear as it may be."""
    failing = [replace(first(), groups={"a": Rate(0, 9)})]
    dearest = 0.0
    for course in itertools.product(("data", "epochs", "rank"), repeat=rounds - 1):
        rows, epochs, work = questions, 1, questions
        for what in course:
            if what == "data":
                new = targets(failing, {"a": rows}, 0.7)["a"]
                work += new + min(new, rows)
                rows += new
            elif what == "epochs":
                work, epochs = work + rows, epochs + 1
            else:
                work += rows * epochs
        dearest = max(dearest, work / questions)
    assert dearest <= most_work(rounds, questions) <= 1.01 * dearest
