"""Chat templates: the model's own jinja is the truth, run in a sandbox; spans of what the assistant emits for the loss.

Rendered is what `apply_chat_template` of transformers renders: tools and documents are handed to templates that ask
for them, and any other variable by name. A template that knows no tools gets them through `wire`, which writes them
out as text before. What users, tools and tool descriptions hold is never tokenised as special (see `marks`). The
rendered text is tokenised as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from riverrun.base.errors import ConfigError, InputError, nearest
from riverrun.base.types import Message, ToolSpec
from riverrun.models.jinja import TemplateCode
from riverrun.models.marks import MarkedText, Shield, anchor, start_mark
from riverrun.models.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Spans", "Talk", "template_messages"]

DEFAULT, TOOL_USE = "default", "tool_use"
_OURS = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


def template_messages(messages: Sequence[Message], model: str = "model") -> list[dict[str, Any]]:
    """Messages as templates read them: content always a text, arguments of a call an object, no empty field."""
    out = []
    for message in messages:
        row: dict[str, Any] = {"role": message.role, "content": message.require_text(model)}
        if message.tool_calls:
            row["tool_calls"] = [
                ({"id": call.id} if call.id else {})
                | {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in message.tool_calls
            ]
        row |= {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}
        if message.reasoning:
            row["reasoning_content"] = message.reasoning
        out.append(row)
    return out


@dataclass(frozen=True)
class Talk:
    """What one call hands to the template, marked or not."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    variables: dict[str, Any]

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools) or any(m["role"] == "tool" or "tool_calls" in m for m in self.messages)

    def shielded(self, shield: Shield, own: Shield) -> Talk:
        """Marked; an assistant's content by `own`: it may hold the marks of calls and thoughts."""
        rows = []
        for row in self.messages:
            out = {key: value if key == "role" else shield(value) for key, value in row.items()}
            if row["role"] == "assistant":
                out["content"] = own(row["content"])
            rows.append(out)
        return Talk(rows, shield(self.tools), shield(self.variables))


class ChatTemplate:
    """Messages to token ids. `source` is one template, or several by name, of which `default` must be one; `tool_use`
    is taken when there are tools. `bos_token` and `eos_token` are the texts that templates write by these names.

    `variables` of a call reach the template by name (`enable_thinking`, `documents`, `date_string`, ...).
    """

    def __init__(self, source: str | Mapping[str, str], *, bos_token: str = "", eos_token: str = "") -> None:
        self.named = {DEFAULT: source} if isinstance(source, str) else dict(source)
        if DEFAULT not in self.named:
            raise ConfigError(
                f"a model with several chat templates needs one named '{DEFAULT}', got {list(self.named)}"
            )
        self.source, self.bos_token, self.eos_token = self.named[DEFAULT], bos_token, eos_token
        text = self.source if len(self.named) == 1 else json.dumps(self.named, sort_keys=True)
        self.sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self._code = {name: TemplateCode(text) for name, text in self.named.items()}
        self._shields: dict[tuple[str, ...], Shield] = {}

    @cached_property
    def names(self) -> frozenset[str]:
        """Variables that a template asks for, beside what a conversation is made of."""
        return frozenset().union(*(code.names for code in self._code.values())) - {*_OURS}

    @cached_property
    def knows_tools(self) -> bool:
        """Whether tools that are handed in are written: a tool is, and its name is looked for."""
        if TOOL_USE in self.named:
            return True
        if "tools" not in self._code[DEFAULT].names:
            return False
        probe = ToolSpec("riverrun_probe", "", {"type": "object", "properties": {}})
        talk = self._talk([Message.of("user", "x")], [probe], {}, "model")
        try:
            return probe.name in self._render(talk, True)
        except InputError:
            return True  # it asks for tools, and for something more than this

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[ToolSpec] = (),
        variables: Mapping[str, Any] | None = None,
        name: str = "",
        model: str = "model",
    ) -> str:
        """The text as the template writes it (the form to compare with `apply_chat_template`)."""
        return self._run(self._talk(messages, tools, variables, model), add_generation_prompt, name=name)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        variables: Mapping[str, Any] | None = None,
        model: str = "model",
    ) -> list[int]:
        """Prompt ids with the assistant's turn opened."""
        talk, marks, _ = self._shielded(tokenizer, self._talk(messages, tools, variables, model))
        return [token for token, _, _ in _split(tokenizer, MarkedText.read(self._run(talk, True)), marks)]

    def encode_answer(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        answer: str,
        *,
        tools: Sequence[ToolSpec] = (),
        variables: Mapping[str, Any] | None = None,
        model: str,
    ) -> list[int]:
        """Ids of the prompt with the beginning of the assistant's answer, tokenised as one text."""
        talk, marks, own = self._shielded(tokenizer, self._talk(messages, tools, variables, model))
        text = MarkedText.read(self._run(talk, True) + own(answer))
        return [token for token, _, _ in _split(tokenizer, text, marks)]

    def encode_with_labels(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and for each whether it is to be learned.

        Learned is what the assistant emits: its contents and calls as the template writes them, all that follows the
        opened turn, and the token that ends the turn; nothing else. A template with `{% generation %}` blocks says
        itself what that is. ConfigError when the template leaves out or rewrites what an assistant said.
        """
        ids, turns = self.encode_turns(tokenizer, messages, tools=tools, variables=variables)
        learned = [False] * len(ids)
        for first, last in turns:
            learned[first:last] = [True] * (last - first)
        return ids, learned

    def encode_turns(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a whole conversation, and the tokens [first, last) that each assistant turn emits, in order.

        A template with `{% generation %}` blocks gives one for each block, which may be more or fewer than turns.
        """
        talk, marks, _ = self._shielded(tokenizer, self._talk(messages, tools, variables, "model"))
        if self._pick(talk).tracks:
            text = MarkedText.read(self._run(talk, False, track=True))
            spans = list(text.spans)
        else:
            spans, text = Spans(self._run, talk).find(tokenizer)
        ids: list[int] = []
        firsts, lasts = [-1] * len(spans), [0] * len(spans)
        reached = current = (
            0  # a tokenizer may leave spaces out of its offsets: a token covers all since the one before
        )
        for token, start, end in _split(tokenizer, text, marks):
            while current < len(spans) and spans[current][1] <= min(start, reached):
                current += 1
            if current < len(spans) and spans[current][0] < end:
                firsts[current] = len(ids) if firsts[current] < 0 else firsts[current]
                lasts[current] = len(ids) + 1
            ids.append(token)
            reached = end
        return ids, [(max(first, 0), last) for first, last in zip(firsts, lasts, strict=True)]

    def find_turns(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]], bool]:
        """(rendered text, characters [start, end) of each assistant turn, whether the template opens a turn) of a
        conversation without tools, by a template without generation blocks. ConfigError as `encode_with_labels`."""
        talk, _, _ = self._shielded(tokenizer, self._talk(messages, (), None, "model"))
        finder = Spans(self._run, talk)
        spans, text = finder.find(tokenizer)
        turn = next((i for i, row in enumerate(talk.messages) if row["role"] == "assistant"), 0)
        return text.text, spans, finder.opens(turn)

    def values(self, talk: Talk, opened: bool) -> dict[str, Any]:
        """What the template is given by name."""
        return {
            "documents": None,  # templates ask "documents is not none"
            **talk.variables,
            "messages": talk.messages,
            "tools": talk.tools or None,
            "add_generation_prompt": opened,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }

    # ---- rendering --------------------------------------------------------------------------------------------------

    def _talk(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], variables: Mapping[str, Any] | None, model: str
    ) -> Talk:
        if taken := set(variables or ()) & {*_OURS}:
            raise InputError(f"the template variable '{min(taken)}' is set by the conversation: give it another name")
        return Talk(template_messages(messages, model), [tool.to_openai() for tool in tools], dict(variables or {}))

    def _pick(self, talk: Talk, name: str = "") -> TemplateCode:
        """The template for a conversation, by the rule of transformers."""
        if name and name not in self._code:
            raise InputError(f"the model has no chat template '{name}'.{nearest(name, self._code)}")
        return self._code[name or (TOOL_USE if talk.tools and TOOL_USE in self._code else DEFAULT)]

    def _run(self, talk: Talk, opened: bool, *, track: bool = False, name: str = "") -> str:
        text = self._render(talk, opened, track=track, name=name)
        if "\\ufdd" in text and "\\ufdd" not in json.dumps([talk.messages, talk.tools], ensure_ascii=False):
            raise InputError("the chat template writes texts as ASCII escapes, and one of them holds a special token")
        if talk.uses_tools:
            _require_written(text, talk, self.knows_tools)
        return text

    def _render(self, talk: Talk, opened: bool, *, track: bool = False, name: str = "") -> str:
        return self._pick(talk, name).render(self.values(talk, opened), track=track)

    def _shielded(self, tokenizer: Tokenizer, talk: Talk) -> tuple[Talk, frozenset[str], Shield]:
        """(marked conversation, added tokens that are the template's structure, shield of an assistant's content).

        Where tools are the template's business, so are the marks it puts around calls and results (`<tool_call>`):
        they are tokens of their own in many vocabularies without being special, and a tool's result must not hold them.
        """
        source = self._pick(talk).source
        marks = frozenset(text for text in tokenizer.added if talk.uses_tools and text.strip() and text in source)
        own = self._shield(tokenizer, ())
        return talk.shielded(self._shield(tokenizer, tuple(sorted(marks))) if marks else own, own), marks, own

    def _shield(self, tokenizer: Tokenizer, marks: tuple[str, ...]) -> Shield:
        key = (str(id(tokenizer)), *marks)
        if key not in self._shields:
            self._shields = {key: Shield([*tokenizer.special, *marks])}
        return self._shields[key]


def _split(tokenizer: Tokenizer, text: MarkedText, marks: frozenset[str]) -> Iterator[tuple[int, int, int]]:
    return tokenizer.split(text.text, literal=text.is_literal, marks=marks)


def _require_written(text: str, talk: Talk, known: bool) -> None:
    """The name of every tool and call that was handed in is in the text; a template that drops one is refused."""
    if not known and any(row["role"] == "tool" for row in talk.messages):
        raise InputError(
            "the chat template knows no tools and there is a tool's result: "
            "write tools and calls out with a tool-call format of riverrun.wire first"
        )
    wanted = [tool["function"]["name"] for tool in talk.tools]
    wanted += [call["function"]["name"] for m in talk.messages for call in m.get("tool_calls", ())]
    if missing := next((name for name in wanted if name not in text), None):
        plain = MarkedText.read(missing).text
        raise InputError(
            f"the chat template does not write the tool '{plain}' (it knows no tools, or not these): "
            "write tools and calls out with a tool-call format of riverrun.wire first"
        )


class Spans:
    """Finds what the assistant emits in a rendered conversation.

    A turn begins where the opened turn of the prompt before it ends: that prompt is rendered, and what it writes after
    the last message is found again in the whole conversation, from a mark in the middle of that message on. It ends
    with the token that ends a turn of text alone.
    """

    def __init__(self, run: Callable[[Talk, bool], str], talk: Talk) -> None:
        self._run, self._talk = run, talk

    def find(self, tokenizer: Tokenizer) -> tuple[list[tuple[int, int]], MarkedText]:
        """(sorted spans of characters, the text)."""
        talk, rows = self._talk, self._talk.messages
        plain = MarkedText.read(self._run(talk, False))
        turns = [i for i, row in enumerate(rows) if row["role"] == "assistant"]
        if not turns:
            return [], plain
        opens = self.opens(turns[0])
        for place in (_middle, _after_first, _before_last):
            marked = [
                row | {"content": _anchored(row["content"], i, place, start=not opens and row["role"] == "assistant")}
                for i, row in enumerate(rows)
            ]
            text = MarkedText.read(self._run(self._part(marked), False))
            if text.text == plain.text:
                break
        else:
            raise ConfigError(
                "the chat template rewrites the messages, so what the assistant says cannot be found in its text"
            )
        spans = [self._span(i, marked, text, opens, tokenizer) for i in turns]
        return spans, text

    def opens(self, turn: int) -> bool:
        """Whether the template writes something to open an assistant's turn after the messages before it."""
        before = self._part(self._talk.messages[:turn])
        return self._try(before, True) != self._try(before, False)

    def _part(self, rows: list[dict[str, Any]]) -> Talk:
        return Talk(rows, self._talk.tools, self._talk.variables)

    def _try(self, talk: Talk, opened: bool) -> str | None:
        try:
            return self._run(talk, opened)
        except InputError:
            return None

    def _span(
        self,
        turn: int,
        rows: list[dict[str, Any]],
        text: MarkedText,
        opens: bool,
        tokenizer: Tokenizer,
    ) -> tuple[int, int]:
        start = self._start(turn, rows, text, opens)
        end = self._end(turn, rows, text, start, tokenizer)
        said = MarkedText.read(rows[turn]["content"]).text
        shown = "".join(text.text[start:end].split())
        lost = "".join(said.split()) not in shown
        names = [MarkedText.read(call["function"]["name"]).text for call in rows[turn].get("tool_calls", ())]
        if lost or any(name not in text.text[start:end] for name in names):
            raise ConfigError(
                f"the chat template leaves out or rewrites a part of message {turn + 1} (assistant: "
                f"{said.strip()[:60]!r}), such as the thought of an earlier turn, so it cannot be learned as it was "
                "said: end the conversation with this turn, or take that part out"
            )
        return start, end

    def _start(self, turn: int, rows: list[dict[str, Any]], text: MarkedText, opens: bool) -> int:
        for variables in (self._talk.variables, {}):  # without: a prompt may hold what an earlier turn does not
            rendered = self._try(Talk(rows[:turn], self._talk.tools, variables), True)
            if rendered is None:
                continue
            prompt = MarkedText.read(rendered)
            place = next(
                ((a, b) for i in range(turn - 1, -1, -1) if (a := prompt.only(i)) is not None
                 and (b := text.only(i)) is not None),
                (0, 0),
            )  # fmt: skip
            tail = prompt.text[place[0] :]
            if text.text.startswith(tail, place[1]):
                start = place[1] + len(tail)
                if opens or not rows[turn]["content"].strip():
                    return start
                first = next((s for s in text.starts if s >= start), start)
                return start if text.text[start:first].isspace() else first
        raise ConfigError(
            f"the chat template writes the beginning of message {turn + 1} (assistant) otherwise than the prompt "
            "for it, so what the assistant says cannot be told from the template's text"
        )

    def _end(self, turn: int, rows: list[dict[str, Any]], text: MarkedText, start: int, tokenizer: Tokenizer) -> int:
        ended = self._end_token(turn, rows, tokenizer)
        for token, first, last in tokenizer.special_places(text.text[start:]) if ended else ():
            if token == ended and not text.is_literal(start + first, start + last):
                return start + last
        said = MarkedText.read(rows[turn]["content"]).text.strip()
        place = text.text.find(said, start) if said else -1
        if place < 0 or "tool_calls" in rows[turn]:
            raise ConfigError(f"the chat template does not show where message {turn + 1} (assistant) ends")
        return place + len(said)

    def _end_token(self, turn: int, rows: list[dict[str, Any]], tokenizer: Tokenizer) -> str:
        """The special token that follows an answer of text at once; "" when none does."""
        number = len(rows)
        probe = {"role": "assistant", "content": "a" + anchor(number) + "a"}
        rendered = self._try(self._part([*rows[:turn], probe]), False)
        text = MarkedText.read(rendered or "")
        place = text.only(number)
        if place is None:
            return ""
        rest = text.text[place + 1 :]
        found = next(iter(tokenizer.special_places(rest)), None)
        return found[0] if found and not rest[: found[1]].strip() else ""


def _anchored(content: str, number: int, place: Callable[[str], int], *, start: bool) -> str:
    """The content with the mark of its message, and with that of its beginning."""
    if not content.strip():
        return content
    at = place(content)
    if at and content[at - 1] == "\ufdd0":  # not between a mark and what it marks
        at += 1
    content = content[:at] + anchor(number) + content[at:]
    first = len(content) - len(content.lstrip())
    return content[:first] + start_mark() + content[first:] if start else content


def _middle(content: str) -> int:
    bare = content.strip()
    return len(content) - len(content.lstrip()) + (len(bare) + 1) // 2


def _after_first(content: str) -> int:
    return len(content) - len(content.lstrip()) + 1


def _before_last(content: str) -> int:
    return len(content.rstrip()) - 1
