"""A model in two processes (gloo) says what it says in one; what is not served so is refused; a lost part is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from riverrun.base.errors import InputError, RiverrunError, UnsupportedError
from riverrun.base.protocols import Request
from riverrun.base.types import Message, SamplingParams
from riverrun.serve.engines.parallel import ParallelEngine
from riverrun.serve.llm import LLM
from tests.tiny_model import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32", slots=3, context=256, parallel=2, threads=1, kv="int8") as opened:
        yield opened
        opened.loop.run(opened.loop.scheduler.check_integrity)


def test_two_processes_say_what_one_says(model: LLM, folder: Path) -> None:
    shared = Message.of("system", "You are the assistant of a bookshop that sells books and maps.")
    asked = [
        Request((shared, Message.of("user", f"Question {n}?")), params=SamplingParams(max_tokens=16)) for n in range(6)
    ]
    with LLM(folder, dtype="float32", slots=3, context=256, threads=1, kv="int8") as alone:
        wanted, score = alone.generate(asked), alone.score("How much", [" is it"])[0]
    found = model.generate(asked)
    assert [done.raw for done in found] == [done.raw for done in wanted]
    assert found[-1].usage.cached_tokens > 0
    assert model.score("How much", [" is it"])[0].total == pytest.approx(score.total, abs=1e-4)
    engine = model.loop.engine
    assert isinstance(engine, ParallelEngine)
    assert engine.model.config.num_attention_heads == 2


def test_what_several_processes_do_not_do_is_said(model: LLM, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="adapters are not served by name"):
        model.load_adapter("a", tmp_path)
    with pytest.raises(UnsupportedError, match="laid out in full in several processes"):
        LLM(folder, parallel=2, weights="stored")
    with pytest.raises(InputError, match="3 processes do not divide"):
        LLM(folder, dtype="float32", parallel=3)


def test_a_lost_part_is_told(folder: Path) -> None:
    with LLM(folder, dtype="float32", slots=2, context=128, parallel=2, threads=1) as opened:
        engine = opened.loop.engine
        assert isinstance(engine, ParallelEngine)
        for process in engine.others:
            process.kill()
            process.wait()
        with pytest.raises(RiverrunError):
            opened.generate([Request(prompt="The sea", params=SamplingParams(max_tokens=30, ignore_end=True))])
