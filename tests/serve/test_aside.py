"""The calls for event loops: equal to those that wait, all at once, and ended when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from riverrun.base.errors import BusyError, InputError
from riverrun.base.protocols import Abort, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.serve.aside import iterate_in_thread, run_abortable, run_in_thread
from riverrun.serve.llm import LLM
from tests.tiny_model import write_tiny

MANY = 40
"""More than any pool of threads that asyncio makes on its own (32)."""
PATIENCE = 60.0
LONG = SamplingParams(max_tokens=200, ignore_end=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_tiny(tmp_path_factory.mktemp("aside"))
    with LLM(folder, dtype="float32", slots=MANY, context=256) as opened:
        yield opened


def asked(number: int, max_tokens: int = 8) -> Request:
    return Request(
        (Message.of("user", f"Book {number}?"),), params=SamplingParams(max_tokens=max_tokens, ignore_end=True)
    )


def idle(model: LLM) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if model.loop.run(lambda: not model.loop.scheduler.running and model.loop.pool.free == model.loop.pool.total):
            return True
        time.sleep(0.01)
    return False


def test_they_give_what_the_calls_that_wait_give(model: LLM) -> None:
    texts, endings = ["How much is the book?", "a"], [" is it", " books"]

    async def work() -> None:
        requests = [asked(0), asked(1)]
        done = await model.agenerate(requests)
        assert [each.raw for each in done] == [each.raw for each in model.generate(requests)]
        assert (await model.achat("Book 0?", asked(0).params)).raw == done[0].raw
        pieces = [delta async for delta in model.astream(requests[0])]
        assert "".join(delta.text for delta in pieces) == done[0].raw
        assert (pieces[-1].finish_reason, pieces[-1].usage.completion_tokens) == ("length", 8)  # type: ignore[union-attr]
        scores, again = await model.ascore("How much", endings), model.score("How much", endings)
        assert [each.total for each in scores] == pytest.approx([each.total for each in again], abs=1e-4)
        assert await model.aperplexity(texts[:1]) == pytest.approx(model.perplexity(texts[:1]), rel=1e-5)
        assert (await model.aembed(texts, pooling="last"))[1] == pytest.approx(
            model.embed(texts, pooling="last")[1], abs=1e-5
        )

    asyncio.run(work())


def test_any_number_of_them_run_at_once(model: LLM) -> None:
    most = 0

    async def watch(over: asyncio.Event) -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, len(model.loop.scheduler.running))
            await asyncio.sleep(0.001)

    async def read(number: int) -> str:
        return "".join([delta.text async for delta in model.astream(asked(number, 60))])

    async def work() -> list[str]:
        over = asyncio.Event()
        watching = asyncio.create_task(watch(over))
        whole = asyncio.gather(*(model.agenerate([asked(number, 60)]) for number in range(MANY // 2)))
        streams = await asyncio.gather(*(read(number) for number in range(MANY // 2)))
        texts = [done[0].raw for done in await whole]
        over.set()
        await watching
        assert streams == texts
        return texts

    assert len(set(asyncio.run(work()))) > 1
    assert most > MANY // 2


def test_an_answer_that_nobody_waits_for_ends(model: LLM) -> None:
    async def work() -> None:
        own = Abort()
        task = asyncio.create_task(model.agenerate([Request(prompt="The sea", params=LONG, abort=own)]))
        while not model.loop.scheduler.running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with aclosing(model.astream(Request(prompt="The sea", params=LONG))) as deltas:
            async for _ in deltas:
                break
        task = asyncio.create_task(model.agenerate([Request(prompt="The sea", params=LONG, abort=own)]))
        await asyncio.sleep(0.05)
        own.set()
        assert (await task)[0].finish_reason == "abort"

    asyncio.run(work())
    assert idle(model)


def test_a_session_has_them_too(model: LLM) -> None:
    params = SamplingParams(max_tokens=6, ignore_end=True)

    async def work() -> None:
        talk, other = model.session(), model.session()
        first = await talk.aask("How much is Salt?", params)
        assert first.raw == other.ask("How much is Salt?", params).raw
        pieces = [delta.text async for delta in talk.astream("And Maps?", params)]
        assert "".join(pieces) == other.ask("And Maps?", params).raw
        said = list(talk.messages)
        task = asyncio.create_task(talk.aask("And?", LONG))
        while not talk.is_answering:
            await asyncio.sleep(0.001)
        with pytest.raises(BusyError, match="answering another turn"):
            await talk.aask("Now?", params)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with aclosing(talk.astream("And?", LONG)) as deltas:
            async for _ in deltas:
                break
        assert not talk.is_answering
        assert talk.messages == said, "a turn that was left is as if it had not been"
        for each in (talk, other):
            model.sessions.close(each.name)

    asyncio.run(work())
    assert idle(model)


def test_nothing_is_made_in_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a large vocabulary take a while."""
    import riverrun.serve.text as module

    where, made = list[str](), module.token_bytes

    def noted(*given: Any) -> list[bytes]:
        where.append(threading.current_thread().name)
        return made(*given)

    monkeypatch.setattr(module, "token_bytes", noted)

    async def work() -> None:
        with LLM(write_tiny(tmp_path), dtype="float32", slots=2) as fresh:
            assert [delta async for delta in fresh.astream(asked(0))]

    asyncio.run(work())
    assert where
    assert threading.main_thread().name not in where


def test_an_error_behind_a_cancelled_call_is_no_news() -> None:
    entered, leave, told = threading.Event(), threading.Event(), list[dict[str, Any]]()

    def call() -> None:
        entered.set()
        assert leave.wait(PATIENCE)
        raise InputError("too late")

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, about: told.append(about))
        task = asyncio.create_task(run_abortable(call, leave.set))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(work())
    gc.collect()
    assert not told


def test_errors_and_ends_come_through() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise InputError("no more")

    def endless(stopped: threading.Event) -> Iterator[int]:
        while not stopped.wait(0.001):
            yield 1

    async def work() -> None:
        items = iterate_in_thread(failing, lambda: None)
        assert await anext(items) == 1
        with pytest.raises(InputError, match="no more"):
            await anext(items)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run_in_thread(lambda: next(iter(())))
        stopped = threading.Event()
        async with aclosing(iterate_in_thread(lambda: endless(stopped), stopped.set)) as more:
            assert await anext(more) == 1
        assert stopped.is_set()

    asyncio.run(work())
