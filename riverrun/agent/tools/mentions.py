"""What a question names of the database's own values: "songs by ac/dc" holds the value 'AC/DC' of Artist.Name.

A small model copies what stands before it far better than it recalls which column a name belongs to. So the values
found in a question (whole, or a unique part of one, or with one letter wrong), months and days as the database writes
them, and amounts in a column's own unit are put behind the question, in training as in serving. The index is read from
the database and again when its file has changed; private columns are not in it.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from riverrun.base.sql import quote_literal, quote_name
from riverrun.base.words import STOP_WORDS, stem

__all__ = ["Mention", "Mentions", "without_note"]

VALUES = 20_000
"""Different values of a column that are indexed; a column with more holds no names to look for."""
CHARACTERS = 80
"""Longer values are texts, not names."""
VOCABULARY = 200
"""A column with at most so many values is a vocabulary: its values are known without a capital letter."""
STATUSES = 12
"""A column with at most so many values may have common words among them: a status, a size."""
SHORTEST = 3
"""A text of fewer characters stands for nothing longer."""
SHOWN = 4
"""Things named in one note, and columns named for one thing."""
_NEVER = STOP_WORDS | {"yes", "no", "not", "none", "all", "first", "last", "more", "most", "one", "other", "now"}
_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_MONTHS = [
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
]
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" if name != "may" else "may" for name in _MONTHS).replace(
    "sep(", "sept?("
)
_YEAR = r"([12]\d{3})"
_DATES = (
    (re.compile(rf"\b({_MONTH})\.? (\d{{1,2}})(?:st|nd|rd|th)?,? {_YEAR}\b", re.I), "mdy"),
    (re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTH})\.?,? {_YEAR}\b", re.I), "dmy"),
    (re.compile(rf"\b({_MONTH})\.?(?: of)?,? {_YEAR}\b", re.I), "my"),
    (re.compile(rf"{_YEAR}\s*年\s*(\d{{1,2}})\s*月\s*(\d{{1,2}})\s*[日号]"), "ymd"),
    (re.compile(rf"{_YEAR}\s*年\s*(\d{{1,2}})\s*月"), "ym"),
    (re.compile(rf"\b{_YEAR}[/.](\d{{1,2}})[/.](\d{{1,2}})\b"), "ymd"),
)
_UNITS: Mapping[str, Mapping[str, float]] = {
    "time": {"millisecond": 0.001, "second": 1, "minute": 60, "hour": 3600},
    "bytes": {"byte": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    "weight": {"gram": 1, "kg": 1000, "ton": 1e6},
    "length": {"mm": 0.001, "cm": 0.01, "metre": 1, "km": 1000},
    "money": {"cent": 0.01, "dollar": 1, "euro": 1},
}
_SPELLINGS = {
    **{"ms": "millisecond", "msec": "millisecond", "sec": "second", "secs": "second", "min": "minute"},
    **{"mins": "minute", "hr": "hour", "hrs": "hour", "duration ms": "millisecond", "g": "gram", "grams": "gram"},
    **{"kilo": "kg", "kilos": "kg", "kilogram": "kg", "kilograms": "kg", "kgs": "kg", "t": "ton", "tons": "ton"},
    **{"tonne": "ton", "tonnes": "ton", "m": "metre", "meter": "metre", "meters": "metre", "metres": "metre"},
    **{"megabyte": "mb", "megabytes": "mb", "gigabyte": "gb", "gigabytes": "gb", "kilobyte": "kb", "kilobytes": "kb"},
    **{"millis": "millisecond", "$": "dollar", "€": "euro", "毫秒": "millisecond", "秒": "second", "分钟": "minute"},
    **{
        "小时": "hour",
        "克": "gram",
        "公斤": "kg",
        "千克": "kg",
        "吨": "ton",
        "厘米": "cm",
        "米": "metre",
        "公里": "km",
    },
    **{"分": "cent", "元": "dollar"},
}
_HAN_STATE = re.compile("^已(?=[\u3400-\u9fff]{2})|(?<=[\u3400-\u9fff]{2})[中了]$")
"""`营业中`, `已取消`: people leave out what says that it is a state."""
_HAN_NO = re.compile("(未|没|没有|不|不是|非|无|尚未|还没)$")
_HAN_MORE = re.compile("[额率费量时日]|方式")
_NOTE = re.compile(r"\n\([^\n]*\)$")
_WORD = "[a-z]+|毫秒|秒|分钟|小时|克|公斤|千克|吨|厘米|米|公里|元"
_AMOUNT = re.compile(rf"(?<![\w.])(\d+(?:\.\d+)?)\s*({_WORD})(?![a-z])", re.I)


_Place = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Mention:
    """A value of columns: `columns` are (table, column, value), several where first and last name go together."""

    start: int
    end: int
    columns: _Place


@dataclass(frozen=True)
class _Index:
    """Tokens of a value -> where it stands; a token -> the values that hold it; (table, column) -> how many values."""

    whole: Mapping[str, tuple[_Place, ...]]
    holding: Mapping[str, tuple[str, ...]]
    sizes: Mapping[tuple[str, str], int]
    longest: int


class Mentions:
    """columns: table -> the columns whose values are looked for, names of things first. pairs: (table, first, last)
    columns of people's names. numbers: (table, column) of numbers, whose unit is read from the name. nouns: the
    words of the schema's own names. synonyms: other words -> the tables and columns they may mean; phrases: the same
    for words written without spaces. codes: (table, column, value, meaning) of short codes that a question names by
    what they mean."""

    def __init__(
        self,
        path: Path | str,
        columns: Mapping[str, Sequence[str]],
        *,
        pairs: Sequence[tuple[str, str, str]] = (),
        numbers: Sequence[tuple[str, str]] = (),
        nouns: Sequence[str] = (),
        synonyms: Mapping[str, Sequence[str]] | None = None,
        phrases: Mapping[str, Sequence[str]] | None = None,
        codes: Sequence[tuple[str, str, str | int, str]] = (),
    ) -> None:
        self.path, self.columns, self.pairs = Path(path), columns, tuple(pairs)
        self.synonyms = {stem(word): tuple(names) for word, names in (synonyms or {}).items()}
        self.nouns = frozenset(stem(word) for noun in nouns for word in _tokens(noun)) | self.synonyms.keys()
        written = " ".join(name for names in self.synonyms.values() for name in names)
        self.written = {stem(word) for word in _tokens(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", written).replace("_", " "))}
        self.units = [(unit, table, column) for table, column in numbers if (unit := _unit_of(column))]
        self.codes = tuple(codes)
        self.bare = frozenset((table, column) for table, column, value, _ in codes if isinstance(value, int))
        kept = {phrase: tuple(names) for phrase, names in (phrases or {}).items() if len(phrase) > 1}
        self.phrases = {phrase: kept[phrase] for phrase in sorted(kept, key=len, reverse=True)}
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._index = _Index({}, {}, {}, 0)

    def note(self, question: str) -> str:
        """The question, and behind it in brackets what it names; the question alone when that is nothing."""
        measured, rest = self._measured(question)
        mentions = self.find(rest)
        found = [*map(self._said, mentions), *measured, *self._meant(rest, mentions)]
        return f"{question}\n({'; '.join(found)})" if found else question

    def _meant(self, question: str, mentions: Sequence[Mention]) -> list[str]:
        """`pay: vets.salary`, for words that stand for a table or column under another name."""
        out: dict[str, str] = {}
        for match in _TOKEN.finditer(_plain(question)):
            names = self.synonyms.get(stem(match[0]), ())
            inside = any(mention.start <= match.start() < mention.end for mention in mentions)
            if names and not inside and stem(match[0]) not in self.written:
                out.setdefault(match[0], f"{match[0]}: {', '.join(names)}")
        taken = [False] * len(question)
        for mention in mentions:
            taken[mention.start : mention.end] = [True] * (mention.end - mention.start)
        for phrase, names in self.phrases.items():
            at = question.find(phrase)
            if at >= 0 and not any(taken[at : at + len(phrase)]):
                taken[at : at + len(phrase)] = [True] * len(phrase)
                out.setdefault(phrase, f"{phrase}: {', '.join(names)}")
        return list(out.values())[:SHOWN]

    def _said(self, mention: Mention) -> str:
        def literal(table: str, column: str, value: str) -> str:
            return value if (table, column) in self.bare else quote_literal(_tidy(value))

        return ", ".join(
            f"{quote_name(table)}.{quote_name(column)}: {literal(table, column, value)}"
            for table, column, value in mention.columns
        )

    def _measured(self, question: str) -> tuple[list[str], str]:
        """Days, months and amounts as the database writes them, and the question without them."""
        dates, rest = _dates(question)
        amounts, rest = self._amounts(rest)
        return dates + amounts, rest

    def find(self, question: str) -> list[Mention]:
        """What is named, in the order of the question: the longest values first, none inside another."""
        look = _Look(self._fresh(), question, self.nouns)
        found = [mention for mention in look.found() if not self._denied(question, mention)]
        return sorted(found, key=lambda mention: mention.start)[: 2 * SHOWN]

    def _denied(self, question: str, mention: Mention) -> bool:
        """Whether a code's meaning stands behind a no (`未付款`) or inside another word (`营业额`)."""
        coded = {(table, column) for table, column, _, _ in self.codes}
        if not all((table, column) in coded for table, column, _ in mention.columns):
            return False
        before, after = question[: mention.start], question[mention.end :]
        return bool(_HAN_NO.search(before) or (_HAN_MORE.match(after) and not before.endswith("已")))

    def has(self, table: str, column: str, value: str) -> bool:
        """Whether a column holds exactly this value, as far as it is indexed."""
        places = self._fresh().whole.get(" ".join(_tokens(value)), ())
        return any((table, column, value) in place for place in places)

    def meant(self, table: str, column: str, value: str) -> str | None:
        """The one value of a column that has this one's words, or holds them in a row; None for none or several."""
        tokens = _tokens(value)
        if not tokens or len(value) < SHORTEST:
            return None
        index, wanted = self._fresh(), " ".join(tokens)
        keys = [wanted] if wanted in index.whole else []
        same = self._of(index, keys, table, column)
        if same:
            return same.pop() if len(same) == 1 else None
        rarest = min((index.holding.get(token, ()) for token in tokens), key=len)
        keys = [key for key in rarest if f" {wanted} " in f" {key} "]
        held = self._of(index, keys, table, column)
        return held.pop() if len(held) == 1 else None

    @staticmethod
    def _of(index: _Index, keys: Sequence[str], table: str, column: str) -> set[str]:
        return {
            part[2]
            for key in keys
            for place in index.whole[key]
            if len(place) == 1
            for part in place
            if part[:2] == (table, column)
        }

    def _amounts(self, question: str) -> tuple[list[str], str]:
        """`5 minutes: 300000 Milliseconds`, for columns that are kept in another unit of the same kind."""
        out: list[str] = []

        def said(match: re.Match[str]) -> str:
            unit, there = _unit(match[2]), False
            for own, _, column in self.units:
                kind = _kind_of(own)
                if unit in _UNITS[kind]:
                    there = True
                    value = float(match[1]) * _UNITS[kind][unit] / _UNITS[kind][own]
                    if unit != own:
                        out.append(f"{match[0]}: {value:.10g} {quote_name(column)}")
            return " " * len(match[0]) if there else match[0]

        rest = _AMOUNT.sub(said, question)
        return list(dict.fromkeys(out))[:2], rest

    # The index.

    def _fresh(self) -> _Index:
        """The index of the file as it is now."""
        stat = self.path.stat()
        with self._lock:
            if self._seen != (stat.st_mtime_ns, stat.st_size):
                self._index = self._build()
                self._seen = (stat.st_mtime_ns, stat.st_size)
            return self._index

    def _build(self) -> _Index:
        sizes: dict[tuple[str, str], int] = {}
        whole: dict[str, dict[_Place, int]] = {}
        coded = {(table, column) for table, column, _, _ in self.codes}
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            for table, first, last in self.pairs:
                rows = list(self._read(connection, table, (first, last)))
                sizes[table, first] = len(rows)
                for row in rows:
                    place = ((table, first, row[0]), (table, last, row[1]))
                    for order in (row, row[::-1]):
                        whole.setdefault(" ".join(_tokens(" ".join(order))), {})[place] = 0
            for table, columns in self.columns.items():
                for column in columns:
                    values = [row[0] for row in self._read(connection, table, (column,))]
                    sizes[table, column] = max(len(values), sizes.get((table, column), 0))
                    for value in values if (table, column) not in coded else ():
                        if tokens := _tokens(value):
                            whole.setdefault(" ".join(tokens), {})[((table, column, value),)] = len(values)
        for table, column, code, meaning in self.codes:
            sizes[table, column] = max(1, sizes.get((table, column), 0))
            said_by = {meaning, _HAN_STATE.sub("", meaning)}
            others = [other for t, c, _, other in self.codes if (t, c) == (table, column) and other != meaning]
            for said in {each for each in said_by if each == meaning or not any(each in other for other in others)}:
                if tokens := _tokens(said) if len(said) > 1 else []:
                    whole.setdefault(" ".join(tokens), {})[((table, column, str(code)),)] = 1
        holding: dict[str, list[str]] = {}
        for key in whole:
            for token in set(key.split()):
                holding.setdefault(token, []).append(key)
        # a column of few values before one of many: a genre before a title
        ranked = {key: tuple(sorted(places, key=places.__getitem__)) for key, places in whole.items()}
        longest = max((key.count(" ") + 1 for key in whole), default=0)
        return _Index(ranked, {token: tuple(keys) for token, keys in holding.items()}, sizes, longest)

    @staticmethod
    def _read(connection: sqlite3.Connection, table: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        names = [quote_name(column) for column in columns]
        short = " AND ".join(f"typeof({name}) = 'text' AND length({name}) <= {CHARACTERS}" for name in names)
        sql = f"SELECT DISTINCT {', '.join(names)} FROM {quote_name(table)} WHERE {short} LIMIT {VALUES + 1}"
        try:
            rows = connection.execute(sql).fetchall()
        except sqlite3.Error:
            return
        yield from rows if len(rows) <= VALUES else ()


@dataclass
class _Look:
    """One question against an index. A run of tokens is looked for as it stands; then with a letter mended; then, a
    single word, as an ending of a value (`brazilian`) or as a part of few values."""

    index: _Index
    question: str
    nouns: frozenset[str]

    def __post_init__(self) -> None:
        plain = _plain(self.question)
        self.spans = [(match.start(), match.end()) for match in _TOKEN.finditer(plain)]
        self.tokens = [plain[start:end] for start, end in self.spans]
        self.taken = [False] * len(self.tokens)
        self.lower = self.question == self.question.lower()

    def found(self) -> list[Mention]:
        out = self._runs(self.tokens, range(1, self.index.longest + 1))
        mended = [self._mended(at, token) for at, token in enumerate(self.tokens)]
        if mended != self.tokens:
            out += self._runs(mended, range(1, self.index.longest + 1))
        return out + [mention for at in range(len(self.tokens)) if not self.taken[at] for mention in self._alone(at)]

    def _runs(self, tokens: Sequence[str], sizes: range) -> list[Mention]:
        """Values that are whole runs of tokens, longest first."""
        out = []
        for size in reversed(sizes):
            for start in range(len(tokens) - size + 1):
                if any(self.taken[start : start + size]):
                    continue
                run = tokens[start : start + size]
                places: Sequence[_Place] = self.index.whole.get(" ".join(run), ())
                if places and size == 1:
                    places = self._single(start, run[0], places)
                elif all(token in _NEVER for token in run):
                    places = ()
                if places:
                    out += self._take(start, size, places[:SHOWN])
        return out

    def _take(self, start: int, size: int, places: Sequence[_Place]) -> list[Mention]:
        self.taken[start : start + size] = [True] * size
        return [Mention(self.spans[start][0], self.spans[start + size - 1][1], place) for place in places]

    def _single(self, at: int, token: str, places: Sequence[_Place]) -> Sequence[_Place]:
        """Of a single word: a plain one counts where it is one of few values, not as one of thousands of titles."""
        if token.isdigit() or len(token) == 1 or token in _NEVER:
            return ()
        if token in _common() or stem(token) in self.nouns:  # `open`, `paid`: a status
            return [p for p in places if self.index.sizes[p[0][:2]] <= STATUSES]
        return places if self._named(at) else [p for p in places if self.index.sizes[p[0][:2]] <= VOCABULARY]

    def _named(self, at: int) -> bool:
        """Whether a token is written as a name: capital letter inside a sentence, or no alphabet with capitals."""
        start = self.spans[at][0]
        letter = self.question[start : start + 1]
        return not letter.isascii() or (letter != letter.lower() and (at > 0 or self.tokens[at] not in _common()))

    def _mended(self, at: int, token: str) -> str:
        """A word that no value holds, as the one value's word that it is a letter away from."""
        if self.taken[at] or len(token) < 5 or not token.isalpha() or token in _common():
            return token
        if token in self.index.holding or token in self.index.whole or stem(token) in self.nouns:
            return token
        near = {other for other in _nearby(token) if other in self.index.holding}
        return max(sorted(near), key=lambda other: len(self.index.holding[other])) if len(near) <= 3 and near else token

    def _alone(self, at: int) -> list[Mention]:
        """One word as an ending of a value, or as a part of values."""
        token = self.tokens[at]
        if len(token) < 3 or not token.isalpha() or token in _common() or stem(token) in self.nouns:
            return []
        whole = self.index.whole
        for other in _endings(token):
            if len(token) > 3 and (
                places := [p for p in whole.get(other, ()) if self.index.sizes[p[0][:2]] <= VOCABULARY]
            ):
                return self._take(at, 1, places[:SHOWN])
        holders = self.index.holding.get(token, ())
        if not holders or not ((at > 0 and self._named(at)) or (self.lower and len(token) > 5)):
            return []  # a capital letter at the beginning says nothing
        if len(holders) <= 2:
            return self._take(at, 1, [whole[holder][0] for holder in holders])
        columns = sorted({place[0][:2] for holder in holders for place in whole[holder] if len(place) == 1})
        part = self.question[slice(*self.spans[at])]
        return self._take(at, 1, [((*column, f"%{part}%"),) for column in columns]) if len(columns) <= 2 else []


def without_note(text: str) -> str:
    """The question as it was asked."""
    return _NOTE.sub("", text)


def _tidy(value: str) -> str:
    return value.replace("\0", "").encode("utf-8", "replace").decode()


@cache
def _common() -> frozenset[str]:
    return frozenset((files("riverrun.agent") / "lexicons" / "common_words.txt").read_text().split())


@cache
def _accent_free(letter: str) -> str:
    """One character, lower case and without its accent; one character always stays one."""
    plain = unicodedata.normalize("NFKD", letter)[:1].casefold()
    return plain if len(plain) == 1 else letter


def _plain(text: str) -> str:
    return "".join(map(_accent_free, text))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(_plain(text))


def _nearby(word: str) -> Iterator[str]:
    """The words one wrong, missing, doubled or exchanged letter away."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    for at in range(len(word) + 1):
        head, tail = word[:at], word[at:]
        if tail:
            yield head + tail[1:]
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
        for letter in letters:
            if tail:
                yield head + letter + tail[1:]
            yield head + letter + tail


def _endings(word: str) -> Iterator[str]:
    """`germans`, `brazilian`, `rocks` -> what they may be made from."""
    yield word + "y"
    if word.endswith("s"):
        yield word[:-1]
    for ending in ("es", "n", "an", "ian", "ish", "ese", "ns", "ans", "ians"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            yield word.removesuffix(ending)
            yield word.removesuffix(ending) + "y"
            yield word.removesuffix(ending) + "a"


def _dates(question: str) -> tuple[list[str], str]:
    """`March 2010: '2010-03'`, and the question with blanks in their places."""
    out, rest = [], question
    for pattern, order in _DATES:
        for match in pattern.finditer(rest):
            parts = dict(zip(order, match.groups(), strict=True))
            month = parts["m"] if parts["m"].isdigit() else str(_MONTHS.index(_full(parts["m"])) + 1)
            day = f"-{int(parts['d']):02d}" if "d" in parts else ""
            if 1 <= int(month) <= 12:
                out.append(f"{match[0]}: '{parts['y']}-{int(month):02d}{day}'")
        rest = pattern.sub(lambda match: " " * len(match[0]), rest)
    return out[:SHOWN], rest


def _full(month: str) -> str:
    return next(name for name in _MONTHS if name.startswith(month[:3].lower()))


def _unit(word: str) -> str:
    """The unit a word means; "" when it is none."""
    plain = word.lower()
    for name in (plain, plain.removesuffix("s")):
        name = _SPELLINGS.get(name, name)
        if any(name in units for units in _UNITS.values()):
            return name
    return ""


def _kind_of(unit: str) -> str:
    return next(kind for kind, units in _UNITS.items() if unit in units)


def _unit_of(column: str) -> str:
    """The unit a column's name ends with: `Milliseconds`, `weight_g`, `price_cents`."""
    pieces = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[\u3400-\u9fff]+", column)
    return _unit(pieces[-1]) if pieces and pieces[-1].lower() not in ("min", "m", "t", "s") else ""
