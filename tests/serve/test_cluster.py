"""Several replicas: which one is chosen (property tests), and real processes of which one is killed under load."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverrun.base.errors import CapacityError, InputError, RiverrunError
from riverrun.base.protocols import Abort, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.serve.cluster import Fleet
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.llm import LLM
from riverrun.serve.routing import Router
from tests.tiny_model import write_adapter, write_tiny

PATIENCE = 120.0

# ---- which replica ------------------------------------------------------------------------------------------------


def digests(*numbers: int) -> list[bytes]:
    """A chain of blocks, each named by all before it."""
    return [bytes(numbers[: count + 1]) for count in range(len(numbers))]


def test_requests_that_share_a_beginning_meet() -> None:
    router = Router(3)
    first = router.choose(digests(1, 2, 3), {0, 1, 2})
    other = router.choose(digests(9, 2, 3), {0, 1, 2})
    assert first != other, "the one with nothing to do gets what is new"
    assert router.choose(digests(1, 2, 4), {0, 1, 2}) == first
    assert router.choose(digests(9, 2), {0, 1, 2}) == other
    assert (router.shared, router.asked) == (4, 11)
    # too little in common: the one that has fewest requests
    assert router.choose(digests(1, 5, 6, 7, 8), {0, 1, 2}) == 3 - first - other


def test_a_replica_that_is_much_busier_gives_way_and_a_dead_one_is_forgotten() -> None:
    router = Router(2, slack=1)
    same = digests(1, 2)
    assert [router.choose(same, {0, 1}) for _ in range(3)] == [0, 0, 1]
    router.forget(1)
    assert router.choose(same, {0}) == 0
    router.end(0)
    assert router.running == [2, 1]


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=5), st.booleans()), max_size=60), st.integers(1, 4))
def test_loads_stay_near_one_another(asked: list[tuple[list[int], bool]], count: int) -> None:
    router, running = Router(count, slack=2, kept=16), list[int]()
    live = set(range(count))
    for blocks, ends in asked:
        if ends and running:
            router.end(running.pop(0))
        before = list(router.running)
        chosen = router.choose(digests(*blocks), live)
        assert chosen in live
        assert before[chosen] <= min(before) + 2
        running.append(chosen)
        assert sum(router.running) == len(running)
    assert len(router._homes) <= 16


# ---- real processes -----------------------------------------------------------------------------------------------

if find_spec("ray") is None:
    pytest.skip("not run here: ray is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[Fleet]:
    plain = inspect.isgenerator
    first = {"first": write_adapter(folder / "first", folder)}
    with Fleet(folder, replicas=3, adapters=first, name="tiny", dtype="float32", slots=4, context=256) as opened:
        yield opened
    inspect.isgenerator = plain  # ray puts another one there, and other tests read the docs of Python's own


def asked(number: int, **params: object) -> Request:
    return Request((Message.of("user", f"How much is book {number}?"),), params=SamplingParams(max_tokens=12, **params))


def test_answers_are_those_of_one_model(fleet: Fleet, folder: Path) -> None:
    requests = [asked(number) for number in range(7)]
    with LLM(folder, dtype="float32", slots=4, context=256, name="tiny") as alone:
        wanted = alone.generate(requests)
        score, text = alone.score("How much", [" is it", " books"]), [*alone.stream(requests[0])]
        vectors, perplexity = alone.embed(["a book"]), alone.perplexity(["How much is the book?"])
    assert [done.raw for done in fleet.generate(requests)] == [done.raw for done in wanted]
    assert "".join(delta.text for delta in fleet.stream(requests[0])) == "".join(delta.text for delta in text)
    for own, other in zip(fleet.score("How much", [" is it", " books"]), score, strict=True):
        assert own.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert fleet.embed(["a book"])[0] == pytest.approx(vectors[0], abs=1e-5)
    assert fleet.perplexity(["How much is the book?"]) == pytest.approx(perplexity, rel=1e-5)
    assert fleet.detokenize(fleet.tokenize(Request(prompt="a book"))) == "a book"
    assert fleet.info.context_length == 256


def test_errors_come_back_as_they_were(fleet: Fleet) -> None:
    with pytest.raises(CapacityError, match="the context is 256"):
        fleet.generate([Request(prompt="books " * 300)])
    with pytest.raises(InputError, match="has no adapter 'nope'"):
        fleet.generate([Request(prompt="x", adapter="nope")])
    with pytest.raises(InputError, match="has no adapter 'nope'"):
        list(fleet.stream(Request(prompt="x", adapter="nope")))
    assert fleet.router.running == [0, 0, 0]


def test_an_abort_reaches_the_replica(fleet: Fleet) -> None:
    abort = Abort()
    long = Request(prompt="The sea", params=SamplingParams(max_tokens=200, ignore_end=True), abort=abort)
    stream = fleet.stream(long)
    next(stream)
    abort.set()
    assert [delta.finish_reason for delta in stream][-1] == "abort"
    left = Request(prompt="The sea", params=SamplingParams(max_tokens=200, ignore_end=True), abort=Abort())
    stream = fleet.stream(left)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert left.abort is not None
    assert [each.completion_tokens for each in left.abort.left] == [1]
    assert left.abort.left[0].prompt_tokens == len(fleet.tokenize(left))
    assert fleet.router.running == [0, 0, 0]


def test_an_abort_that_comes_before_its_request_counts(fleet: Fleet) -> None:
    """The call that aborts may overtake the one that asks."""
    for turn in range(12):
        abort = Abort()
        long = Request(prompt=f"The sea {turn}", params=SamplingParams(max_tokens=200, ignore_end=True), abort=abort)
        if turn:
            threading.Timer(0.002 * turn, abort.set).start()
        else:
            abort.set()
        done = fleet.generate([long])[0] if turn % 2 else [*fleet.stream(long)][-1]
        assert done.finish_reason == "abort", f"turn {turn}"
    assert fleet.router.running == [0, 0, 0]


def test_a_conversation_goes_on_where_it_was_computed(fleet: Fleet, folder: Path, tmp_path: Path) -> None:
    """As with one model; the past comes from the cache of a replica, and the conversation survives on disk."""
    turns = ["How much is the book about the sea? " * 3, "And the map?", "Both?"]
    params = SamplingParams(max_tokens=8)
    with LLM(folder, dtype="float32", slots=4, context=256, name="tiny") as alone:
        session = alone.session()
        wanted = [session.ask(turn, params).raw for turn in turns]
    first = fleet.sessions.open("talk")
    answers = [first.ask(turn, params) for turn in turns[:2]]
    assert answers[1].usage.cached_tokens >= 64
    assert fleet.sessions.save("talk", tmp_path / "talk.safetensors") == 0, "what is held elsewhere is not written"
    fleet.sessions.close("talk")
    again = fleet.sessions.load(tmp_path / "talk.safetensors", "again")
    answers.append(again.ask(turns[2], params))
    assert [each.raw for each in answers] == wanted
    fleet.sessions.close("again")


def test_each_replica_counts(fleet: Fleet) -> None:
    pytest.importorskip("prometheus_client", reason="not run here: prometheus-client is not installed")
    with (
        BackgroundServer(make_app({"tiny": fleet})) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as http,
    ):
        before = http.get("/status").json()["models"]["tiny"]["generation_tokens"]
        http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 3, "ignore_eos": True})
        assert http.get("/status").json()["models"]["tiny"]["generation_tokens"] == before + 3
        text = http.get("/metrics").text
    for number in range(3):
        assert f'riverrun:generation_tokens_total{{engine="{number}",model_name="tiny"}}' in text


def pids(fleet: Fleet) -> list[int]:
    import ray

    return list(ray.get([actor.ping.remote() for actor in fleet._actors]))


def test_one_of_three_is_killed_under_load(fleet: Fleet, folder: Path, tmp_path: Path) -> None:
    """Every request is answered, or says that the replica died; nothing hangs; the replica comes back, and has the
    adapters of now: one that was loaded while all were there, and what a name means that meant another at the start."""
    before, found, stop = pids(fleet), list[str](), threading.Event()
    fleet.load_adapter("late", write_adapter(tmp_path / "late", folder, rank=2))
    named = [replace(asked(1), adapter=name) for name in ("", "first", "late")]
    assert len({done.raw for done in fleet.generate(named)}) == 3
    fleet.unload_adapter("first")
    shutil.rmtree(folder / "first")  # nobody asks for what is no longer meant
    fleet.load_adapter("first", write_adapter(tmp_path / "other", folder, rank=8))
    late, other = named[2], named[1]
    wanted = [done.raw for done in fleet.generate([late, other])]
    with BackgroundServer(make_app({"tiny": fleet})) as server:

        def client(number: int) -> None:
            count = 0
            with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as http:
                while not stop.is_set():
                    count += 1
                    body = {"model": "tiny", "prompt": f"The sea {number} {count}", "max_tokens": 16}
                    if number % 2:
                        answer = http.post("/v1/completions", json=body)
                        found.append("answered" if answer.status_code == 200 else answer.text)
                        continue
                    with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as events:
                        lines = [line for line in events.iter_lines() if line]
                        whole = events.status_code == 200 and lines[-1] == "data: [DONE]" and "error" not in lines[-2]
                        found.append("answered" if whole else "".join(lines[-2:]))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        os.kill(before[1], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while fleet.live == (0, 1, 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        while fleet.live != (0, 1, 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
    failed = [text for text in found if text != "answered"]
    assert all("died after" in text for text in failed), failed
    assert found.count("answered") > 8
    assert len(failed) <= 8, "at most what each client had under way"
    assert fleet.live == (0, 1, 2)
    after = pids(fleet)
    assert after[1] != before[1]
    assert (after[0], after[2]) == (before[0], before[2])
    import ray

    again = ray.get(fleet._actors[1].generate.remote([late, other], "asked at the new one"))
    assert [done.raw for done in again] == wanted
    shutil.rmtree(tmp_path / "other")
    fleet._back(0)
    assert 0 in fleet.live, "it has the adapter, whatever became of the folder"
    fleet.unload_adapter("late")
    with pytest.raises(InputError, match="late"):
        fleet.generate([late])


def test_a_replica_that_cannot_have_all_adapters_stays_away_and_says_why(
    fleet: Fleet, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = write_adapter(tmp_path / "changed", folder)
    for path, why in ((tmp_path / "nowhere", "nowhere"), (changed, "were changed: load them under another name")):
        caplog.clear()
        fleet._adapters["late"] = (path, "a digest")
        fleet._live.discard(2)
        fleet._back(2)
        fleet._back(2)
        assert 2 not in fleet.live
        told = [record.getMessage() for record in caplog.records if "replica 2" in record.getMessage()]
        assert len(told) == 1, "said once"
        assert why in told[0]
    del fleet._adapters["late"]
    deadline = time.monotonic() + PATIENCE
    while 2 not in fleet.live and time.monotonic() < deadline:
        time.sleep(0.05)
    assert fleet.live == (0, 1, 2)


def test_without_a_replica_it_says_so(folder: Path) -> None:
    with pytest.raises(InputError, match="there cannot be 0 replicas"):
        Fleet(folder, replicas=0)
    with pytest.raises(InputError, match=r"nowhere holds no adapter in PEFT's layout"):
        Fleet(folder, replicas=1, adapters={"gone": folder / "nowhere"})
    with pytest.raises(RiverrunError):
        Fleet(folder, replicas=1, dtype="float99")
