"""What is computed in a step: budgets, shared beginnings, who is put off, who is next; without a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.types import SamplingParams
from riverrun.serve.blocks import BlockPool, root
from riverrun.serve.request import Sequence
from riverrun.serve.sampler import Sampler
from riverrun.serve.scheduler import FairQueue, Piece, Scheduler

SIZE = 4


def sequence(prompt: list[int], count: int = 8, key: str = "") -> Sequence:
    params = SamplingParams(max_tokens=count)
    return Sequence(prompt, params, 10_000, root=root("m"), block_size=SIZE, key=key, sampler=Sampler(params, prompt))


def next_token(tokens: list[int]) -> int:
    """A model that anyone can compute."""
    return (sum(tokens) * 31 + len(tokens)) % 50


class Machine:
    """A scheduler, and a cache that remembers which tokens stand where; a step reads them as an engine would."""

    def __init__(self, blocks: int, most: int = 8, budget: int = 32) -> None:
        self.scheduler = Scheduler(BlockPool(blocks, SIZE), most, budget)
        self.memory: dict[int, list[int]] = {block: [-1] * SIZE for block in range(blocks)}
        self.computed = 0

    def read(self, s: Sequence, count: int) -> list[int]:
        return [self.memory[s.blocks[place // SIZE]][place % SIZE] for place in range(count)]

    def step(self, prompt_tokens: int | None = None) -> list[Piece]:
        scheduler = self.scheduler
        pieces = scheduler.plan(prompt_tokens)
        for piece in pieces:
            for place, token in enumerate(piece.tokens, piece.start):
                self.memory[piece.sequence.blocks[place // SIZE]][place % SIZE] = token
        for piece in pieces:
            s = piece.sequence
            self.computed += piece.count
            assert self.read(s, piece.start + piece.count)[: s.length] == s.tokens[: piece.start + piece.count]
            if not piece.is_last:
                scheduler.computed(piece)
                scheduler.publish(s)
                continue
            accepted = 0
            for place in range(1 + len(piece.drafts)):
                token = next_token(s.tokens)
                s.append(token)
                if s.is_full or place == len(piece.drafts) or token != piece.drafts[place]:
                    break
                accepted += 1
            scheduler.computed(piece, accepted)
            scheduler.publish(s)
            if s.is_full:
                scheduler.finish(s)
                s.finish("length")
        scheduler.check_integrity()
        return pieces

    def run(self, most: int = 5000) -> None:
        for _ in range(most):
            if self.scheduler.is_idle:
                return
            assert self.step(), "somebody can always go on"
        raise AssertionError(f"not done after {most} steps")


def wanted(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def test_answers_come_first_and_prompts_take_what_is_left() -> None:
    machine = Machine(100, budget=10)
    short, long = sequence(list(range(6))), sequence([7] * 25)
    machine.scheduler.submit(short)
    machine.scheduler.submit(long)
    assert [(p.sequence, p.count) for p in machine.step()] == [(short, 6), (long, 4)]
    assert [(p.sequence, p.count) for p in machine.step()] == [(short, 1), (long, 10)]
    assert [(p.sequence, p.count) for p in machine.step(5)] == [(short, 1), (long, 5)]
    assert [(p.sequence, p.count) for p in machine.step(0)] == [(short, 1)]
    assert [(p.sequence, p.count) for p in machine.step()] == [(short, 1), (long, 6)]


def test_a_shared_beginning_is_computed_once_by_those_who_come_together() -> None:
    machine = Machine(200, budget=64)
    beginning = [n % 40 for n in range(41)]
    many = [sequence([*beginning, n]) for n in range(8)]
    for each in many:
        machine.scheduler.submit(each)
    machine.run()
    assert [each.output for each in many] == [wanted([*beginning, n], 8) for n in range(8)]
    assert machine.computed <= 42 + 7 * (42 - 40) + 8 * 7
    assert [each.cached_tokens for each in many] == [0] + [40] * 7


def test_one_that_waits_for_a_block_goes_on_when_its_leader_is_gone() -> None:
    machine = Machine(100, budget=8)
    leader, follower = sequence([1] * 30), sequence([1] * 30)
    machine.scheduler.submit(leader)
    machine.scheduler.submit(follower)
    machine.step()
    assert machine.scheduler.running == [leader]
    machine.scheduler.finish(leader)
    machine.run()
    assert follower.output == wanted([1] * 30, 8)


def test_the_youngest_is_put_off_and_gives_the_same_answer() -> None:
    machine = Machine(9, budget=64)
    prompts = [[n] * 10 for n in range(3)]
    many = [sequence(prompt, 12) for prompt in prompts]
    for each in many:
        machine.scheduler.submit(each)
    machine.run()
    assert [each.output for each in many] == [wanted(prompt, 12) for prompt in prompts]
    assert machine.scheduler.preemptions
    assert machine.scheduler.pool.free == 9


def test_drafts_are_kept_as_far_as_they_are_right() -> None:
    machine = Machine(100)
    one = sequence([3, 4, 5], 10)
    machine.scheduler.submit(one)
    machine.step()
    right = wanted([3, 4, 5], 10)
    one.drafts = (*right[1:3], right[3] + 1, 0)
    [piece] = machine.step()
    one.drafts = ()
    assert (piece.count, piece.start) == (5, 3)
    assert one.output == right[:4]
    assert one.computed == 6
    machine.run()
    assert one.output == right


def test_keys_take_turns() -> None:
    queue = FairQueue()
    crowd = [sequence([1] * 10, key="crowd") for _ in range(5)]
    guest = [sequence([1] * 10, key="guest") for _ in range(2)]
    for each in [*crowd, *guest]:
        queue.enter(each)
    assert list(queue) == [crowd[0], guest[0], crowd[1], guest[1], *crowd[2:]]
    queue.take(crowd[0])
    queue.charge("crowd", 25)
    assert list(queue)[:3] == [guest[0], guest[1], crowd[1]]
    for each in guest:
        queue.take(each)
        queue.leave(each)
    late = sequence([1] * 10, key="guest")
    queue.enter(late)
    assert next(iter(queue)) is crowd[1], "who was away comes back level, not ahead"


@settings(derandomize=True, max_examples=120, deadline=None)
@given(
    st.integers(6, 40), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**20),
    st.lists(st.tuples(st.integers(1, 18), st.integers(1, 6), st.sampled_from("abc")), min_size=1, max_size=12),
)  # fmt: skip
def test_any_load_ends_with_every_answer_right(
    blocks: int, most: int, budget: int, seed: int, plan: list[tuple[int, int, str]]
) -> None:
    """Arrivals, aborts and wrong drafts at random moments; a pool that just holds the longest request is enough."""
    rng = random.Random(seed)
    machine = Machine(blocks, most, budget)
    waiting = [sequence([rng.randrange(2)] * length, count, key) for length, count, key in plan]
    kept: list[Sequence] = []
    while waiting or not machine.scheduler.is_idle:
        if waiting and rng.random() < 0.5:
            each = waiting.pop()
            kept.append(each)
            machine.scheduler.submit(each)
        for each in machine.scheduler.running:
            if each.is_answering and rng.random() < 0.3:
                right = wanted(each.tokens, 3)
                room = max(0, each.limit - len(each.output) - 1)
                each.drafts = tuple(token if rng.random() < 0.7 else 49 for token in right)[:room]
        if machine.scheduler.running and rng.random() < 0.05:
            gone = rng.choice(machine.scheduler.running)
            machine.scheduler.finish(gone)
            gone.finish("abort")
        machine.step(rng.choice([None, 1, 7]))
        for each in machine.scheduler.running:
            each.drafts = ()
    assert machine.scheduler.pool.free == blocks
    for each in kept:
        if each.finish_reason == "length":
            assert each.output == wanted(each.prompt, each.params.max_tokens)


@pytest.mark.parametrize("count", [1, 500])
def test_order_of_a_long_queue(count: int) -> None:
    queue = FairQueue()
    many = [sequence([1], key=str(n % 3)) for n in range(count)]
    for each in many:
        queue.enter(each)
    assert len(queue) == len(list(queue)) == count
    assert len({each.key for each in list(queue)[:3]}) == min(3, count)
