"""The pool of KV blocks: names, holders, the order in which content goes, and that nothing is ever lost."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.serve.blocks import BlockPool, chain, root

START = root("model", "", 0, "bfloat16")


def test_a_chain_names_what_came_before_as_well() -> None:
    one, other = chain([1, 2, 3, 4], 2, START), chain([9, 9, 3, 4], 2, START)
    assert len(one) == len(other) == 2
    assert not set(one) & set(other), "the same block after another beginning has another name"
    assert chain([1, 2, 3, 4, 5], 2, START) == one, "a block that is not full has no name"
    assert chain([3, 4], 2, one[0]) == one[1:]
    assert not set(chain([1, 2, 3, 4], 2, root("model", "adapter", 0, "bfloat16"))) & set(one)


def test_a_published_block_is_found_while_its_owner_runs_and_afterwards() -> None:
    pool = BlockPool(4, 2)
    names = chain([1, 2, 3, 4], 2, START)
    own = pool.take(2)
    assert own is not None
    assert pool.match(names) == []
    assert pool.publish(own[0], names[0]) == own[0]
    assert pool.match(names) == own[:1]
    pool.hold(own[:1])
    pool.release(own)
    assert pool.free == 3
    pool.release(own[:1])
    assert pool.match(names) == own[:1]
    pool.check_integrity()


def test_two_blocks_of_one_content_become_one() -> None:
    pool = BlockPool(4, 2)
    [name] = chain([1, 2], 2, START)
    first, second = pool.take(1), pool.take(1)
    assert first is not None
    assert second is not None
    pool.publish(first[0], name)
    assert pool.publish(second[0], name) == first[0]
    assert pool.free == 3
    pool.check_integrity([first, first])


def test_what_was_used_least_recently_goes_first_and_the_end_of_a_chain_before_its_beginning() -> None:
    pool = BlockPool(5, 1)
    old, new = chain([1, 2], 1, START), chain([3, 4], 1, START)
    for names in (old, new):
        blocks = pool.take(2)
        assert blocks is not None
        for block, name in zip(blocks, names, strict=True):
            pool.publish(block, name)
        pool.release(blocks)
    assert pool.take(1) is not None, "the empty one goes before all"
    assert len(pool.match(old)) == 2
    assert pool.take(1) is not None
    assert (len(pool.match(old)), len(pool.match(new))) == (1, 2)
    kept = pool.match(old)
    pool.hold(kept)
    pool.release(kept)  # used again: now the newest
    assert pool.take(2) is not None
    assert (len(pool.match(old)), len(pool.match(new))) == (1, 0)
    assert pool.take(2) is None
    assert pool.free == 1
    assert pool.counts.evicted == 3


def test_forgetting_loses_names_alone() -> None:
    pool = BlockPool(2, 1)
    names = chain([1], 1, START)
    own = pool.take(1)
    assert own is not None
    pool.publish(own[0], names[0])
    pool.forget()
    assert pool.match(names) == []
    pool.check_integrity([own])
    pool.release(own)
    assert pool.free == 2


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.lists(st.integers(0, 2**20), min_size=1, max_size=80))
def test_nothing_is_lost_whatever_happens(blocks: int, size: int, steps: list[int]) -> None:
    """Owners take, publish, share and release at random; a found block always holds the tokens it was named for."""
    pool = BlockPool(blocks, size)
    owners: list[list[int]] = []
    content: dict[int, tuple[int, ...]] = {}
    for step in steps:
        rng = random.Random(step)
        kind = rng.randrange(3)
        if kind == 0:
            tokens = [rng.randrange(2) for _ in range(size * rng.randint(1, 4))]
            names = chain(tokens, size, START)
            known = pool.match(names)
            for place, block in enumerate(known):
                assert content[block] == tuple(tokens[: (place + 1) * size])
            pool.hold(known)
            new = pool.take(len(names) - len(known))
            if new is None:
                pool.release(known)
                continue
            held = [*known, *new]
            for place in range(len(known), len(names)):
                content[held[place]] = tuple(tokens[: (place + 1) * size])
                if rng.random() < 0.7:
                    held[place] = pool.publish(held[place], names[place])
                else:
                    break
            owners.append(held)
        elif owners:
            pool.release(owners.pop(rng.randrange(len(owners))))
        pool.check_integrity(owners)
    for held in owners:
        pool.release(held)
    pool.check_integrity()
    assert pool.free == blocks
