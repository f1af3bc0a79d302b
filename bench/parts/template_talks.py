"""Conversations to try chat templates with, and a small tokenizer for each family with its own special tokens.

The vocabularies are trained on a few lines; what matters is that they cut, prefix and escape texts as the family's do.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from riverrun.base.types import Message, ToolCall, ToolSpec
from riverrun.models.ggml_tokens import pre_tokenizer
from riverrun.models.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, PieceModel
from riverrun.models.templates import builtin_template
from riverrun.models.tokenizer import Tokenizer

__all__ = ["FAMILIES", "Family", "Talk", "build", "save_folder", "talk"]

TEXTS = [
    "The quick brown fox jumps over the lazy dog. Which books are in stock, and what do they cost?",
    "SELECT title, price FROM books WHERE year > 1999 ORDER BY price DESC LIMIT 10;",
    "def add(first, second):\n    return first + second\n\n\nprint(add(12, 30))  # 42",
    "书店里有这位作者的书吗？价格是多少？请告诉我订单的状态。谢谢！书店 作者 价格 订单",
    "user system assistant model tool name arguments parameters description function object string type",
    "Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024 You are Qwen. # Tools <tools> </tools>",
]
WORDS = [
    *(
        "price",
        "of  12.50",
        "  two  spaces",
        "\n\n",
        "\t",
        "😀👍🏽",
        "Ünïcödé",
        "e\u0301",
        "don't",
        "I'LL",
        "#!?",
        "...",
    ),
    *("订单 10077 在哪里？", "书店", "日本語", "한국어", "def f(x):\n\treturn x", "SELECT * FROM t;", "0", "1234567"),
    *('{"a": [1, "b"]}', "<b>bold</b>", "a < b > c", "[1]", "`code`", "\\n", "\u3000", "%d {x} {{y}}"),
]


@dataclass(frozen=True)
class Family:
    """A built-in template with the vocabulary it is made for, and what conversations it renders."""

    template: str
    special: tuple[str, ...]
    bos: str = ""
    eos: str = ""
    pre: str = ""
    """GGUF pre-tokeniser of a byte-level vocabulary; "" for SentencePiece."""
    added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    prefix: str = ""
    """Dummy prefix of a SentencePiece vocabulary: "" none, "each" segment, "once"."""
    system: bool = True
    tools: bool = False
    calls: int = 2
    """Calls in one turn at most."""
    variables: tuple[dict[str, Any], ...] = ({},)


FAMILIES: dict[str, Family] = {
    "chatml": Family("chatml", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>", pre="smollm"),
    "internlm2": Family(
        "internlm2",
        ("<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>"),
        bos="<s>", eos="</s>", tools=True,
    ),
    "internlm2-prefix": Family(
        "internlm2",
        ("<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>", "<|interpreter|>", "<|plugin|>"),
        bos="<s>", eos="</s>", tools=True, prefix="each",
    ),
    "llama-3": Family(
        "llama-3",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>", eos="<|eot_id|>", pre="llama-bpe",
    ),
    "llama-3.1": Family(
        "llama-3.1",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        bos="<|begin_of_text|>", eos="<|eot_id|>", pre="llama-bpe", tools=True, calls=1,
        variables=({}, {"date_string": "2 Feb 2026"}, {"tools_in_user_message": False}),
    ),
    "qwen2.5": Family(
        "qwen2.5", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>", pre="qwen2",
        added=("<tool_call>", "</tool_call>", "<|fim_prefix|>"), tools=True,
    ),
    "qwen3": Family(
        "qwen3", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>", pre="qwen2",
        added=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
        tools=True, variables=({}, {"enable_thinking": False}),
    ),
    "gemma": Family(
        "gemma", ("<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>",
        added=("▁▁", "\n\n", "<table>", "[@BOS@]"), system=False,
    ),
    "gemma-3": Family(
        "gemma-3", ("<start_of_turn>", "<end_of_turn>", "<start_of_image>"), bos="<bos>", eos="<eos>",
        added=("▁▁", "\n\n", "<table>"),
    ),
    "mistral-v3": Family(
        "mistral-v3",
        ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
         "[/TOOL_RESULTS]"),
        bos="<s>", eos="</s>", tools=True, prefix="once",
    ),
}  # fmt: skip


@cache
def build(name: str) -> Tokenizer:
    """The small tokenizer of a family."""
    import tokenizers

    family = FAMILIES[name]
    special = tuple(dict.fromkeys(filter(None, (family.bos, family.eos, *family.special))))
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers
    if family.pre:
        row = pre_tokenizer(family.pre)
        made.pre_tokenizer = row.steps()
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=level.ByteLevel.alphabet(), show_progress=False,
            special_tokens=[tokenizers.AddedToken(t, special=True, normalized=False) for t in special],
        )  # fmt: skip
        made.train_from_iterator(TEXTS * 3, trainer)
        state = json.loads(made.to_str())
        state["model"]["ignore_merges"] = row.ignore_merges
        made = tokenizers.Tokenizer.from_str(json.dumps(state))
        made.add_tokens([tokenizers.AddedToken(t, special=False, normalized=False) for t in family.added])
    else:
        made.pre_tokenizer = level.Metaspace("▁", prepend_scheme="never", split=True)
        made.train_from_iterator(TEXTS * 3, tokenizers.trainers.BpeTrainer(vocab_size=500, show_progress=False))
        made = _pieces(family, special, json.loads(made.to_str())["model"]).backend()
    bos, eos = (made.token_to_id(text) if text else None for text in (family.bos, family.eos))
    return Tokenizer(made, bos_id=bos, end_ids=[] if eos is None else [eos])


def _pieces(family: Family, special: Sequence[str], model: dict[str, Any]) -> PieceModel:
    rows: dict[str, tuple[float, int]] = {"<unk>": (0.0, UNKNOWN)}
    rows |= dict.fromkeys(special, (0.0, CONTROL)) | dict.fromkeys(family.added, (0.0, USER_DEFINED))
    rows |= {f"<0x{byte:02X}>": (0.0, BYTE) for byte in range(256)}
    for rank, merge in enumerate(model["merges"]):
        rows.setdefault("".join(merge), (-1.0 - rank, NORMAL))
    for piece in sorted(piece for piece in model["vocab"] if len(piece) == 1):
        rows.setdefault(piece, (-1000.0 - len(rows), NORMAL))
    scores, types = zip(*rows.values(), strict=True)
    return PieceModel(
        list(rows), scores, types, byte_fallback=True,
        add_dummy_prefix=bool(family.prefix), prefix_once=family.prefix == "once",
    )  # fmt: skip


def save_folder(name: str, folder: Path) -> Path:
    """The family's tokenizer and template as a folder that transformers' fast tokenizer class loads."""
    family = FAMILIES[name]
    build(name).save(folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {key: word for key, word in (("bos_token", family.bos), ("eos_token", family.eos)) if word}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(builtin_template(family.template), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Talk:
    """One conversation. `hostile` says whether somebody but the template wrote special tokens."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    variables: dict[str, Any] = field(default_factory=dict)
    hostile: bool = False

    def tame(self) -> Talk:
        """The same conversation with other words for what stands between < > or [ ]."""
        rows = json.loads(json.dumps([m.to_openai() for m in self.messages]))
        table = str.maketrans("<>[]▁", "‹›⟦⟧_")

        def change(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: item if key in ("role", "type") else change(item) for key, item in value.items()}
            if isinstance(value, list):
                return [change(item) for item in value]
            return value.translate(table) if isinstance(value, str) else value

        for row in rows:
            for call in row.get("tool_calls", ()):
                arguments = json.loads(call["function"]["arguments"])
                call["function"]["arguments"] = json.dumps(change(arguments))
            row["content"] = change(row.get("content"))
        tools = tuple(ToolSpec.from_openai(change(tool.to_openai())) for tool in self.tools)
        return Talk(tuple(map(Message.from_openai, rows)), tools, self.variables)


def talk(name: str, rng: random.Random) -> Talk:
    """A random conversation that the family's template renders; it ends with an assistant's turn half of the time."""
    family = FAMILIES[name]
    hostile = rng.random() < 0.3
    nasty = [*family.special, *family.added, family.bos, family.eos, "<|im_", "end|>", "[INS", "<s", "\ufdd0", "\ufdd2"]

    def text(least: int = 1) -> str:
        words = [rng.choice(WORDS) + rng.choice(["", " "]) for _ in range(rng.randint(least, 9))]
        if hostile:
            words += [rng.choice(nasty) for _ in range(rng.randint(1, 3))]
            rng.shuffle(words)
        out = "".join(words)
        return out if out.strip() or not least else "x" + out

    tools: list[ToolSpec] = []
    if family.tools and rng.random() < 0.6:
        for number in range(rng.randint(1, 3)):
            schema = {
                "type": "object",
                "properties": {"q": {"type": "string", "description": text()}},
                "required": ["q"],
            }
            tools.append(ToolSpec(f"tool_{number}", text(), schema))
    messages = [Message.of("system", text())] if family.system and rng.random() < 0.5 else []
    number = 0
    for _ in range(rng.randint(1, 4)):
        messages.append(Message.of("user", text()))
        if tools and rng.random() < 0.6:
            calls = []
            for _ in range(rng.randint(1, family.calls)):
                number += 1
                arguments = {"q": text(), "n": [rng.randint(0, 9), None, {"深": True}]}
                calls.append(ToolCall(rng.choice(tools).name, arguments, f"call{number:05d}"))
            said = Message.of("assistant", text() if rng.random() < 0.3 and family.template != "mistral-v3" else "")
            if family.template == "llama-3.1":
                said = Message("assistant")
            messages.append(Message("assistant", said.content, tuple(calls)))
            messages += [Message.of("tool", text(), tool_call_id=c.id, name=c.name) for c in calls]
        messages.append(Message.of("assistant", text()))
    if rng.random() < 0.5:
        messages.pop()
        while messages[-1].role == "assistant":
            messages.pop()
    return Talk(tuple(messages), tuple(tools), rng.choice(family.variables), hostile)
