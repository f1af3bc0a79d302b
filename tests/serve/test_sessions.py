"""Conversations that are remembered: the same answers as whole conversations, little computed, saved and restored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from riverrun.base.errors import BusyError, InputError, IntegrityError
from riverrun.base.types import Message, SamplingParams
from riverrun.serve.llm import LLM
from riverrun.serve.sessions import SessionTable
from tests.tiny_model import write_tiny

SHORT = SamplingParams(max_tokens=8)
QUESTION = "How much is the book about salt that I have been looking for since the day before yesterday?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32", slots=3) as opened:
        yield opened
        check(opened)


def check(model: LLM) -> None:
    """Blocks are held by running sequences and sessions alone."""
    model.loop.run(lambda: model.loop.scheduler.check_integrity(*[each.pins.blocks for each in model.sessions]))


def test_a_new_turn_alone_gives_the_answer_of_the_whole_conversation(model: LLM) -> None:
    session = model.session("one")
    first = session.ask(QUESTION, SHORT)
    second = session.ask("And in green, and in blue?", SHORT)
    third = "".join(delta.text for delta in session.stream("And?", SHORT))
    whole = [
        Message.of("user", QUESTION),
        first.message,
        Message.of("user", "And in green, and in blue?"),
        second.message,
        Message.of("user", "And?"),
    ]
    assert session.messages[:-1] == whole
    assert [model.chat(whole[:length], SHORT).raw for length in (1, 3, 5)] == [first.raw, second.raw, third]
    assert second.usage.cached_tokens >= 16 * (first.usage.prompt_tokens // 16) - 16
    check(model)


def test_other_requests_do_not_drive_a_session_out(folder: Path) -> None:
    room = 2 * 2 * 2 * 16 * 4 * 900 / 1e9  # 900 tokens; a session may hold half
    with LLM(folder, dtype="float32", slots=2, context=400, cache_gb=room) as model:
        session, forgotten = model.session("kept"), Message.of("user", QUESTION[::-1])
        session.ask(QUESTION, SHORT)
        model.chat([forgotten], SHORT)
        for number in range(12):
            model.chat(f"{number} " * 100, SHORT)
        assert session.ask("And?", SHORT).usage.cached_tokens > 60
        assert model.chat([forgotten], SHORT).usage.cached_tokens == 0
        check(model)


def test_sessions_hold_no_more_than_their_share(folder: Path) -> None:
    room = 2 * 2 * 2 * 16 * 4 * 640 / 1e9
    with LLM(folder, dtype="float32", slots=2, context=400, cache_gb=room) as model:
        sessions = [model.session(str(n)) for n in range(6)]
        for number, session in enumerate(sessions):
            session.ask(f"{number} " + QUESTION, SHORT)
        held = [len(session.pins.blocks) for session in sessions]
        assert sum(held) <= model.loop.pool.total / 2
        assert held[-1] > 0
        assert held[0] == 0, "the one that was unused for longest lets go first"
        assert sessions[0].ask("And?", SHORT).raw
        check(model)


def test_a_saved_session_goes_on_elsewhere(folder: Path, model: LLM, tmp_path: Path) -> None:
    session, file = model.session("one"), tmp_path / "one.safetensors"
    session.ask(QUESTION, SHORT)
    session.ask("And in green?", SHORT)
    kept = model.sessions.save("one", file)
    assert kept == len(session.pins.tokens) >= 96
    wanted = session.ask("And in pink?", SHORT)
    with LLM(folder, dtype="float32", slots=3) as other:
        again = other.sessions.load(file, "again")
        got = again.ask("And in pink?", SHORT)
        assert got.raw == wanted.raw
        assert got.usage.cached_tokens == kept
        check(other)
    with LLM(folder, dtype="float32", kv="int8", slots=3) as other:
        again = other.sessions.load(file)
        assert again.messages == session.messages[:4]
        assert again.ask("And in pink?", SHORT).usage.cached_tokens == 0, "keys of another kind are not used"
    (tmp_path / "broken.safetensors").write_bytes(b"12345678910")
    with pytest.raises(IntegrityError, match="is no saved session"):
        model.sessions.load(tmp_path / "broken.safetensors")


def test_a_closed_or_unused_session_lets_go(model: LLM) -> None:
    table = SessionTable(model, seconds=0.2, most=2)
    session = table.open("one")
    session.ask(QUESTION, SHORT)
    assert session.pins.blocks
    with pytest.raises(InputError, match="there is a session 'one' already"):
        table.open("one")
    table.open("two")
    with pytest.raises(BusyError, match="2 sessions are open"):
        table.open("three")
    time.sleep(0.3)
    with pytest.raises(InputError, match="there is no session 'one'"):
        table.get("one")
    assert not session.pins.blocks
    with pytest.raises(InputError, match="is closed"):
        session.ask("And?", SHORT)
    assert len(table) == 0


def test_one_turn_at_a_time_and_an_aborted_one_is_not_remembered(model: LLM) -> None:
    session = model.session("one")
    stream = session.stream(QUESTION, SamplingParams(max_tokens=300, ignore_end=True))
    next(stream)
    with pytest.raises(BusyError, match="is answering another turn"):
        session.ask("And?", SHORT)
    stream.close()  # type: ignore[attr-defined]
    assert session.messages == []
    assert session.ask("And?", SHORT).raw == model.chat("And?", SHORT).raw
