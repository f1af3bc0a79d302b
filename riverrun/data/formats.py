"""The formats of training rows, one table: how a row of each is known, and what it becomes.

A file has one format, told from its first rows or given by name; a row that does not fit it is set aside, never read
as something else. Sources of the forms: Stanford Alpaca; ShareGPT as LLaMA-Factory writes it (data/README.md there);
OpenAI's fine-tuning files; XTuner (docs/zh_cn/user_guides/dataset_format.md); TRL (docs: dataset formats).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riverrun.base.errors import InputError, nearest
from riverrun.base.types import Message
from riverrun.data.examples import BadRow, Example, Kind
from riverrun.data.messages import (
    openai_messages,
    plain,
    read_tools,
    refuse_media,
    sharegpt_messages,
    shown,
    xtuner_messages,
)

__all__ = ["FORMATS", "Format", "detect", "get_format", "read_example"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One form of rows. `fits` looks at the fields of a row alone; `read` gives one example or raises BadRow."""

    name: str
    kind: Kind
    fits: Callable[[Row], bool]
    read: Callable[[Row], Example]
    fields: str


def _text(row: Row, *names: str, needed: bool = True) -> str:
    """The first of the fields that is there, as a text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            raise BadRow("not_this_format", f"'{name}' must be a text, it is {type(value).__name__}")
    if needed:
        raise BadRow("not_this_format", f"'{names[0]}' is missing; there are {shown(sorted(map(str, row)))}")
    return ""


# ---- single answers -------------------------------------------------------------------------------------------------


def _alpaca_prompt(row: Row) -> tuple[Message, ...]:
    """System, earlier turns and the question of an Alpaca row."""
    messages = [plain("system", system)] if (system := _text(row, "system", needed=False)) else []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow("not_this_format", f"'history' must be a list, it is {type(history).__name__}")
    for turn in history:
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise BadRow("not_this_format", f"'history' must hold pairs of texts, it holds {shown(turn)}")
        messages += [plain("user", turn[0]), plain("assistant", turn[1])]
    question, more = _text(row, "instruction", "prompt"), _text(row, "input", "query", needed=False)
    messages.append(plain("user", f"{question}\n{more}" if question and more else question or more))
    return tuple(messages)


def _alpaca(row: Row) -> Example:
    answer = _text(row, "output", "response")
    return Example((*_alpaca_prompt(row), plain("assistant", answer)), read_tools(row.get("tools")))


def _openai(row: Row) -> Example:
    messages, learn = openai_messages(row["messages"])
    return Example(messages, read_tools(row.get("tools")), learn=learn)


def _sharegpt(row: Row) -> Example:
    messages, learn = sharegpt_messages(row["conversations"], row.get("system"))
    return Example(messages, read_tools(row.get("tools")), learn=learn)


def _xtuner(row: Row) -> Example:
    messages, learn = xtuner_messages(row["conversation"])
    return Example(messages, learn=learn)


def _prompt_completion(row: Row) -> Example:
    return Example((*_prompt(row["prompt"]), *_answer(_first(row, _ANSWERS))), read_tools(row.get("tools")))


def _plain_text(row: Row) -> Example:
    return Example(text=_text(row, "text"))


# ---- preferences ----------------------------------------------------------------------------------------------------

_ANSWERS = ("completion", "response", "answer")


def _first(row: Row, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _prompt(value: Any) -> tuple[Message, ...]:
    """A prompt as a text (what a user asks), as messages, or as from/value turns."""
    if isinstance(value, str):
        return (plain("user", value),)
    if isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        return sharegpt_messages(value)[0]
    return openai_messages(value)[0]


def _answer(value: Any) -> tuple[Message, ...]:
    """An answer as a text, one message, or a list of them."""
    if isinstance(value, str):
        return (plain("assistant", value),)
    messages = _prompt([value] if isinstance(value, dict) else value)
    if not messages or messages[-1].role != "assistant":
        raise BadRow("no_assistant", "an answer does not end with an assistant turn")
    return messages


def _preference(row: Row) -> Example:
    """{prompt, chosen, rejected}; without a prompt, it is what two whole conversations begin with."""
    chosen, rejected = (_answer(_first(row, (name, f"{name}_messages"))) for name in ("chosen", "rejected"))
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"])
    elif row.get("conversations") is not None:
        prompt = sharegpt_messages(row["conversations"], row.get("system"))[0]
    elif row.get("messages") is not None:
        prompt = openai_messages(row["messages"])[0]
    elif row.get("instruction") is not None:
        prompt = _alpaca_prompt(row)
    else:
        prompt = ()
    shared = 0
    if not prompt or chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        while shared and chosen[shared - 1].role == "assistant":
            shared -= 1
        if not shared:
            raise BadRow("not_this_format", "there is no prompt, and chosen and rejected have no common beginning")
        prompt = chosen[:shared]
    if chosen == rejected:
        raise BadRow("same_answers", "chosen and rejected are the same")
    return Example(prompt, read_tools(row.get("tools")), chosen=chosen[shared:], rejected=rejected[shared:])


def _kto(row: Row) -> Example:
    """A conversation whose last answer was judged: {kto_tag | label: true or false}."""
    good = row.get("kto_tag", row.get("label"))
    if not isinstance(good, bool):
        raise BadRow("not_this_format", f"the label must be true or false, it is {shown(good)}")
    if row.get("messages") is not None:
        messages = openai_messages(row["messages"])[0]
    elif row.get("conversations") is not None:
        messages = sharegpt_messages(row["conversations"], row.get("system"))[0]
    elif row.get("instruction") is not None:
        messages = (*_alpaca_prompt(row), plain("assistant", _text(row, "output", "response")))
    else:
        messages = (*_prompt(row.get("prompt")), *_answer(_first(row, _ANSWERS)))
    if not messages or messages[-1].role != "assistant":
        raise BadRow("no_assistant", "a judged conversation must end with an assistant turn")
    return Example(messages, read_tools(row.get("tools")), good=good)


# ---- the table ------------------------------------------------------------------------------------------------------


def _has(row: Row, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _fits_preference(row: Row) -> bool:
    return _has(row, "chosen", "rejected") or _has(row, "chosen_messages", "rejected_messages")


def _fits_kto(row: Row) -> bool:
    return _has(row, "kto_tag") or (
        isinstance(row.get("label"), bool) and (_has(row, "messages") or _has(row, "prompt"))
    )


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("preference", "preference", _fits_preference, _preference, "prompt, chosen, rejected"),
        Format("kto", "kto", _fits_kto, _kto, "messages (or prompt, completion), label (or kto_tag)"),
        Format("openai", "chat", lambda row: isinstance(row.get("messages"), list), _openai, "messages, tools"),
        Format("xtuner", "chat", lambda row: isinstance(row.get("conversation"), list), _xtuner, "conversation"),
        Format(
            "sharegpt", "chat", lambda row: isinstance(row.get("conversations"), list), _sharegpt,
            "conversations, system, tools",
        ),
        Format(
            "alpaca", "chat", lambda row: _has(row, "instruction", "output"), _alpaca,
            "instruction, input, output, system, history",
        ),
        Format(
            "prompt", "chat", lambda row: _has(row, "prompt") and _first(row, _ANSWERS) is not None,
            _prompt_completion, "prompt, completion",
        ),
        Format("text", "text", lambda row: isinstance(row.get("text"), str), _plain_text, "text"),
    )
}  # fmt: skip
"""In the order in which they are tried: what holds more fields comes first."""


def get_format(name: str) -> Format:
    """The format of that name; InputError with the nearest names when there is none."""
    if name not in FORMATS:
        raise InputError(f"no format of rows is named '{name}'.{nearest(name, FORMATS)}")
    return FORMATS[name]


def detect(rows: Sequence[Any], where: str) -> Format:
    """The format that most of a file's first rows have; InputError names the fields there are when none fits."""
    counts: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Mapping):
            found = next((form.name for form in FORMATS.values() if form.fits(row)), "")
            counts[found] = counts.get(found, 0) + 1
    known = {name: count for name, count in counts.items() if name}
    if known:
        return FORMATS[max(known, key=lambda name: known[name])]
    first = next((row for row in rows if isinstance(row, Mapping)), None)
    if first is None:
        raise InputError(f"{where} has no row that is a JSON object among its first {len(rows)}: no format can be told")
    forms = "; ".join(f"{form.name}: {form.fields}" for form in FORMATS.values())
    raise InputError(
        f"{where} has the fields {', '.join(map(str, first)) or '(none)'}, which are no known format's ({forms}): "
        "name them with `columns`, such as columns: {instruction: question, output: answer}"
    )


def read_example(form: Format, row: Any, columns: Mapping[str, str] | None = None) -> Example:
    """One row as an example; BadRow says why not. `columns` gives the row's own names for a format's fields."""
    if not isinstance(row, Mapping):
        raise BadRow("not_this_format", f"the row must be an object, it is {type(row).__name__}")
    if columns:
        row = {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}
    refuse_media(row)
    if not form.fits(row):
        there = shown(sorted(map(str, row)))
        raise BadRow("not_this_format", f"a row of format '{form.name}' needs {form.fields}; there are {there}")
    example = form.read(row)
    if example.kind == "chat" and not any(
        m.role == "assistant" and (m.content or m.tool_calls) for m in example.messages
    ):
        raise BadRow("no_assistant", "no assistant turn says anything")
    return example
