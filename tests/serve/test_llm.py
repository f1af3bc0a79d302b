"""The serving loop on a tiny model: the text does not depend on batch mates, slots, hits or chunks; nothing leaks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import CapacityError, InputError, RiverrunError, UnsupportedError
from riverrun.base.protocols import Request
from riverrun.base.types import Image, Message, SamplingParams, ToolSpec
from riverrun.models.attention import PackedCausal
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.tokenizer import Tokenizer
from riverrun.serve.llm import LLM
from riverrun.serve.pace import Pace
from riverrun.serve.request import Sequence
from riverrun.serve.sampler import Sampler, choose
from riverrun.serve.stream import TextStream
from tests.tiny_model import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32", slots=3) as opened:
        yield opened
        opened.loop.run(opened.loop.scheduler.check_integrity)


def requests(count: int, **params: object) -> list[Request]:
    shared = "You are the assistant of a bookshop that sells books and maps."
    return [
        Request(
            (Message.of("system", shared), Message.of("user", f"Question {n} about {'x' * (n % 5)}?")),
            params=SamplingParams(max_tokens=12, **params),
        )
        for n in range(count)
    ]


def naive(folder: Path, ids: list[int], count: int) -> list[int]:
    """Greedy tokens by computing everything anew each time."""
    opened = load_checkpoint(folder)
    lm = load_model(opened, torch.float32)
    out: list[int] = []
    with torch.no_grad():
        while len(out) < count and (not out or out[-1] != opened.tokenizer.eos_id):
            whole = ids + out
            attend = PackedCausal(0, [len(whole)], dtype=lm.dtype)
            out.append(int(lm.logits(lm(torch.tensor(whole), attend.positions, attend)[-1:]).argmax()))
    return out


def test_greedy_tokens_are_those_of_the_plain_model(folder: Path, model: LLM) -> None:
    asked = requests(8)
    wanted = []
    tokenizer = load_checkpoint(folder).tokenizer
    for request in asked:
        out = naive(folder, model.tokenize(request), 12)
        wanted.append(tokenizer.decode(out))
    assert [c.raw for c in model.generate(asked)] == wanted
    again = model.generate(asked)
    assert [c.raw for c in again] == wanted
    assert all(c.usage.cached_tokens > 20 for c in again)
    assert [c.raw for r in asked for c in model.generate([r])] == wanted
    with LLM(folder, dtype="float32", slots=2) as chunked:
        chunked.loop.pace = Pace(most=7, least=7)
        assert [c.raw for c in chunked.generate(asked)] == wanted


def test_a_stream_is_the_answer_in_pieces_and_closing_it_frees_the_slot(model: LLM) -> None:
    for request in requests(4):
        deltas = list(model.stream(request))
        assert "".join(d.text for d in deltas) == model.generate([request])[0].raw
        assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].usage is not None
    stream = model.stream(requests(1)[0])
    next(stream)
    stream.close()
    model.generate(requests(3))
    assert model.loop.run(lambda: model.loop.scheduler.is_idle)


def test_many_threads_get_their_own_answers(model: LLM) -> None:
    asked = requests(12)
    wanted = [c.raw for c in model.generate(asked)]
    got: dict[int, str] = {}

    def ask(index: int) -> None:
        got[index] = "".join(d.text for d in model.stream(asked[index]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(12)] == wanted


def test_scores_are_log_softmax_of_the_plain_model(folder: Path, model: LLM) -> None:
    prefix = "The book costs "
    scores = model.score(prefix, ["12.50 pounds", "nothing"])
    opened = load_checkpoint(folder)
    lm = load_model(opened, torch.float32)
    for text, score in zip(("12.50 pounds", "nothing"), scores, strict=True):
        before = opened.tokenizer.encode(prefix.rstrip())
        whole = opened.tokenizer.encode(prefix + text)
        attend = PackedCausal(0, [len(whole)], dtype=lm.dtype)
        with torch.no_grad():
            rows = lm.logits(lm(torch.tensor(whole), attend.positions, attend)).log_softmax(-1)
        wanted = [float(rows[i - 1, whole[i]]) for i in range(len(before), len(whole))]
        assert score.logprobs == pytest.approx(wanted, abs=1e-4)
    assert [s.total for s in model.score(prefix, ["nothing"])] == pytest.approx([scores[1].total], abs=1e-4)
    assert len(model.score("", ["hello"])[0].logprobs) == len(opened.tokenizer.encode("hello"))
    ids = opened.tokenizer.encode("The book costs")
    attend = PackedCausal(0, [len(ids)], dtype=lm.dtype)
    with torch.no_grad():
        best = int(lm.logits(lm(torch.tensor(ids), attend.positions, attend))[-1].argmax())
    judged = []
    for target in (best, (best + 1) % 300):
        sequence = model._new(ids, SamplingParams(), "", "score", looked_from=len(ids) - 1, targets=[target])
        model.loop.submit([sequence])
        assert sequence.done.wait(60)
        judged += sequence.judged
    assert [each.greedy for each in judged] == [True, False]


def test_limits_and_parts_are_refused_with_figures(folder: Path, model: LLM) -> None:
    with LLM(folder, dtype="float32", slots=1, context=40) as small:
        with pytest.raises(CapacityError, match=r"the prompt has \d+ tokens, the context is 40"):
            small.generate(requests(1))
        with pytest.raises(CapacityError, match="the context is 40"):
            small.score("x " * 30, ["y " * 30])
    with pytest.raises(CapacityError, match="context 9999 is more than the model's 512"):
        LLM(folder, context=9999)
    for ask in (lambda pictured: model.generate([Request(pictured)]), lambda pictured: model.score(pictured, ["x"])):
        with pytest.raises(UnsupportedError, match=rf"model '{model.info.name}' reads text only.*part of type 'image'"):
            ask((Message("user", (Image(url="data:x"),)),))
    assert model.generate([Request(prompt="Hello", params=SamplingParams(max_tokens=3))])[0].finish_reason == "length"


def test_an_engine_that_fails_tells_every_waiter_and_goes_on(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [c.raw for c in model.generate(requests(2))]
    forward = model.loop.engine.forward
    monkeypatch.setattr(model.loop.engine, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        model.generate(requests(1))
    monkeypatch.setattr(model.loop.engine, "forward", forward)
    assert [c.raw for c in model.generate(requests(2))] == wanted


def test_a_request_that_fails_alone_leaves_its_mates(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [c.raw for c in model.generate(requests(2))]
    choose_token = Sampler.choose

    def choose_or_fail(sampler: Sampler, *given: object) -> int:
        if sampler.params.seed == 13:
            raise InputError("nothing may come next")
        return choose_token(sampler, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampler, "choose", choose_or_fail)
    mates = [model.stream(request) for request in requests(2)]
    with pytest.raises(InputError, match="nothing may come next"):
        model.generate(requests(1, seed=13))
    assert ["".join(delta.text for delta in mate) for mate in mates] == wanted


def test_tokens_and_options_that_do_not_exist_are_refused(model: LLM) -> None:
    for wrong in ({"logit_bias": {320: 1.0}}, {"logit_bias": {-1: -100.0}}, {"stop_ids": (10**6,), "min_tokens": 2}):
        with pytest.raises(InputError, match="does not exist: ids go from 0 to 319"):
            model.generate(requests(1, **wrong))
    for ids in ([5, -1], [320], [2**40]):
        with pytest.raises(InputError, match="does not exist: ids go from 0 to 319"):
            model.detokenize(ids)
    with pytest.raises(InputError, match="pooling 'max' is not one of mean, last"):
        model.embed(["x"], pooling="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name the adapter"):
        model.unload_adapter("")


def test_after_close_nobody_waits(folder: Path) -> None:
    opened = LLM(folder, dtype="float32", slots=1)
    opened.close()
    with pytest.raises(RiverrunError, match="was closed"):
        opened.generate(requests(1))


def test_sampling_is_seeded_and_follows_the_probabilities(model: LLM) -> None:
    hot = requests(2, temperature=1.0, seed=5)
    assert [c.raw for c in model.generate(hot)] == [c.raw for c in model.generate(hot)]
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    source = np.random.default_rng(0)

    def share(**params: object) -> list[float]:
        drawn = [choose(logits, SamplingParams(temperature=1.0, **params), source) for _ in range(4000)]
        return [drawn.count(i) / 4000 for i in range(4)]

    assert share() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert share(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert share(top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text("abcS", max_size=30), stops=st.lists(st.text("abcS", min_size=1, max_size=4), max_size=3))
def test_stop_strings_never_show(text: str, stops: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp() / "stop"
    if not base.exists():
        base.mkdir()
        write_tiny(base)
    tokenizer = Tokenizer.from_file(base / "tokenizer.json")
    stream = TextStream(tokenizer, stops)
    shown = "".join(stream.push(i) for i in tokenizer.encode(text)) + stream.close()
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    if not any(stop in text for stop in stops):
        assert shown == text
    assert stream.stopped == any(stop in text for stop in stops)
    assert not stream.stopped or text.startswith(shown + stream.stopped_by)


@pytest.mark.parametrize(
    ("text", "thought", "answer", "stopped_by"),
    [
        ("<think>\nWell.\n</think>\nSalt is 12.50 END pounds", "Well.", "Salt is 12.50 ", "END"),
        ("Salt is 12.50 <tool_response>", "", "Salt is 12.50 ", ""),
        ("<think>never ends", "never ends", "", ""),
    ],
)
def test_thoughts_are_counted_and_the_stop_is_named(
    model: LLM, text: str, thought: str, answer: str, stopped_by: str
) -> None:
    """Streamed and whole, of ids that an engine might have given."""
    tools = (ToolSpec("look", "", {"type": "object"}),)
    request = Request((Message.of("user", "x"),), params=SamplingParams(stop=("nowhere", "END")), tools=tools)
    texts = model._texts
    ids = texts.tokenizer.encode(text)
    sequence = Sequence(texts.prompt(request), request.params, 512, output=ids, finish_reason="stop")
    sequence.news = queue.SimpleQueue()
    for token in (*ids, None):
        sequence.news.put(token)
    done, pieces = texts.completion(request, sequence), list(texts.deltas(request, sequence))
    assert (done.message.reasoning, done.message.text, done.stopped_by) == (thought, answer, stopped_by)
    assert "".join(piece.reasoning for piece in pieces) == thought
    assert (pieces[-1].usage, pieces[-1].stopped_by) == (done.usage, stopped_by)
    end = text.find("</think>") + len("</think>") if "</think>" in text else len(text) if thought else 0
    close = len(texts.tokenizer.encode(text[:end]))
    assert abs(done.usage.reasoning_tokens - close) <= 1, "a token may hold the end of the tag and more"


def test_prompts_of_other_lengths_share_no_tokens_where_the_rotary_base_follows_them(tmp_path: Path) -> None:
    """Dynamic NTK: a long prompt has a base of its own, whoever runs beside it and whatever stands in the slots."""
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    folder = write_tiny(tmp_path, max_position_embeddings=64, rope_scaling=scaling)
    asked = requests(6)
    with LLM(folder, dtype="float32", slots=3, context=300) as opened:
        alone = [opened.generate([request])[0] for request in asked]
        key = opened.loop.engine.position_key
        assert key(64) == 0
        assert key(alone[0].usage.prompt_tokens) == alone[0].usage.prompt_tokens
    with LLM(folder, dtype="float32", slots=3, context=300) as opened:
        together = opened.generate(asked)
        again = opened.generate(asked)
        scored = opened.score(asked[0].messages, ["yes", "no"])
        assert all(score.logprobs for score in scored)
    assert [each.raw for each in together] == [each.raw for each in alone] == [each.raw for each in again]
    assert sum(each.usage.cached_tokens for each in again) > 0, "the same prompt is the same key"
    lengths = {each.usage.prompt_tokens for each in alone}
    assert len(lengths) > 1


def test_weights_that_memory_has_no_room_for_stay_in_their_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from riverrun.serve.engines import torch as engine

    asked = requests(3)
    with LLM(folder, dtype="float32", slots=3) as opened:
        copied = opened.generate(asked)
        assert opened.loop.engine.model.embed_tokens.numel()  # type: ignore[attr-defined]
    monkeypatch.setattr(engine, "free_memory", lambda: 1000)
    with LLM(folder, dtype="float32", slots=3) as opened:
        assert next(opened.loop.engine.model.linears())[1]._kept  # type: ignore[attr-defined]
        assert [each.raw for each in opened.generate(asked)] == [each.raw for each in copied]


def test_tools_reach_the_prompt(model: LLM) -> None:
    tool = ToolSpec("look", "Look.", {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]})
    plain = model.tokenize(Request((Message.of("user", "Hi"),)))
    armed = model.tokenize(Request((Message.of("user", "Hi"),), tools=(tool,)))
    assert '"look"' in model.detokenize(armed)
    assert len(armed) > len(plain)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kv", ["model", "int8", "int4"])
def test_chances_in_16_bits_are_near_those_in_32(
    tmp_path: Path, dtype: Literal["float16", "bfloat16"], kv: Literal["model", "int8", "int4"]
) -> None:
    folder = write_tiny(tmp_path)
    with LLM(folder, dtype="float32", slots=2) as model:
        wanted = model.score("How much is", [" the book", "; it costs"])
    with LLM(folder, dtype=dtype, kv=kv, slots=2) as model:
        assert model.loop.engine.kind == (dtype if kv == "model" else kv)
        found = model.score("How much is", [" the book", "; it costs"])
    near = {"model": 0.2 if dtype == "bfloat16" else 0.05, "int8": 0.2, "int4": 1.2}[kv]
    for own, other in zip(found, wanted, strict=True):
        assert own.logprobs == pytest.approx(other.logprobs, abs=near)
        assert own.logprobs != other.logprobs
