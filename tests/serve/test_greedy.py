"""Greedy answers of the serving loop against an argmax that computes everything anew for each token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from riverrun.base.protocols import Request
from riverrun.base.types import Message, SamplingParams
from riverrun.serve.llm import LLM
from riverrun.serve.pace import Pace
from tests.naive_model import NaiveLlama
from tests.tiny_model import tiny_config, write_tiny

PROMPTS = 50
ENDS = (2, *range(290, 310))  # many, so that answers end at different lengths
SYSTEMS = (
    "",
    "You are the assistant of a bookshop that sells books and maps.",
    "You are the assistant of a bookshop. Tables: books(id, title, price).",
)


def requests() -> list[Request]:
    """Prompts that begin alike in part, are equal in part, and ask for 1 to 12 tokens."""
    out = []
    for number in range(PROMPTS):
        system = SYSTEMS[number % 3]
        text = f"How much is book {number % 45}{' and a map' * (number % 4)}?"
        messages = (Message.of("system", system),) * bool(system) + (Message.of("user", text),)
        out.append(Request(messages, params=SamplingParams(max_tokens=1 + (7 * number) % 12)))
    return out


@dataclass
class Wanted:
    folder: Path
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    """The answers of the plain model; prompts are tokens, so that nothing of the engine is in the reference."""
    folder = write_tiny(tmp_path_factory.mktemp("greedy"), eos_token_id=ENDS)
    assert set(json.loads((folder / "config.json").read_text())["eos_token_id"]) == set(ENDS)
    naive = NaiveLlama(tiny_config().to_hf(), load_file(folder / "model.safetensors"))
    with LLM(folder, dtype="float32", slots=1) as model:
        prompts = [model.tokenize(request) for request in requests()]
    counts = [request.params.max_tokens for request in requests()]
    answers = [
        naive.greedy(ids, count, lambda token: token in ENDS) for ids, count in zip(prompts, counts, strict=True)
    ]
    early = [answer[-1] in ENDS for answer in answers]
    assert 5 < sum(early) < PROMPTS - 5, "some answers end by themselves and some are cut"
    assert len({token for answer in answers for token in answer}) > 30, "the answers vary"
    return Wanted(folder, prompts, answers)


def answers(model: LLM, numbers: list[int]) -> tuple[list[list[int]], int]:
    """(token ids, cached prompt tokens) of the prompts of these numbers, all asked at once."""
    asked = requests()
    sequences = [model._sequence(asked[number]) for number in numbers]
    model.loop.submit(sequences)
    for sequence in sequences:
        assert sequence.done.wait(120)
        assert sequence.error is None
    return [sequence.output for sequence in sequences], sum(sequence.cached_tokens for sequence in sequences)


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("chunk", [3, 17, 64, 1024])
def test_greedy_tokens_do_not_depend_on_slots_chunks_or_hits(wanted: Wanted, slots: int, chunk: int) -> None:
    everything = list(range(PROMPTS))
    with LLM(wanted.folder, dtype="float32", slots=slots) as model:
        model.loop.pace = Pace(most=chunk, least=min(chunk, 32))
        first, _ = answers(model, everything)
        second, hits = answers(model, everything[::-1])
        model.loop.run(model.loop.scheduler.check_integrity)
    assert first == wanted.answers, "cold"
    assert second == wanted.answers[::-1], "warm"
    assert hits > 8 * PROMPTS, "the second round was not warm"


def test_a_cold_cache_gives_the_same_tokens_as_a_warm_one(wanted: Wanted) -> None:
    """The very first prompt of a model finds nothing; asked again, every full block before its last token is found."""
    for number in (0, 1, 5):
        with LLM(wanted.folder, dtype="float32", slots=2) as model:
            cold, none = answers(model, [number])
            warm, hits = answers(model, [number])
        assert (none, hits) == (0, (len(wanted.prompts[number]) - 1) // 16 * 16)
        assert cold == warm == [wanted.answers[number]]


def test_a_full_cache_puts_answers_off_and_changes_none(wanted: Wanted) -> None:
    """Room for little more than one context: sequences lose their blocks again and again."""
    with LLM(wanted.folder, dtype="float32", slots=8, context=256, cache_gb=ROOM) as model:
        got, _ = answers(model, list(range(PROMPTS)))
        model.loop.run(model.loop.scheduler.check_integrity)
        assert model.loop.scheduler.preemptions
    assert got == wanted.answers


ROOM = 2 * 2 * 2 * 16 * 4 * 272 / 1e9
"""272 tokens of the tiny model in fp32."""
