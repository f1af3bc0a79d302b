"""What is dropped for what it says: too short, stuffed, repeated, not yet written, abusive; good pages stay."""

from __future__ import annotations

import pytest

from riverrun.base.types import Document
from riverrun.data.operators import with_signals
from riverrun.data.rules import PAGE_RULES, Placeholder, Thresholds
from riverrun.data.safety import Abuse
from riverrun.data.signals import TextSignals, language

POLICY = (
    "You may send a book back within 30 days of delivery if it is unread. Pack it well and put the slip from the "
    "parcel inside. We pay the money back to the card you used as soon as the book has reached us, usually within "
    "a week. Signed copies and books that were ordered for you from abroad cannot be returned unless they are faulty."
)
ZH = (
    "本店自1998年开业以来，一直为读者提供新书和旧书。您在收到书后的三十天内，如果书没有看过，可以退货；请把收据放在包裹里，"
    "我们收到以后会在一周之内退款。签名本和从国外订购的书不能退，除非书有缺陷。如果您有问题，请到店里来，或者写信给我们。"
)


def judge(text: str) -> str:
    document = Document("page", text)
    drop = Thresholds().check(with_signals(document, TextSignals().measure(document)))
    return drop.reason if drop else ""


@pytest.mark.parametrize("text", [POLICY, ZH, "\n".join(f"- {line}." for line in POLICY.split(". "))])
def test_a_good_page_stays(text: str) -> None:
    assert judge(text) == ""
    assert Abuse().check(Document("page", text)) is None
    assert Placeholder().check(Document("page", text)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Open on Mondays and to the public.", "too_short"),
        ("本店每天开门。", "too_short"),
        ("cheap books buy books online best books discount books " * 12, "spam"),
        (POLICY + " Click here! Buy now! Best prices guaranteed! Act now, limited time offer, casino bonus!", "spam"),
        ("The winner of the day is here. " + "We have the best of all and it will be that. " * 12, "repetition"),
        (POLICY + "\n" + "\n".join(["Read more about that here."] * 20), "repetition"),
        ("# # # # # " * 4 + POLICY, "symbols"),
        ("12 45 99 102 " * 30 + "and the rest", "no_prose"),
        (POLICY.replace("e", "\ufffd"), "broken_text"),
        ("小说散文诗歌历史地理音乐美术建筑摄影烹饪园艺" * 15, "no_prose"),
    ],
)
def test_a_bad_page_goes_with_its_reason(text: str, reason: str) -> None:
    assert judge(text) == reason


def test_all_failing_rules_stand_in_the_detail_with_value_and_bound() -> None:
    document = Document("page", "1 2 3")
    drop = Thresholds().check(with_signals(document, TextSignals().measure(document)))
    assert drop is not None
    assert drop.reason == "too_short"
    assert "words 3 < 30" in drop.detail
    assert "stop_words 0 < 2" in drop.detail


def test_every_threshold_has_a_source_and_a_measured_signal() -> None:
    measured = set(TextSignals().measure(Document("en", POLICY))) | set(TextSignals().measure(Document("zh", ZH)))
    for rule in PAGE_RULES:
        assert rule.source
        assert rule.signal in measured
        assert (rule.least, rule.most) != (None, None)


def test_signals_by_hand() -> None:
    values = TextSignals().measure(Document("x", "the cat sat\nthe cat sat\n• the dog..."))
    assert values["words"] == 8
    assert values["repeated_lines"] == pytest.approx(1 / 3)
    assert values["repeated_line_characters"] == pytest.approx(11 / 34)
    assert values["bullets"] == pytest.approx(1 / 3)
    assert values["end_ellipses"] == pytest.approx(1 / 3)
    assert values["ellipses"] == pytest.approx(1 / 8)
    # letters: 8 words of 3; "the cat" twice holds 12 of 24, "the cat sat" 18 of 24
    assert values["top_2gram"] == pytest.approx(12 / 24)
    assert values["top_3gram"] == pytest.approx(18 / 24)
    assert values["mean_word_length"] == 3


def test_language_by_its_letters() -> None:
    assert language(POLICY) == "en"
    assert language(ZH) == "zh"
    assert language("Python 3.11 的文档和教程在这里") == "zh"
    assert language("12 + 12") == "en"


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("This page is under construction. Please visit us another time.", True),
        ("Events\nComing soon", True),
        ("本页正在建设中，敬请期待。", True),
        (POLICY + " Lorem ipsum dolor sit amet.", True),
        (POLICY + " " + POLICY + " " + POLICY + " A second shop is coming soon.", False),
        ("An outcoming soonish thing.", False),
    ],
)
def test_pages_without_content_yet(text: str, dropped: bool) -> None:
    drop = Placeholder().check(Document("page", text))
    assert (drop.reason if drop else "") == ("under_construction" if dropped else "")


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        (
            "You are a stupid idiot and your friends are worthless scum. Shut up and go to hell, you pathetic liar.",
            True,
        ),
        ("那些人都是垃圾，白痴，废物，滚出去，去死吧。你们这些蠢货真恶心。", True),
        ("Prince Myshkin, the hero of The Idiot, is called an idiot by others. " + POLICY, False),
        (POLICY + " She shouted: you fool! " + POLICY, False),
        (POLICY, False),
        (ZH, False),
    ],
)
def test_abuse_is_judged_by_density(text: str, dropped: bool) -> None:
    drop = Abuse().check(Document("page", text))
    assert (drop is not None) == dropped
    if drop:
        assert drop.reason == "abusive"
        assert "points in" in drop.detail
