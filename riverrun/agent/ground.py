"""Answers that say what the tools returned: a model's closing text is checked, or left out altogether.

Rows of a query are recognised by `data["rows"]` and `data["columns"]`, a search by `data["pages"]`. A text that does
not say the rows' values, that names a number found nowhere, or that shares no sentence and no number with the pages, is
replaced: by a plain listing of the rows, by the pages' own sentences. Not covered: a text that says all the values and
draws a wrong conclusion from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from riverrun.agent.tool import clip
from riverrun.base.errors import RiverrunError
from riverrun.base.facts import is_value, rounds, says_value, tokens
from riverrun.base.protocols import Completion
from riverrun.base.types import Message, SamplingParams, Usage
from riverrun.base.words import sentences

__all__ = ["Closing", "Extract", "Found", "Grounding", "PageWriter", "list_rows", "say_column"]

Closing = Literal["model", "rows"]
Step = Mapping[str, Any]
ROWS = 10
"""Rows that are listed and that a text must say; beyond them the answer says that there are more."""
CELL = 300
"""Characters of a value that are listed."""
_SAID = {
    "en": {
        "none": "No matching rows were found.",
        "no page": "I found nothing about that on the pages.",
        "failed": "I could not find an answer to that.",
        "more": "(There are more rows.)",
        "null": "not given",
    },
    "zh": {
        "none": "没有找到符合条件的记录。",
        "no page": "页面上没有找到相关内容。",
        "failed": "我没有找到答案。",
        "more": "(还有更多记录。)",
        "null": "无",
    },
}
_FUNCTIONS = {
    "count": ("count", "数量"),
    "sum": ("total", "合计"),
    "total": ("total", "合计"),
    "avg": ("average", "平均"),
    "min": ("lowest", "最小"),
    "max": ("highest", "最大"),
}
_NEGATION = re.compile(r"\b(?:no|not|none|nothing|never|cannot|\w+n't)\b|没|无|未|不", re.IGNORECASE)


class PageWriter(Protocol):
    """Words the answer to a page question, in the place of a closing turn of the agent's model."""

    def __call__(self, question: str, found: Found, params: SamplingParams) -> Completion: ...


@dataclass(frozen=True)
class Found:
    """The last search of a run: its query, the ids of its pages, and the passages as the model reads them."""

    query: str
    pages: tuple[str, ...]
    content: str


@dataclass(frozen=True)
class Extract:
    """A PageWriter without a model: what `search` quotes for the question and the query together."""

    search: Callable[[str], str]

    def __call__(self, question: str, found: Found, params: SamplingParams) -> Completion:
        return said(self.quote(question, found))

    def quote(self, question: str, found: Found) -> str:
        """The pages' own words; the first passage where the search quotes nothing; empty when nothing was found."""
        if not found.pages:
            return ""
        asked = question if found.query in question else f"{question} {found.query}"
        first = found.content.split("\n")[0]
        return self.search(asked) or re.sub(r"^\[[^\]]*\] .*?: ", "", first)


def said(text: str) -> Completion:
    """An answer that no model was asked for."""
    return Completion(Message.of("assistant", text), "stop", Usage(), text)


@dataclass(frozen=True)
class Grounding:
    """How an agent ends a run whose tools returned something.

    extract: quotes the pages. checked: the model's closing text is held back and checked. closing: "rows" answers from
    the rows of the first queries that work, without another turn of the model (so it cannot query again). writer: words
    page answers in the model's place.
    """

    extract: Extract
    checked: bool = True
    closing: Closing = "model"
    writer: PageWriter | None = None
    name: str = ""
    """What tells this grounding's writer from others, for the agent's digest."""

    def close(
        self, question: str, steps: Sequence[Step], latest: int, language: str, params: SamplingParams
    ) -> Completion | None:
        """The answer that needs no closing turn, None when the model is to be asked. `latest`: calls of the last turn;
        if one of them failed the model may try again."""
        rows, found = _rows(steps), _found(steps)
        if (rows is None and found is None) or any(step["is_error"] for step in steps[len(steps) - latest :]):
            return None
        if (rows is not None and self.closing != "rows") or (found is not None and self.writer is None):
            return None
        listing = list_rows(rows["columns"], rows["rows"], bool(rows.get("more")), language) if rows is not None else ""
        if found is None or self.writer is None:
            return said(listing)
        try:
            written = self.writer(question, found, params)
        except RiverrunError:  # a prompt that its model refuses
            written = self.extract(question, found, params)
        text = "\n".join(filter(None, (listing, self.worded(written.message.text, question, found, language))))
        return Completion(Message.of("assistant", text), written.finish_reason, written.usage, text)

    def check(self, text: str, question: str, steps: Sequence[Step], language: str) -> str:
        """The text where it says what the steps returned; else with a listing, a quotation or both in its place."""
        if not self.checked or not steps:
            return text
        rows, found = _rows(steps), _found(steps)
        if rows is None and found is None:
            known = " ".join([question, *(str(step["content"]) for step in steps)])
            return text if text.strip() and not _strangers(text, known, ()) else _SAID[language]["failed"]
        values = [value for row in (rows or {"rows": []})["rows"] for value in row]
        known = "\n".join([self._source(question, found) if found else question, *map(str, values)])
        whole = not _strangers(text, known, [*values, len(rows["rows"]) if rows else 0])
        rows_said = rows is None or (whole and _says_rows(text, rows))
        page_said = found is None or (whole and self._of_pages(text, question, found))
        parts = []
        if rows is not None and not rows_said:
            parts.append(list_rows(rows["columns"], rows["rows"], bool(rows.get("more")), language))
        if (rows is not None and rows_said) or (found is not None and page_said):
            parts.append(text)
        if found is not None and not page_said:
            parts.append(self._quote(question, found, language))
        return "\n".join(parts)

    def worded(self, text: str, question: str, found: Found, language: str) -> str:
        """A writer's text as it is shown: a quotation in place of none, or of one that does not pass the check."""
        text = text.strip()
        strange = _strangers(text, self._source(question, found), ())
        if not text or (self.checked and (strange or not self._of_pages(text, question, found))):
            return self._quote(question, found, language)
        return text

    def _quote(self, question: str, found: Found, language: str) -> str:
        return self.extract.quote(question, found) or _SAID[language]["no page"]

    def _source(self, question: str, found: Found) -> str:
        """All that a text about the pages may take numbers from."""
        return "\n".join([question, found.content, self.extract.quote(question, found)])

    def _of_pages(self, text: str, question: str, found: Found) -> bool:
        """Whether a text has a sentence or a number of the pages; of no pages, whether it says so."""
        if not found.pages:
            return bool(_NEGATION.search(text))
        there = tokens(f"{found.content}\n{self.extract.quote(question, found)}")
        if {token for token in tokens(text) if is_value(token)} & set(there):
            return True
        joined = f" {' '.join(there)} "
        parts = [tokens(part) for part in sentences(text)]
        return any(len(part) > 2 and f" {' '.join(part)} " in joined for part in parts)


def _rows(steps: Sequence[Step]) -> Mapping[str, Any] | None:
    """The data of the last query that worked."""
    for step in reversed(steps):
        data = step.get("data")
        if not step["is_error"] and isinstance(data, Mapping) and "rows" in data and "columns" in data:
            return data
    return None


def _found(steps: Sequence[Step]) -> Found | None:
    """The last search that worked."""
    for step in reversed(steps):
        data = step.get("data")
        if not step["is_error"] and isinstance(data, Mapping) and "pages" in data:
            return Found(str(step["arguments"].get("query") or ""), tuple(data["pages"]), str(step["content"]))
    return None


def _strangers(text: str, known: str, values: Sequence[Any]) -> set[str]:
    """Numbers, times and dates of a text that stand nowhere else; the numbers of a list's items do not count."""
    bare = re.sub(r"(?m)^\s*\d{1,2}[.)]\s+", "", text)
    odd = {token for token in tokens(bare, spelled=False) if is_value(token)} - set(tokens(known))
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return {token for token in odd if token[0] != "#" or not any(rounds(value, token[1:]) for value in numbers)}


def _says_rows(text: str, data: Mapping[str, Any]) -> bool:
    """Whether a text says every value of all rows; that there are none or more rows only the listing says for sure."""
    rows = data["rows"]
    if _is_empty(rows):
        return bool(_NEGATION.search(text))
    if data.get("more") or len(rows) > ROWS:
        return False
    parts = tokens(text)
    return all(says_value(text, _shown(value), parts=parts) for row in rows for value in row)


def _is_empty(rows: Sequence[Sequence[Any]]) -> bool:
    return all(value is None for row in rows for value in row)


def _shown(value: Any) -> Any:
    return clip(" ".join(value.split()), CELL) if isinstance(value, str) else value


def list_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], more: bool, language: str) -> str:
    """Rows in plain words: "price: 12.5"; "title, price:" and a line a row where there are several."""
    if _is_empty(rows):
        return _SAID[language]["none"]
    comma, colon = ("、", ":") if language == "zh" else (", ", ": ")
    names = [say_column(column, language) for column in columns]
    cut = more or len(rows) > ROWS
    shown = [[_say(value, language) for value in row] for row in rows[:ROWS]]
    if len(rows) == 1:
        pairs = [f"{name}{colon}{value}" if name else value for name, value in zip(names, shown[0], strict=True)]
        text = comma.join(pairs)
    elif len(columns) == 1:
        text = (f"{names[0]}{colon}" if names[0] else "") + comma.join(row[0] for row in shown)
    else:
        head = comma.join(filter(None, names))
        text = "\n".join(
            [f"{head}{colon.rstrip()}" if head else "", *(f"- {comma.join(row)}" for row in shown)]
        ).strip()
    return f"{text}\n{_SAID[language]['more']}" if cut else text


def _say(value: Any, language: str) -> str:
    """A value as a person reads it: numbers above one with at most two decimals, smaller ones with four digits."""
    if value is None:
        return _SAID[language]["null"]
    if isinstance(value, float):
        short = round(value, 2) if abs(value) >= 1 else float(f"{value:.4g}")
        return f"{short:.12f}".rstrip("0").rstrip(".") if abs(short) < 1e15 else f"{short:.0f}"
    return str(_shown(value))


def say_column(name: str, language: str) -> str:
    """A column's name in words: "unitPrice" as "unit price", "AVG(price)" as "average price"; "" for an expression."""
    name = re.sub(r"^round\((.*?)(?:,\s*\d+)?\)$", r"\1", name.strip(), flags=re.IGNORECASE)
    call = re.fullmatch(r"(\w+)\((?:distinct\s+)?(.*)\)", name, re.IGNORECASE)
    if call and call[1].lower() in _FUNCTIONS:
        word = _FUNCTIONS[call[1].lower()][language == "zh"]
        inner = say_column(call[2], language) if call[2] != "*" and call[1].lower() != "count" else ""
        return f"{word} {inner}".strip()
    bare = name.rpartition(".")[2].strip('"`[] ')
    if not re.fullmatch(r"[^\W\d][\w $-]*", bare):
        return ""
    spaced = re.sub(r"(?<=[a-z\d])(?=[A-Z])", " ", bare.replace("_", " ").replace("-", " "))
    return " ".join(spaced.split()) if spaced.isupper() or " " not in spaced else " ".join(spaced.lower().split())
