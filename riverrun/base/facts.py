"""Whether a text says a fact: numbers, times and dates in one form, words without case and endings.

12.50 = 12.5, 1,200 = 1200, "thirty" = 30, 三十 = 30, 9 am = 09:00, 下午2点半 = 14:30, 3 May 2024 = 2024-05-03.
Currencies are left out ("£5" = "5 pounds" = 5). English and Chinese. Not covered: decimal commas, hundreds in words,
synonyms.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from riverrun.base.words import sentences, stem, words

__all__ = ["is_value", "rounds", "says", "says_value", "tokens"]

SHARE = 0.7
"""Share of a sentence's words that another wording of it must hold; a short fact is held whole."""
SHORT = 4
"""A fact of at most so many words is short."""
WINDOW = 3
"""Sentences in a row in which a fact's words may be spread."""
_MONTH_NAMES = "january february march april may june july august september october november december"
_MONTHS = _MONTH_NAMES.split()
_NUMBER_NAMES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_TEN_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_NUMBER_NAMES.split())}
_TENS = {word: 10 * n for n, word in enumerate(_TEN_NAMES.split(), 2)}
_HAN = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_POWERS = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
_MONTH = "|".join(f"{month}|{month[:3]}" for month in _MONTHS) + "|sept"
_HALF = r"(?P<{0}>am|pm|a\.m\.|p\.m\.)"
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_PARTS = re.compile(
    rf"(?P<iso>(?P<y1>\d{{4}})[-/.](?P<m1>\d{{1,2}})[-/.](?P<d1>\d{{1,2}})(?!\d))"
    rf"|(?P<han>(?:(?P<y2>\d{{4}})\s*年\s*)?(?P<m2>\d{{1,2}})\s*月\s*(?P<d2>\d{{1,2}})\s*[日号])"
    rf"|(?P<day>(?<!\d)(?P<d3>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<m3>{_MONTH})\b(?!\s+(?:be|not|have|also|only)\b)\.?(?:,?\s+(?P<y3>\d{{4}})\b)?)"
    rf"|(?P<month>\b(?P<m4>{_MONTH})\.?\s+(?P<d4>\d{{1,2}})(?:st|nd|rd|th)?\b(?!\s*:)(?:,?\s+(?P<y4>\d{{4}})\b)?)"
    rf"|(?P<clock>(?<![\d.])(?P<h1>\d{{1,2}})(?::(?P<i1>\d{{2}})(?::\d{{2}}(?:\.\d+)?)?|\.(?P<i2>\d{{2}})(?=\s*[ap]\.?m\b))?"
    rf"\s*{_HALF.format('p1')}(?!\w))"
    rf"|(?P<plain>(?<![\d.:])(?P<h2>[01]?\d|2[0-4]):(?P<i3>[0-5]\d)(?::[0-5]\d(?:\.\d+)?)?(?![\d:]))"
    rf"|(?P<dian>(?P<p2>凌晨|早上|上午|中午|下午|傍晚|晚上)?(?P<h3>\d{{1,2}}|[一二两三四五六七八九十]+)\s*[点點](?:钟|整)?"
    rf"(?:(?P<i4>\d{{1,2}})分?|(?P<i6>[一二三四五六七八九十]+)分|(?P<i5>半))?)"
    rf"|(?P<noon>\bnoon\b|\bmidnight\b)"
    rf"|(?P<share>百分之(?P<s1>{_NUMBER}|[零〇一二两三四五六七八九十百千万]+))"
    rf"|(?P<percent>%|\bper\s?cent\b|\bpercent\b)"
    rf"|(?P<money>[£$€¥]|(?:\b(?:pounds?|dollars?|euros?|yuan|gbp|usd|eur|cny|rmb)\b)|元|块钱?)"
    rf"|(?P<number>(?:(?<![\w.,)])-)?(?<![a-z\d.])(?:{_NUMBER})(?:st|nd|rd|th|万|亿)?)"
    rf"|(?P<numeral>[零〇一二两三四五六七八九十百千万]+)"
    rf"|(?P<cjk>[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff])"
    rf"|(?P<word>[^\W_]+(?:'[^\W_]+)*)"
)
_RANGE = re.compile(
    r"(?<![\d.:])(\d{1,2})(?:[:.](\d{2}))?(\s*(?:-|to|and|until|till)\s*)(\d{1,2})((?:[:.]\d{2})?)\s*(am|pm|a\.m\.|p\.m\.)(?!\w)"
)
_CJK = re.compile(r"[\u3040-\u9fff\uf900-\ufaff]")
_NAME = re.compile(r"(?<![.!?:] )(?<!^)\b[A-Z][a-z]+")
_DASHES = str.maketrans({"–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "’": "'", "‘": "'"})


def is_value(token: str) -> bool:
    """Whether a token of `tokens` is a number, a time or a date."""
    return token[:1] in "#@"


def tokens(text: str, *, spelled: bool = True) -> list[str]:
    """The text as comparable tokens: words stemmed, characters of Chinese one by one, "#12.5" numbers, "@14:30" times,
    "@05-03" dates (the year follows as a number). Without `spelled`, number words and numerals are plain words."""
    plain = unicodedata.normalize("NFKC", text).translate(_DASHES).lower()
    plain = _RANGE.sub(_same_half, plain)
    out: list[str] = []
    for match in _PARTS.finditer(plain):
        out.extend(_token(match, spelled))
    return _joined(out) if spelled else [token.removeprefix("?") for token in out]


def _same_half(match: re.Match[str]) -> str:
    """ "9 to 11 am" as "9 am to 11 am"; "11 to 2 pm" as "11 am to 2 pm"."""
    hour, minute, between, other, rest, half = match.groups()
    before = half if int(hour) % 12 <= int(other) % 12 else {"am": "pm", "pm": "am"}[half.replace(".", "")]
    return f"{hour}:{minute or '00'} {before}{between}{other}{rest} {half}"


def _token(match: re.Match[str], spelled: bool) -> Iterator[str]:
    text, found = match.group(), match.groupdict()
    kind = next(name for name in _KINDS if found[name] is not None)
    if kind in ("iso", "han", "day", "month"):
        yield from _date(found, text)
    elif kind in ("clock", "plain", "dian"):
        hour = found["h1"] or found["h2"] or found["h3"]
        minute = found["i1"] or found["i2"] or found["i3"] or found["i4"] or ("30" if found["i5"] else "0")
        minute = str(_han(found["i6"])) if found["i6"] else minute
        yield _time(int(hour) if hour.isdigit() else _han(hour), int(minute), found["p1"] or found["p2"] or "")
    elif kind == "noon":
        yield "@12:00" if text == "noon" else "@00:00"
    elif kind == "share":
        amount = str(found["s1"])
        yield _number(amount) if amount[0].isdigit() else f"#{_han(amount)}"
        yield "percent"
    elif kind == "percent":
        yield "percent"
    elif kind == "number":
        power = {"万": 10_000, "亿": 100_000_000}.get(text[-1])
        digits = re.sub(r"[^\d.]+$", "", text)
        yield _number(f"{float(digits.replace(',', '')) * power:.4f}" if power else digits)
    elif kind == "numeral":
        yield from [f"#{_han(text)}"] if spelled else list(text)
    elif kind == "word":
        value = _WORDS.get(text, _TENS.get(text)) if spelled else None
        yield (f"?#{value}" if text in _TENS else f"#{value}") if value is not None else stem(text.removesuffix("'s"))
    elif kind == "cjk":
        yield text


_KINDS = ("iso", "han", "day", "month", "clock", "plain", "dian", "noon", "share", "percent", "money", "number",
          "numeral", "cjk", "word")  # fmt: skip


def _joined(parts: Sequence[str]) -> list[str]:
    """ "twenty" and "three" as 23; a ten in words carries "?" until here."""
    out: list[str] = []
    open_ten = False
    for part in parts:
        if open_ten and re.fullmatch(r"#[1-9]", part):
            out[-1] = f"#{int(out[-1][1:]) + int(part[1:])}"
            open_ten = False
            continue
        open_ten = part.startswith("?")
        out.append(part.removeprefix("?"))
    return out


def _date(found: dict[str, Any], text: str) -> Iterator[str]:
    year, month, day = (next((found[f"{key}{n}"] for n in "1234" if found[f"{key}{n}"]), "") for key in "ymd")
    number = int(month) if month.isdigit() else next(n for n, name in enumerate(_MONTHS, 1) if name[:3] == month[:3])
    if not (1 <= number <= 12 and 1 <= int(day) <= 31):
        yield from (_number(part) for part in re.findall(r"\d+", text))
        return
    yield f"@{number:02d}-{int(day):02d}"
    if year:
        yield f"#{int(year)}"


def _time(hour: int, minute: int, half: str) -> str:
    half = half.replace(".", "")
    if half in ("pm", "下午", "傍晚", "晚上") and hour < 12:
        hour += 12
    elif half in ("am", "凌晨") and hour == 12:
        hour = 0
    return f"@{hour % 24:02d}:{minute:02d}"


def _number(text: str) -> str:
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, rest = digits.replace(",", "").partition(".")
    rest = rest.rstrip("0")
    value = (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")
    return f"#{sign if value != '0' else ''}{value}"


def _han(text: str) -> int:
    """三十五 = 35, 一百二十 = 120, 两千 = 2000, 二〇二四 = 2024."""
    if not any(character in _HAN_POWERS for character in text):
        return int("".join(str(_HAN[character]) for character in text))
    total = section = digit = 0
    for character in text:
        power = _HAN_POWERS.get(character)
        if power is None:
            digit = _HAN[character]
        elif power == 10_000:
            total, section, digit = (total + section + digit or 1) * power, 0, 0
        else:
            section, digit = section + (digit or 1) * power, 0
    return total + section + digit


def says_value(text: str, value: Any, *, parts: Sequence[str] | None = None) -> bool:
    """Whether a text says one value of a table. Numbers may be rounded to the decimals that the text gives, at least
    one where there are any; a missing value is said by anything. `parts` are the text's tokens, if known."""
    there = tokens(text) if parts is None else list(parts)
    if value is None:
        return True
    if isinstance(value, bool | int | float):
        return any(rounds(float(value), token[1:]) for token in there if token.startswith("#"))
    wanted = tokens(str(value))
    return _within(wanted, there) or (any(map(is_value, wanted)) and set(wanted) <= set(there))


def rounds(value: float, written: str) -> bool:
    """Whether a written number is the value, or the value rounded to the decimals that are written, at least one."""
    decimals = len(written.partition(".")[2])
    if abs(float(written) - value) <= 1e-12 * max(1.0, abs(value)):
        return True
    return decimals > 0 and abs(float(written) - value) <= 0.5000001 * 10.0**-decimals


def _within(wanted: Sequence[str], there: Sequence[str]) -> bool:
    """Whether one list stands in the other, in a row; an empty one does not."""
    size = len(wanted)
    return size > 0 and any(list(there[i : i + size]) == list(wanted) for i in range(len(there) - size + 1))


def says(text: str, fact: str) -> bool:
    """Whether a text contains a fact; each line of `fact` is one wording of it, and one is enough.

    A wording is contained word for word, or in other words: all its numbers, times, dates and names, and all of its
    other words (SHARE of them in a longer one) within WINDOW sentences. An empty fact is never said.
    """
    there = tokens(text)
    lines = [line for line in fact.split("\n") if line.strip()]
    if any(_within(tokens(line), there) for line in lines):
        return True
    parts = sentences(text)
    windows = [" ".join(parts[i : i + WINDOW]) for i in range(max(1, len(parts) - WINDOW + 1))]
    return any(_reworded(window, line) for line in lines for window in windows)


def _reworded(text: str, line: str) -> bool:
    there, wanted = set(tokens(text)), tokens(line)
    if not {token for token in wanted if is_value(token)} <= there:
        return False
    if not {stem(name.lower()) for name in _NAME.findall(line)} <= there:
        return False
    content = {word for word in words(line) if not re.search(r"\d", word)}
    if not content:
        return any(map(is_value, wanted))
    spoken = set(words(text)) | there
    if len(content) <= SHORT and not any(_CJK.match(word) for word in content):
        return content <= spoken
    return len(content & spoken) >= SHARE * len(content)
