"""Masking: nothing planted stays, what only looks like personal data is left alone."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.types import Document
from riverrun.data.personal import find_personal, iban_valid, luhn_valid, mask_personal, resident_id_valid
from riverrun.data.safety import MaskPersonalData

quick = settings(derandomize=True, max_examples=80, deadline=None)
around = st.text('abc XYZ\n.,;:!?()[]<>"/-中文，。', max_size=30)
labels = st.text("abcxyzABC0189", min_size=1, max_size=10)


@quick
@given(around, st.lists(labels, min_size=1, max_size=3), st.lists(labels, min_size=1, max_size=3), around)
def test_no_email_stays(before: str, local: list[str], domain: list[str], after: str) -> None:
    email = f"{'.'.join(local)}@{'.'.join(domain)}.org"
    masked, counts = mask_personal(f"{before} {email} {after}")
    assert email not in masked
    assert "@" not in masked
    assert counts["email"] >= 1


@quick
@given(st.emails(domains=st.sampled_from(["mail.example.com", "xn--p1ai.org"])))
def test_no_exotic_email_stays(email: str) -> None:
    masked, _ = mask_personal(f"Write to <{email}> today")
    assert masked == "Write to <[email]> today"


@quick
@given(
    st.text("0123456789", min_size=12, max_size=17),
    st.sampled_from("23456"),
    st.sampled_from(["", " ", "-", "\u00a0", "  "]),
    st.sampled_from(["card ", "", "号码：", "no. ", "12/26 "]),
    st.sampled_from(["", " 123", ".", ", valid 12/26", "，谢谢"]),
)
def test_no_card_stays(middle: str, first: str, gap: str, before: str, after: str) -> None:
    body = first + middle
    card = next(body + digit for digit in "0123456789" if luhn_valid(body + digit))
    groups = [card[start : start + 4] for start in range(0, len(card), 4)]
    if len(groups[-1]) < 3:
        groups[-2:] = ["".join(groups[-2:])]
    said = gap.join(groups)
    masked, _ = mask_personal(f"{before}{said}{after}")
    assert card not in re.sub(r"\D", "", masked.replace("12/26", ""))
    assert said not in masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Call (555) 123-4567 or +44 20 7946 0123.", "Call [phone] or [phone]."),
        ("Ring 020 7946 0123 or 01632 960 983", "Ring [phone] or [phone]"),
        ("Phone: 555-0142", "Phone: [phone]"),
        ("电话13812345678，座机010-62345678", "电话[phone]，座机[phone]"),
        ("card 4111 1111 1111 1111 12/26", "card [card] 12/26"),
        ("Amex 3782 822463 10005", "Amex [card]"),
        ("pay DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432 ok", "pay [iban] and [iban] ok"),
        ("from 203.0.113.45 and 2001:db8::8a2e:370:7334.", "from [ip] and [ip]."),
        ("身份证11010519491231002X。", "身份证[id]。"),
        ("She lives at 14 Maple Street, Apt 3.", "She lives at [address]."),
        ("Ship to 9 Elm Rd, Springfield, IL 62704 today", "Ship to [address] today"),
        ("住在北京市朝阳区建国路88号3栋201室", "[address]"),
        ("anna.o'brien@mail.example.co.uk. Thanks", "[email]. Thanks"),
        ("联系zhang@example.com谢谢", "联系[email]谢谢"),
        ("jane (at) example (dot) com", "[email]"),
    ],
)
def test_each_kind_is_masked_with_its_name(text: str, masked: str) -> None:
    assert mask_personal(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "ISBN 978-0-13-468599-1, order 10001234, invoice no. 5551234567",
        "open 9:00-18:00, from 2019-2024, on 2024-05-01, 01/02/2024",
        "£12.50, $1,234,567.89, 15 kilograms, 100%",
        "version 1.2.3.4, std::string, 12:30:45, section 4.2.13.1",
        "card 4111 1111 1111 1112",  # Luhn fails
        "DE89 3704 0044 0532 0130 01",  # mod 97 fails
        "110105194912310021",  # check character fails, and no card either
        "the years 2021 2022 2023 2024",
        "The Street of Crocodiles, 3 copies; 12 books for 2 readers",
        "look @ this, a@b",
    ],
)
def test_lookalikes_stay(text: str) -> None:
    assert mask_personal(text) == (text, {})


def test_published_check_numbers() -> None:
    assert luhn_valid("79927398713")  # Luhn's textbook example
    assert not luhn_valid("79927398710")
    assert iban_valid("GB82 WEST 1234 5698 7654 32")  # ISO 13616's example
    assert not iban_valid("GB82 WEST 1234 5698 7654 33")
    assert not iban_valid("XX82 WEST 1234 5698 7654 32")
    assert resident_id_valid("11010519491231002X")  # GB 11643's example
    assert not resident_id_valid("110105194912310021")


@quick
@given(st.text("ab1 2+-.@:/()4中\n", max_size=120))
def test_spans_are_ordered_and_apart_and_the_rest_is_untouched(text: str) -> None:
    spans = find_personal(text)
    assert all(0 <= a.start < a.end <= len(text) for a in spans)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    masked, counts = mask_personal(text)
    assert sum(counts.values()) == len(spans)
    at = 0
    for span in spans:
        piece = text[at : span.start]
        assert masked.startswith(piece + f"[{span.kind}]")
        masked = masked[len(piece) + len(span.kind) + 2 :]
        at = span.end
    assert masked == text[at:]


def test_long_hostile_input_is_read_in_one_pass() -> None:
    for unit in ("a", "1 ", "a.", "1.1.", "A1 ", "@", "a@", "12 A", "::", "+1(", "路", "1号"):
        text = unit * 40_000
        assert len(mask_personal(text)[0]) <= len(text) + 8


def test_what_is_kept_is_left_alone() -> None:
    text = "Mail hello@shop.example or bob@mail.example, call +44 20 7946 0123 or +44 20 7946 0999."
    masked, counts = mask_personal(text, keep=["@shop.example", "+44 20 7946 0123"])
    assert masked == "Mail hello@shop.example or [email], call +44 20 7946 0123 or [phone]."
    assert counts == {"email": 1, "phone": 1}


def test_the_operator_masks_title_and_text_and_counts_both() -> None:
    document = Document("a", "Ask bob@mail.example", metadata={"title": "About bob@mail.example"})
    edited = MaskPersonalData().edit(document)
    assert edited.document.text == "Ask [email]"
    assert edited.document.metadata == {"title": "About [email]", "masked": {"email": 2}}
    assert edited.counts == {"email": 2}
    clean = Document("b", "Nothing here", metadata={"title": "x"})
    assert MaskPersonalData().edit(clean).document == clean
