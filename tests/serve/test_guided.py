"""Answers that follow a guide whatever the model would say, alone and in a batch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.base.protocols import Request
from riverrun.base.types import Guide, Message, SamplingParams, ToolSpec
from riverrun.models.load import load_checkpoint
from riverrun.models.token_bytes import token_bytes
from riverrun.serve.llm import LLM
from tests.tiny_model import write_tiny

pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 8},
        "pages": {"type": "integer", "minimum": 1, "maximum": 999},
        "kind": {"enum": ["book", "map"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["title", "pages", "kind", "tags"],
    "additionalProperties": False,
}
TOOLS = (
    ToolSpec("look", 'Look "up".', {
        "type": "object", "properties": {"q": {"type": "string", "maxLength": 9}, "n": {"type": "integer"}},
        "required": ["q"], "additionalProperties": False,
    }),
    ToolSpec("价格", "", {"type": "object", "properties": {"book": {"enum": ["Salt", "好"]}}, "required": ["book"]}),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_tiny(tmp_path_factory.mktemp("guided"), max_position_embeddings=1024)
    with LLM(folder, dtype="float32", slots=6) as opened:
        yield opened
        opened.loop.run(opened.loop.scheduler.check_integrity)


def asked(guide: Guide | None, seed: int = 0, **params: object) -> Request:
    own = {"max_tokens": 300, "temperature": 1.0, "seed": seed, **params}
    return Request(prompt="How much is", params=SamplingParams(guide=guide, **own))  # type: ignore[arg-type]


def test_a_schema_is_followed(model: LLM) -> None:
    answers = model.generate([asked(Guide("json_schema", json.dumps(SCHEMA)), seed) for seed in range(12)])
    seen = set()
    for answer in answers:
        value = json.loads(answer.raw)
        assert set(value) == set(SCHEMA["required"])  # type: ignore[arg-type]
        assert len(value["title"]) <= 8
        assert 1 <= value["pages"] <= 999
        assert value["kind"] in ("book", "map")
        assert len(value["tags"]) <= 2
        assert all(isinstance(tag, bool) for tag in value["tags"])
        assert answer.finish_reason == "stop"
        assert answer.raw == json.dumps(value, ensure_ascii=False) or "\\" in answer.raw
        seen.add(answer.raw)
    assert len(seen) > 6, "the model still chooses"


def test_expressions_choices_and_grammars(model: LLM) -> None:
    number = Guide("regex", r"[0-9]{3}-[ab]{1,4}")
    choice = Guide("choice", json.dumps(["yes", "no", "不知道"], ensure_ascii=False))
    grammar = Guide("grammar", 'start: item ("," item)* "."\nitem: "a" | "b"')
    answers = model.generate([asked(guide, seed) for guide in (number, choice, grammar) for seed in range(4)])
    assert all(re.fullmatch(r"[0-9]{3}-[ab]{1,4}", answer.raw) for answer in answers[:4])
    assert {answer.raw for answer in answers[4:8]} <= {"yes", "no", "不知道"}
    assert all(re.fullmatch(r"[ab](,[ab])*\.", answer.raw) for answer in answers[8:] if answer.finish_reason == "stop")


def test_batch_mates_with_other_guides_and_none_change_nothing(model: LLM) -> None:
    guides = [Guide("json_schema", json.dumps(SCHEMA)), None, Guide("regex", "[0-9]+x"), Guide("choice", '["a","b"]')]
    requests = [
        asked(guide, 5, max_tokens=60, temperature=temperature) for guide in guides for temperature in (0.0, 0.9)
    ]
    alone = [model.generate([request])[0].raw for request in requests]
    assert [answer.raw for answer in model.generate(requests)] == alone
    assert ["".join(delta.text for delta in model.stream(request)) for request in requests] == alone


def test_forced_tokens_are_not_asked_for_unless_their_chances_are(model: LLM) -> None:
    guide = Guide("grammar", 'start: "The price of this book is " ("1" | "2") " pounds and nothing else."')
    steps = model.observer.steps  # type: ignore[attr-defined]
    [plain] = model.generate([asked(guide)])
    fast = model.observer.steps - steps  # type: ignore[attr-defined]
    [watched] = model.generate([asked(guide, logprobs=0)])
    assert len(watched.logprobs) == watched.usage.completion_tokens
    assert fast < watched.usage.completion_tokens / 2
    assert re.fullmatch(r"The price of this book is [12] pounds and nothing else\.", plain.raw)


@pytest.mark.parametrize("forced", [("look",), ("价格",), ("look", "价格")])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_tool_that_must_be_called_is_called_rightly(model: LLM, forced: tuple[str, ...], parallel: bool) -> None:
    for seed in range(4):
        request = Request(
            (Message.of("user", "How much is Salt?"),), tools=TOOLS, forced_tools=forced, parallel_tool_calls=parallel,
            params=SamplingParams(max_tokens=400, temperature=1.0, seed=seed),
        )  # fmt: skip
        [answer] = model.generate([request])
        calls = answer.message.tool_calls
        assert answer.finish_reason == "tool_calls"
        assert calls
        assert parallel or len(calls) == 1
        for call in calls:
            assert call.name in forced
            if call.name == "look":
                assert set(call.arguments) <= {"q", "n"}
                assert len(call.arguments["q"]) <= 9
            else:
                assert call.arguments["book"] in ("Salt", "好")
        if len(calls) == 1 or answer.usage.completion_tokens < 400:
            assert not answer.message.text


@pytest.mark.parametrize(
    ("guide", "part"),
    [
        (Guide("json_schema", "{nope"), "the json_schema cannot be used"),
        (Guide("json_schema", '{"type": "nope"}'), "Invalid type: nope"),
        (Guide("regex", "(("), "invalid regex"),
        (Guide("grammar", "start: nothing"), 'unknown name: "nothing"'),
    ],
)
def test_a_guide_that_cannot_be_used_is_told(model: LLM, guide: Guide, part: str) -> None:
    with pytest.raises(InputError, match=re.escape(part)):
        model.generate([asked(guide)])


def test_a_tool_that_is_not_offered_cannot_be_forced(model: LLM) -> None:
    with pytest.raises(InputError, match="'nope' is to be called and is not among the tools"):
        model.generate([Request(prompt="x", tools=TOOLS, forced_tools=("nope",))])
    both = SamplingParams(guide=Guide("regex", "a"))
    with pytest.raises(InputError, match="leave one of them out"):
        model.generate([Request(prompt="x", tools=TOOLS, forced_tools=("look",), params=both)])


def test_bytes_of_tokens_are_those_that_decoding_shows(tmp_path: Path) -> None:
    tokenizer = load_checkpoint(write_tiny(tmp_path)).tokenizer
    pieces = token_bytes(json.loads(tokenizer.to_json()), tokenizer.vocab_size)
    for text in ("How much is the book? 12.50", "你好，书店。\n\t x", "<|im_end|> é ∑"):
        ids = tokenizer.encode(text, special=True)
        assert b"".join(pieces[i] for i in ids).decode() == text
    spiece = {
        "model": {"vocab": [["<unk>", 0], ["▁the", -1], ["<0x0A>", -2]]},
        "decoder": {"type": "Sequence"}, "added_tokens": [{"id": 3, "content": "<s>"}],
    }  # fmt: skip
    assert token_bytes(spiece, 5) == [b"<unk>", b" the", b"\n", b"<s>", b""]


@pytest.mark.parametrize(
    ("kind", "value", "part"),
    [("grammar", 'start: start "a"', "cannot be used"), ("regex", r"[^\s\S]", "cannot be used"),
     ("choice", "[]", "holds no text")],
)  # fmt: skip
def test_a_guide_that_allows_nothing_is_refused(model: LLM, kind: str, value: str, part: str) -> None:
    for _ in range(2):  # it is not kept as one that can be used
        with pytest.raises(InputError, match=part):
            model.generate([asked(Guide(kind, value))])  # type: ignore[arg-type]
