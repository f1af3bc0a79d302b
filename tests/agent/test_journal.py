"""The journal: kill -9 at every event, any torn end, and the run still ends the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from riverrun.agent.journal import Journal, read_events, replay
from riverrun.agent.loop import Agent
from riverrun.agent.state import Event, params_from_json, params_to_json
from riverrun.agent.tool import tool
from riverrun.base.errors import InputError, IntegrityError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Request
from riverrun.base.types import Guide, Message, SamplingParams, ToolCall


def reply(request: Request) -> Any:
    """Two calls, then an answer made of what the tools said."""
    heard = [message.text for message in request.messages if message.role == "tool"]
    return ToolCall("work", {"step": len(heard)}) if len(heard) < 2 else "; ".join(heard)


class DeadlyJournal(Journal):
    """Kills its process after some events."""

    left = 10**6

    def append(self, event: Event) -> None:
        super().append(event)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def build(folder: Path, effects: Any, *, die_after: int = 10**6, die_inside: bool = False) -> Agent:
    @tool(name="work", effects=effects)
    def work(step: int) -> str:
        with open(folder / "effects.txt", "a", encoding="utf-8") as handle:
            handle.write(f"{step}\n")
        if die_inside and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"did {step}"

    journal = DeadlyJournal(folder / "run.jsonl")
    journal.left = die_after
    return Agent(FakeModel(reply), [work], journal=journal)


def run_and_die(folder: Path, effects: str, die_after: int, die_inside: bool) -> None:
    agent = build(folder, effects, die_after=die_after, die_inside=die_inside)
    agent.generate([Request((Message.of("user", "go"),), params=SamplingParams(seed=3))])


def killed(folder: Path, effects: str, *, die_after: int = 10**6, die_inside: bool = False) -> int:
    process = multiprocessing.get_context("fork").Process(
        target=run_and_die, args=(folder, effects, die_after, die_inside)
    )
    process.start()
    process.join()
    return process.exitcode or 0


def effects_of_run(folder: Path) -> list[str]:
    file = folder / "effects.txt"
    return file.read_text().split() if file.exists() else []


EVENTS = ["started", *["asked", "answered", "called", "returned"] * 2, "asked", "answered", "finished"]


def test_events_of_a_run(tmp_path: Path) -> None:
    agent = build(tmp_path, "read")
    (done,) = agent.generate([Request((Message.of("user", "go"),))])
    assert done.message.text == "did 0; did 1"
    assert [event["kind"] for event in read_events(tmp_path / "run.jsonl")] == EVENTS
    (state,) = replay(tmp_path / "run.jsonl").values()
    assert state.text == "did 0; did 1"
    assert state.finished == "answered"
    assert tuple(state.steps) == done.steps
    assert state.usage == done.usage
    assert agent.unfinished() == []
    assert agent.resume(state.run) == done


@pytest.mark.parametrize("effects", ["read", "write"])
@pytest.mark.parametrize("events", range(1, len(EVENTS)))
def test_kill_after_every_event(tmp_path: Path, events: int, effects: str) -> None:
    assert killed(tmp_path, effects, die_after=events) == -signal.SIGKILL
    agent = build(tmp_path, effects)
    (run,) = agent.unfinished()
    done = agent.resume(run)
    told = "error: work was interrupted, it is not known whether it was carried out, and it is not repeated"
    if effects == "write" and EVENTS[events - 1] == "called":
        assert told in done.message.text
        assert len(effects_of_run(tmp_path)) == 1  # the journal was written, the tool had not yet begun
    else:
        assert done.message.text == "did 0; did 1"
        assert effects_of_run(tmp_path) == ["0", "1"]
    assert agent.unfinished() == []
    assert agent.resume(run) == done


@pytest.mark.parametrize(("effects", "times"), [("read", 2), ("write", 1)])
def test_kill_inside_a_tool(tmp_path: Path, effects: str, times: int) -> None:
    assert killed(tmp_path, effects, die_inside=True) == -signal.SIGKILL
    agent = build(tmp_path, effects)
    done = agent.resume(agent.unfinished()[0])
    assert effects_of_run(tmp_path).count("1") == times
    assert ("not repeated" in done.message.text) == (effects == "write")


def test_any_torn_end_can_be_resumed(tmp_path: Path) -> None:
    build(tmp_path, "read").generate([Request((Message.of("user", "go"),))])
    whole = (tmp_path / "run.jsonl").read_bytes()
    first = whole.index(b"\n")
    for size in range(first + 1, len(whole), 97):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "run.jsonl").write_bytes(whole[:size])
        agent = build(folder, "read")
        (run,) = agent.unfinished()
        assert agent.resume(run).message.text == "did 0; did 1"
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "run.jsonl").write_bytes(whole[:first])
    assert build(tmp_path / "none", "read").unfinished() == []


def test_many_runs_share_a_journal(tmp_path: Path) -> None:
    agent = build(tmp_path, "read")
    agent.generate([Request((Message.of("user", text),)) for text in ("a", "b")])
    list(agent.stream(Request((Message.of("user", "c"),))))
    stream = agent.stream(Request((Message.of("user", "d"),)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    states = replay(tmp_path / "run.jsonl").values()
    assert [state.finished for state in states] == ["answered", "answered", "answered", "aborted"]


def test_a_journal_is_written_by_one(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.jsonl"), pytest.raises(InputError, match="another agent"):
        Journal(tmp_path / "run.jsonl")
    Journal(tmp_path / "run.jsonl").close()


def test_bad_journals_and_wrong_agents(tmp_path: Path) -> None:
    agent = build(tmp_path, "read")
    agent.generate([Request((Message.of("user", "go"),))])
    assert agent.journal is not None
    run = next(iter(agent.journal.states()))
    with pytest.raises(InputError, match="no run 'x'"):
        agent.resume("x")
    with pytest.raises(InputError, match="another model"):
        Agent(FakeModel(reply), [], journal=agent.journal).resume(run)
    with pytest.raises(InputError, match="no journal"):
        Agent(FakeModel(reply), []).unfinished()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"run": "1"}\n')
    with pytest.raises(IntegrityError, match="line 1"):
        replay(bad)
    bad.write_text('{"run": "1", "kind": "returned", "at": 0, "id": "x"}\n')
    with pytest.raises(IntegrityError, match="'returned' does not fit"):
        replay(bad)


def test_params_round_trip() -> None:
    params = SamplingParams(stop=("a",), seed=1, guide=Guide("regex", "x"))
    assert params_from_json(params_to_json(params)) == params
