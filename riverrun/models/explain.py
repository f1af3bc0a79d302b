"""A conversation as a model reads it, token by token, and whether transformers makes the same ids of it."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_text
from riverrun.base.types import Message, ToolSpec
from riverrun.models.chat import ChatTemplate, template_messages
from riverrun.models.tokenizer import StreamDecoder, Tokenizer
from riverrun.wire.codec import get_codec

__all__ = ["Explained", "ShownToken", "compare", "explain"]

REFERENCE = "transformers"  # compared with where it is installed; in no extra, because nothing here needs it


@dataclass(frozen=True)
class ShownToken:
    """`text` is what became readable with this token: nothing while a character is incomplete."""

    id: int
    text: str
    special: bool
    learned: bool


@dataclass(frozen=True)
class Explained:
    """The tokens of a conversation. `lowered` says that tools were written out by a tool-call format before."""

    tokens: tuple[ShownToken, ...]
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    opened: bool
    """The last turn is not the assistant's: an assistant's turn was opened."""
    lowered: str = ""

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def explain(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    *,
    codec: str = "hermes",
) -> Explained:
    """Tokenise a conversation: with labels when it ends with the assistant's turn, else as a prompt.

    Where the template knows no tools, tools and calls are written out by `codec` first, as serving and training do.
    """
    lowered = ""
    if not template.knows_tools and (tools or any(m.role == "tool" or m.tool_calls for m in messages)):
        messages, tools, lowered = get_codec(codec).lower(messages, tools), (), codec
    opened = not messages or messages[-1].role != "assistant"
    if opened:
        ids = template.encode(tokenizer, messages, tools=tools)
        learned = [False] * len(ids)
    else:
        ids, learned = template.encode_with_labels(tokenizer, messages, tools=tools)
    stream = StreamDecoder(tokenizer)
    shown = []
    for token_id, flag in zip(ids, learned, strict=True):
        special = tokenizer.is_special(token_id)
        text = tokenizer.token(token_id) if special else stream.push(token_id)
        shown.append(ShownToken(token_id, text, special, flag))
    return Explained(tuple(shown), tuple(messages), tuple(tools), opened, lowered)


def compare(path: Path, tokenizer: Tokenizer, template: ChatTemplate, explained: Explained) -> str:
    """One sentence: equal to `apply_chat_template` of transformers, or where it differs first, or why not compared."""
    try:
        library = importlib.import_module(REFERENCE)
    except ImportError:
        return f"not compared here: {REFERENCE} is not installed"
    try:
        other = _theirs(library, path, tokenizer, template)
    except Exception as error:  # a folder that needs its own code, or whatever the other library finds
        return f"not compared here: {REFERENCE} cannot load this tokenizer ({str(error).splitlines()[0][:120]})"
    try:
        theirs = other.apply_chat_template(
            template_messages(explained.messages),
            tools=[tool.to_openai() for tool in explained.tools] or None,
            add_generation_prompt=explained.opened,
            chat_template=None if getattr(other, "chat_template", None) else template.source,
            return_dict=False,
        )
    except Exception as error:  # its template engine refuses what ours took
        return f"differs from {REFERENCE}: it refuses these messages ({str(error).splitlines()[0][:120]})"
    ours = explained.ids
    if ours == theirs:
        return f"equal to apply_chat_template of {REFERENCE} {library.__version__}: {len(ours)} ids"
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    here, there = (
        " ".join(f"{i}:{tokenizer.token(i)!r}" for i in ids[place : place + 4]) or "the end" for ids in (ours, theirs)
    )
    told = any(token in _spoken(explained) for token in tokenizer.special)
    why = " (a message holds special tokens, which are text here)" if told else ""
    return f"differs from {REFERENCE} from token {place} on{why}: here {here}, there {there}"


def _theirs(library: Any, path: Path, tokenizer: Tokenizer, template: ChatTemplate) -> Any:
    """Their tokenizer of the folder; of our tokenizer.json where the model is a GGUF file or has only a .model."""
    if (path / "tokenizer.json").is_file():
        return library.AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        write_text(file, tokenizer.to_json())
        words = {key: word for key in ("bos_token", "eos_token") if (word := getattr(template, key))}
        other = library.PreTrainedTokenizerFast(tokenizer_file=str(file), **words)
    other.chat_template = template.source
    return other


def _spoken(explained: Explained) -> str:
    texts = [message.text for message in explained.messages]
    texts += [str(call.arguments) for message in explained.messages for call in message.tool_calls]
    return "\n".join([*texts, *(str(tool.to_openai()) for tool in explained.tools)])
