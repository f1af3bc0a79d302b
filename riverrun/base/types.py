"""The records all rooms exchange: messages of typed parts, tool calls, sampling parameters, documents.

A message's content is a tuple of parts. A model that knows only text refuses the other parts by name
(`Message.require_text`). `from_openai` / `to_openai` are the one place where the OpenAI JSON form is read and written.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from riverrun.base.errors import InputError, UnsupportedError

__all__ = [
    "Audio",
    "Document",
    "File",
    "FinishReason",
    "Guide",
    "Image",
    "Message",
    "Part",
    "Role",
    "SamplingParams",
    "Text",
    "TokenLogprob",
    "ToolCall",
    "ToolResult",
    "ToolSpec",
    "Usage",
]

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "abort"]
_ROLES = ("system", "user", "assistant", "tool")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class Image:
    """An image by URL (http, https, data:) or raw bytes with a MIME type."""

    url: str = ""
    data: bytes = b""
    mime: str = ""
    kind: Literal["image"] = "image"


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound as raw bytes; `format` is wav, mp3, ..."""

    data: bytes
    format: str = "wav"
    kind: Literal["audio"] = "audio"


@dataclass(frozen=True, slots=True)
class File:
    name: str
    data: bytes = b""
    mime: str = ""
    kind: Literal["file"] = "file"


Part = Text | Image | Audio | File


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model sees it. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @classmethod
    def from_openai(cls, value: Mapping[str, Any]) -> ToolSpec:
        function = value.get("function") if isinstance(value, Mapping) else None
        if not isinstance(function, Mapping) or value.get("type", "function") != "function" or not _named(function):
            raise InputError(f"a tool must be {{type: function, function: {{name, ...}}}}, got {_shown(value)}")
        name, parameters = function["name"], function.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise InputError(f"parameters of tool {name!r} must be an object, got {type(parameters).__name__}")
        return cls(name, _string(function, "description", f"description of tool {name!r}"), dict(parameters))

    def to_openai(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]
    id: str = ""

    def to_openai(self) -> dict[str, Any]:
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back. `data` is for programs (rows, files); `content` is what the model reads."""

    call_id: str
    name: str
    content: str
    is_error: bool = False
    data: Any = None


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""
    """What an assistant thought before its answer."""

    @classmethod
    def of(cls, role: Role, text: str, **rest: Any) -> Message:
        """A message of one text part (none for the empty string)."""
        return cls(role, (Text(text),) if text else (), **rest)

    @property
    def text(self) -> str:
        """All text parts joined; other parts are left out."""
        return "".join(part.text for part in self.content if isinstance(part, Text))

    def require_text(self, model: str) -> str:
        """The text, or UnsupportedError naming the first part that is not text."""
        for part in self.content:
            if not isinstance(part, Text):
                raise UnsupportedError(
                    f"model '{model}' reads text only, the {self.role} message holds a part of type '{part.kind}': "
                    f"remove it or choose a model that lists '{part.kind}'"
                )
        return self.text

    @classmethod
    def from_openai(cls, value: Mapping[str, Any]) -> Message:
        """Read one OpenAI chat message; InputError names what is wrong."""
        if not isinstance(value, Mapping):
            raise InputError(f"a message must be an object, got {type(value).__name__}")
        role = value.get("role")
        if role == "developer":
            role = "system"
        if not isinstance(role, str) or role not in _ROLES:
            raise InputError(f"message role {_shown(role)} is not one of {', '.join(_ROLES)}")
        known = {"role", "content", "tool_calls", "tool_call_id", "name", "refusal", "reasoning_content"}
        if unknown := set(value) - known:
            raise UnsupportedError(
                f"message field {min(map(_shown, unknown))} is not supported; known: {', '.join(sorted(known))}"
            )
        given = value.get("tool_calls") or ()
        if not isinstance(given, list | tuple):
            raise InputError(f"tool_calls must be a list, got {type(given).__name__}")
        calls = tuple(_call_from_openai(call) for call in given)
        content = _parts_from_openai(value.get("content"))
        texts = (_string(value, key) for key in ("tool_call_id", "name", "reasoning_content"))
        return cls(cast(Role, role), content, calls, *texts)

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI form; a message of text only has a plain string as content."""
        out: dict[str, Any] = {"role": self.role}
        if all(isinstance(part, Text) for part in self.content):
            out["content"] = self.text if self.content or not self.tool_calls else None
        else:
            out["content"] = [_part_to_openai(part) for part in self.content]
        if self.tool_calls:
            out["tool_calls"] = [call.to_openai() for call in self.tool_calls]
        if self.tool_call_id:
            out["tool_call_id"] = self.tool_call_id
        if self.name:
            out["name"] = self.name
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        return out


def _shown(value: Any) -> str:
    """A value within an error's sentence: one line, neither long nor deep."""
    text = _SHORT.repr(value)
    return text if len(text) <= 120 else text[:120] + "..."


def _named(function: Mapping[str, Any]) -> bool:
    return isinstance(function.get("name"), str) and bool(function["name"])


def _string(value: Mapping[str, Any], key: str, what: str = "") -> str:
    """A field that may be missing or null."""
    text = value.get(key)
    if text is not None and not isinstance(text, str):
        raise InputError(f"{what or key} must be a string, got {type(text).__name__}")
    return text or ""


def _call_from_openai(value: Any) -> ToolCall:
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not _named(function):
        raise InputError(f"a tool call must be {{id, type, function: {{name, arguments}}}}, got {_shown(value)}")
    name, raw = function["name"], function.get("arguments")
    if raw is None or raw == "":
        raw = "{}"
    try:
        arguments = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and brackets without end
        raise InputError(f"arguments of tool call {name!r} are not JSON ({error}): {_shown(raw)}") from None
    if not isinstance(arguments, Mapping):
        raise InputError(f"arguments of tool call {name!r} must be an object, got {_shown(raw)}")
    return ToolCall(name, dict(arguments), _string(value, "id", f"id of tool call {name!r}"))


def _parts_from_openai(content: Any) -> tuple[Part, ...]:
    if content is None or content == "":
        return ()
    if isinstance(content, str):
        return (Text(content),)
    if not isinstance(content, list | tuple):
        raise InputError(f"message content must be a string or a list of parts, got {type(content).__name__}")
    return tuple(_part_from_openai(part) for part in content)


def _part_from_openai(part: Any) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    body = part.get(kind) if isinstance(kind, str) else None
    if kind == "text" and isinstance(body, str):
        return Text(body)
    if kind == "image_url" and isinstance(body, Mapping):
        return Image(url=_string(body, "url", "url of an image"))
    if kind == "input_audio" and isinstance(body, Mapping):
        import base64

        try:
            data = base64.b64decode(_string(body, "data", "data of a sound"))
        except ValueError as error:
            raise InputError(f"data of a sound is not base64: {error}") from None
        return Audio(data, _string(body, "format", "format of a sound") or "wav")
    if kind == "file" and isinstance(body, Mapping):
        return File(_string(body, "filename", "filename of a file"))
    raise InputError(f"content part {_shown(part)} is not one of text, image_url, input_audio, file")


def _part_to_openai(part: Part) -> dict[str, Any]:
    import base64

    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        url = part.url or f"data:{part.mime};base64,{base64.b64encode(part.data).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}
    if isinstance(part, Audio):
        return {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(part.data).decode(), "format": part.format},
        }
    return {"type": "file", "file": {"filename": part.name}}


@dataclass(frozen=True, slots=True)
class Guide:
    """A constraint on the output: a JSON schema, a regular expression, one of several texts (a JSON list of them), or a
    grammar in Lark's notation."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    value: str


_BOUNDS = (
    ("temperature", 0.0, 2.0),
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("logprobs", 0, 20),
    ("prompt_logprobs", 0, 20),
)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. temperature 0 is greedy; top_k 0 and top_p 1 switch those off.

    A field that a model does not honour is refused by name (UnsupportedError), never ignored.

    min_p: least share of the most likely token's probability. repetition_penalty: of every token of prompt and answer
    (arXiv:1909.05858); presence_penalty, frequency_penalty: of tokens of the answer, once and for each time (OpenAI).
    no_repeat_ngram: no run of so many tokens comes twice. logit_bias: token id -> what is added to its logit, -100
    forbids it. bad_words: texts that never come. stop_ids: tokens that end the answer and are no part of it.
    min_tokens: no end before so many. ignore_end: the model's own end tokens do not end the answer. logprobs,
    prompt_logprobs: so many of the most likely tokens with their log-probabilities beside each token of the answer,
    of the prompt (None: not at all), before anything above changes them.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    guide: Guide | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_end: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {self.max_tokens}")
        for name, least, most in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} must be between {least:g} and {most:g}, got {value}")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0.0 < self.repetition_penalty <= 10.0:
            raise InputError(f"repetition_penalty must be above 0 and at most 10, got {self.repetition_penalty}")
        for name in ("top_k", "no_repeat_ngram", "min_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 (off) or more, got {getattr(self, name)}")
        if self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        for name in ("stop", "bad_words"):
            if any(not text for text in getattr(self, name)):
                raise InputError(f"a text of {name} must not be empty")
        for token, bias in self.logit_bias.items():
            if not -100.0 <= bias <= 100.0:
                raise InputError(f"logit_bias of token {token} must be between -100 and 100, got {bias}")

    @property
    def plain(self) -> bool:
        """Whether the logits are taken as they come: nothing is forbidden, favoured or counted."""
        return self == SamplingParams(
            max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
            stop=self.stop, seed=self.seed, min_p=self.min_p, stop_ids=self.stop_ids, ignore_end=self.ignore_end,
            logprobs=self.logprobs, prompt_logprobs=self.prompt_logprobs,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, the bytes it stands for, its natural-log probability, and the likeliest tokens in its place."""

    id: int
    piece: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more requests; `cached_tokens` are prompt tokens that were not computed again.

    `reasoning_tokens` are those of the answer that stand in its thought, tags included; 0 where a model does not tell.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        out = cls()
        for usage in usages:
            out = out + usage
        return out


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it came from. Operators return changed copies (`dataclasses.replace`)."""

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
