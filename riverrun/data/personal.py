"""Personal data in text: e-mail, card, IBAN, phone, identity number, IP address, street address; found and masked.

Numbers with a checksum are checked (Luhn, mod 97, ISO 7064 mod 11-2), so order numbers and ISBNs stay. Names of people
are not found, nor are addresses without a street word. Patterns are written so that long input takes linear time.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from riverrun.base.config import load_yaml

__all__ = ["KINDS", "Span", "find_personal", "iban_valid", "luhn_valid", "mask_personal", "resident_id_valid"]

KINDS = ("email", "id", "card", "iban", "ip", "phone", "address")
_ATOM = r"A-Za-z0-9\u00c0-\u024f!#$%&'*+/=?^_`{|}~.\-"
_LABEL = r"[A-Za-z0-9\u00c0-\u024f-]++"
_EMAIL = re.compile(rf"(?<![{_ATOM}])[{_ATOM}]++[@＠]{_LABEL}(?:\.{_LABEL})++")
_SPELLED = re.compile(
    r"\b[A-Za-z0-9._%+-]{1,64}\s?[\[({]\s?at\s?[\])}]\s?[A-Za-z0-9-]{1,63}"
    r"(?:\s?(?:[\[({]\s?dot\s?[\])}]|\.)\s?[A-Za-z0-9-]{2,63}){1,4}",
    re.IGNORECASE,
)
_GAP = r"[ \u00a0\u2009.\-\u2010-\u2014]"
_DIGITS = re.compile(rf"(?<!\d)\d(?:{_GAP}{{0,2}}\d){{12,}}")
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?=[ \u00a0-]?[A-Za-z0-9])")
_RESIDENT = re.compile(
    r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
_IPV4 = re.compile(r"(?<![A-Za-z0-9_.])(?<![A-Za-z]-)\d{1,3}(?:\.\d{1,3}){3}(?![\d]|\.\d)")
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])(?=[0-9A-Fa-f]*:)[0-9A-Fa-f:]{3,39}+(?:\.\d{1,3}){0,3}(?![A-Za-z0-9_:])")
_PHONE = re.compile(
    r"(?<![A-Za-z0-9_$€£¥#@/=.,-])(?:\+\s?)?\(?\d(?:[ \u00a0()./\-\u2010-\u2014]{0,3}\d){6,16}(?![A-Za-z0-9_@])(?!\.\d)"
)
_PHONE_WORD = re.compile(
    r"(?:\b(?:phone|telephone|tel|call|calls|ring|mobile|cell|fax|text|whatsapp|sms|dial)|电话|手机|致电|热线|传真|联系方式)\W{0,3}"
    r"(?:(?:me|us|him|her|at|on|is|no|number|号码|号|为|是)\W{0,3}){0,3}$",
    re.IGNORECASE,
)
_NO_PHONE = re.compile(
    r"(?:isbn|issn|doi|ean|order|invoice|ticket|parcel|tracking|ref|reference|version|serial|订单|编号|单号)"
    r"(?:[-\s]*(?:1[03])?\W{0,3}(?:no|nr|number|号|号码)?\W{0,3}(?:is\s)?)$",
    re.IGNORECASE,
)
_STREET = re.compile(
    r"(?<![\w-])\d{1,5}[A-Za-z]?,?[ \u00a0]{1,2}(?:[A-Z][\w'’.-]{0,30}[ \u00a0]){1,4}?"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Square|Sq|Terrace|Way|Place|Pl|Close|"
    r"Crescent|Row|Quay|Mews|Parade|Highway|Hwy)\b\.?"
    r"(?:,?[ \u00a0](?:Apt|Apartment|Suite|Unit|Flat|Floor|No|#)\.?[ \u00a0]?#?\w{1,6})?"
    r"(?:(?:,?[ \u00a0][A-Z][\w'’-]{1,20}){0,5},?[ \u00a0]"
    r"(?:[A-Z]{2}[ \u00a0]\d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]?[ \u00a0]\d[A-Z]{2})(?!\w))?"
)
_STREET_ZH = re.compile(
    r"[\u4e00-\u9fff]{2,24}?(?:路|街|道|巷|弄|胡同)\d{1,5}(?:号|弄)(?:院)?"
    r"(?:[\d一二三四五六七八九十A-Za-z]{1,6}(?:号楼|栋|幢|座|单元|层|楼|室)){0,4}"
)
_IBAN_LENGTHS: dict[str, int] = load_yaml(Path(__file__).parent / "lexicons" / "iban.yaml")["lengths"]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters start..end of a text hold personal data of this kind."""

    start: int
    end: int
    kind: str


def luhn_valid(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1)."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_valid(text: str) -> bool:
    """Length of the country and remainder 1 modulo 97 (ISO 13616)."""
    code = re.sub(r"[ \u00a0-]", "", text).upper()
    if len(code) != _IBAN_LENGTHS.get(code[:2]) or not code.isascii() or not code.isalnum():
        return False
    return int("".join(str(int(letter, 36)) for letter in code[4:] + code[:4])) % 97 == 1


def resident_id_valid(code: str) -> bool:
    """Check character of the Chinese identity number (GB 11643, ISO 7064 mod 11-2)."""
    total = sum(int(digit) * (2 ** (17 - index) % 11) for index, digit in enumerate(code[:17]))
    return code[17].upper() == "10X98765432"[total % 11]


def find_personal(text: str) -> list[Span]:
    """All spans, in order, without overlap: where two meet they become one, named after the earlier kind of `KINDS`."""
    found = sorted(
        (span for kind in KINDS for span in _FINDERS[kind](text)), key=lambda s: (s.start, -s.end, KINDS.index(s.kind))
    )
    merged: list[Span] = []
    for span in found:
        if merged and span.start < merged[-1].end:
            last = merged[-1]
            kind = min(last.kind, span.kind, key=KINDS.index)
            merged[-1] = Span(last.start, max(last.end, span.end), kind)
        else:
            merged.append(span)
    return merged


def mask_personal(text: str, *, keep: Sequence[str] = ()) -> tuple[str, dict[str, int]]:
    """The text with `[email]`, `[phone]` ... in place of what was found, and the count of each kind.

    What stands in `keep` stays: a whole entry (`+1 555 0100`), or all e-mail addresses of a domain (`@shop.example`).
    """
    kept = {" ".join(item.split()).casefold() for item in keep}
    counts: Counter[str] = Counter()
    parts, at = [], 0
    for span in find_personal(text):
        said = " ".join(text[span.start : span.end].split()).casefold()
        if said in kept or (span.kind == "email" and "@" + said.rpartition("@")[2] in kept):
            continue
        parts += [text[at : span.start], f"[{span.kind}]"]
        counts[span.kind] += 1
        at = span.end
    return "".join([*parts, text[at:]]), dict(sorted(counts.items()))


def _emails(text: str) -> Iterator[Span]:
    for pattern in (_EMAIL, _SPELLED):
        for match in pattern.finditer(text):
            yield Span(match.start(), match.end(), "email")


def _resident_ids(text: str) -> Iterator[Span]:
    for match in _RESIDENT.finditer(text):
        if resident_id_valid(match.group()):
            yield Span(match.start(), match.end(), "id")


def _cards(text: str) -> Iterator[Span]:
    """13 to 19 digits with gaps that pass Luhn, from any group of digits to the end of any group."""
    for run in _DIGITS.finditer(text):
        groups = [(run.start() + m.start(), run.start() + m.end()) for m in re.finditer(r"\d+", run.group())]
        first = 0
        while first < len(groups):
            last = _card_end(text, groups, first)
            if last is None:
                first += 1
            else:
                yield Span(groups[first][0], groups[last][1], "card")
                first = last + 1


def _card_end(text: str, groups: Sequence[tuple[int, int]], first: int) -> int | None:
    """The last group of the longest card number that starts with this group."""
    digits, best = "", None
    for index in range(first, len(groups)):
        group = text[slice(*groups[index])]
        # printed as one block, or as groups after a first one of four; anything else is a table of numbers
        if index > first and not (groups[first][1] - groups[first][0] == 4 and 3 <= len(group) <= 8):
            break
        digits += group
        if len(digits) > 19:
            break
        years = all(re.fullmatch(r"(?:19|20)\d\d", text[slice(*groups[g])]) for g in range(first, index + 1))
        if len(digits) >= 13 and int(digits[0]) in range(2, 7) and not years and luhn_valid(digits):
            best = index
    return best


def _ibans(text: str) -> Iterator[Span]:
    """From each possible start as many letters and digits as the country's numbers have."""
    for match in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(match.group()[:2].upper(), 0)
        rest = re.compile(rf"(?:[ \u00a0-]?[A-Za-z0-9]){{{max(length - 4, 0)}}}").match(text, match.end())
        if length and rest and iban_valid(text[match.start() : rest.end()]):
            yield Span(match.start(), rest.end(), "iban")


def _addresses_ip(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            said = match.group() if match.group().endswith("::") else match.group().rstrip(":")
            try:
                address = ipaddress.ip_address(said)
            except ValueError:
                continue
            if address.is_unspecified or address.is_loopback or said.startswith("255."):
                continue
            # `::` and `a::b` are valid addresses, but are more often code
            if address.version == 6 and sum(letter.isalnum() for letter in said) < 5:
                continue
            if address.version == 4 and _is_numbering(text, match.start(), said):
                continue
            yield Span(match.start(), match.start() + len(said), "ip")


def _is_numbering(text: str, start: int, said: str) -> bool:
    """`4.2.13.1` as the number of a section or a version."""
    before = text[max(0, start - 20) : start]
    if re.search(r"(?:version|release|\bv)\.?\s?$", before, re.IGNORECASE):
        return True
    if any(not 1 <= int(part) <= 40 for part in said.split(".")):
        return False
    return (
        re.search(r"(?:^|\n)[\s•*-]*$|(?:sections?|chapters?|figure|table|example|§|第)\s?$", before, re.I) is not None
    )


def _phones(text: str) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        if _is_phone(match.group(), before):
            opened = match.group().startswith("(") and ")" not in match.group()
            yield Span(match.start() + opened, match.end(), "phone")


def _is_phone(said: str, before: str) -> bool:
    """Judged by form (international, North American, trunk 0, Chinese mobile) or by the word in front of it."""
    digits = "".join(str(int(letter)) for letter in said if letter.isdigit())
    if (
        _NO_PHONE.search(before)
        or re.search(r"\b[A-Z]{2} $", before)
        or re.fullmatch(r"(?:1[5-9]|20)\d\d\D+(?:1[5-9]|20)\d\d", said)
    ):
        return False
    if re.fullmatch(r"\d{4}[-/. ]\d{1,2}[-/. ]\d{1,2}|\d{1,2}[-/. ]\d{1,2}[-/. ]\d{4}|\d{1,3}(?:\.\d{1,3}){3}", said):
        return False
    if _PHONE_WORD.search(before):
        return True
    if said.startswith("+"):
        return 8 <= len(digits) <= 15
    if re.fullmatch(r"(?:86)?1[3-9]\d{9}", digits) and re.fullmatch(r"\d{11,13}|\d{3}\D\d{4}\D\d{4}|86\D?\d{11}", said):
        return True
    if re.fullmatch(r"(?:1[ .-]?)?\(?[2-9]\d{2}\)?[ .\-\u2010-\u2014]{0,2}\d{3}[ .\-\u2010-\u2014]\d{4}", said):
        return True
    trunk = re.fullmatch(r"\(?0\d{1,4}\)?(?:[ \u00a0\-/\u2010-\u2014]{1,3}\d{2,8}){1,4}", said)
    return trunk is not None and 9 <= len(digits) <= 12


def _streets(text: str) -> Iterator[Span]:
    for pattern in (_STREET, _STREET_ZH):
        for match in pattern.finditer(text):
            yield Span(match.start(), match.end(), "address")


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "id": _resident_ids,
    "card": _cards,
    "iban": _ibans,
    "ip": _addresses_ip,
    "phone": _phones,
    "address": _streets,
}
