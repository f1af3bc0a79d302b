"""`riverrun models` and `riverrun tokenizer`: thin lines over the models room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError
from riverrun.base.types import Message, ToolSpec
from riverrun.cli.target import model_path

__all__ = ["explain_command", "train_command"]


def explain_command(target: str, messages: Path, tools: Path | None, template: str) -> None:
    from riverrun.models.explain import compare, explain
    from riverrun.models.load import load_checkpoint

    path = model_path(target)
    opened = load_checkpoint(path, template=template)
    talk, specs = _conversation(messages)
    specs = _tools(tools) if tools else specs
    explained = explain(opened.tokenizer, opened.template, talk, specs)
    _print_tokens(explained.tokens)
    special, learned = (sum(getattr(t, key) for t in explained.tokens) for key in ("special", "learned"))
    print(f"{len(explained.tokens)} tokens: {special} special (S), {learned} learned (L)")
    if explained.lowered:
        print(f"the template knows no tools: they were written out in the {explained.lowered} form first")
    if explained.opened:
        print("the assistant's turn is opened at the end; nothing is learned in a prompt")
    print(compare(opened.path, opened.tokenizer, opened.template, explained))


def _print_tokens(tokens: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for number, token in enumerate(tokens):
        flags = ("S" if token.special else " ") + ("L" if token.learned else " ")
        style = {"S ": "cyan", "SL": "bold green", " L": "green"}.get(flags, "")
        shown = json.dumps(token.text, ensure_ascii=False)[1:-1] if token.text else "·"
        console.print(Text(f"{number:6} {token.id:7} {flags} {shown}", style=style))


def _load(path: Path) -> Any:
    """The JSON of a file: the whole file, or its first line where there are several."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    try:
        return json.loads(text)
    except ValueError as error:
        first = next((line for line in text.splitlines() if line.strip()), "")
        try:
            return json.loads(first)
        except ValueError:
            raise InputError(f"{path} is not JSON: {error}") from None


def _conversation(path: Path) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
    """A list of OpenAI messages, or a conversation {messages, tools} as training files hold them (the first line)."""
    value = _load(path)
    if isinstance(value, list):
        return tuple(map(Message.from_openai, value)), ()
    from riverrun.data.conversations import Conversation

    talk = Conversation.from_openai(value)
    return talk.messages, talk.tools


def _tools(path: Path) -> tuple[ToolSpec, ...]:
    value = _load(path)
    if not isinstance(value, list):
        raise InputError(f"{path} must hold a list of tools, it holds {type(value).__name__}")
    return tuple(map(ToolSpec.from_openai, value))


def train_command(
    paths: list[Path], vocab_size: int, out: Path, special: list[str], digits: str, sample: int, against: str
) -> None:
    from riverrun.models.tokenizer_training import SPECIAL_TOKENS, compression, read_texts, sample_texts, train_bpe

    if digits not in ("single", "three"):
        raise InputError(f"--digits is single or three, got '{digits}'")
    other = _other(against) if against else None
    texts = sample_texts(read_texts(paths), sample)
    names = tuple(special) or SPECIAL_TOKENS
    tokenizer = train_bpe(texts, vocab_size=vocab_size, special_tokens=names, digits=digits)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(out / "tokenizer_config.json", settings | {"eos_token": names[-1]})
    rows = compression(tokenizer, texts, other)
    write_json(out / "compression.json", {"vocab_size": tokenizer.vocab_size, "rows": [r.to_json() for r in rows]})
    if tokenizer.vocab_size < vocab_size:
        print(f"the texts give {tokenizer.vocab_size} tokens, {vocab_size} were asked for")
    heads = f"{'language':10}{'documents':>11}{'bytes':>13}{'tokens':>12}{'bytes/token':>13}"
    print(heads + (f"{'against':>10}" if other else ""))
    for row in rows:
        line = f"{row.language:10}{row.documents:11}{row.bytes:13}{row.tokens:12}{row.bytes_per_token:13.3f}"
        print(line + (f"{row.other_bytes_per_token:10.3f}" if other else ""))
    print(out / "tokenizer.json")


def _other(target: str) -> Any:
    from riverrun.models.io.gguf import GGUFFile
    from riverrun.models.tokenizer import Tokenizer

    path = model_path(target)
    return Tokenizer.from_gguf(GGUFFile(path).metadata) if path.is_file() else Tokenizer.from_folder(path)
