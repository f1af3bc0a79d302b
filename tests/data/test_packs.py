"""Orders that are permutations, mixtures with exact counts, packs that hold every row once, a sampler without state."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import CapacityError
from riverrun.data import fill as fill_module
from riverrun.data.fill import fill
from riverrun.data.order import Mixture, Permutation, shares
from riverrun.data.rows import ListRows
from riverrun.data.sampler import RowSampler
from riverrun.data.tokens import TokenRow


def make_rows(lengths: list[int], name: str = "row", paired: bool = False) -> ListRows:
    rows = [
        TokenRow(f"{name}-{n}", tuple(range(n, n + size)), (False,) + (True,) * (size - 1))
        for n, size in enumerate(lengths)
    ]
    return ListRows(rows, paired=paired)


@given(st.integers(0, 3000), st.integers(0, 2**40))
def test_a_permutation_is_one(size: int, key: int) -> None:
    order = Permutation(size, key, "x")
    values = order.at(np.arange(size))
    assert sorted(values.tolist()) == list(range(size))
    if size:
        place = key % size
        assert order[place] == values[place]  # any place without the others


@given(st.integers(2**20, 2**60), st.lists(st.integers(0, 2**60), min_size=2, max_size=50, unique=True))
def test_a_large_permutation_keeps_places_apart(size: int, places: list[int]) -> None:
    inside = np.array(sorted({place % size for place in places}))
    values = Permutation(size, 7).at(inside)
    assert len(set(values.tolist())) == len(inside)
    assert values.min() >= 0
    assert values.max() < size


def test_permutations_of_other_keys_are_others_and_mixed() -> None:
    one, other = (Permutation(10_000, "a", epoch).at(np.arange(10_000)) for epoch in (0, 1))
    assert (one == other).sum() < 20
    assert abs(float(np.corrcoef(np.arange(10_000), one)[0, 1])) < 0.05
    neighbours = np.abs(np.diff(one))
    assert abs(float(neighbours.mean()) / 10_000 - 1 / 3) < 0.02  # of two random places


@given(st.lists(st.fractions(0, 50), min_size=1, max_size=6))
def test_shares_are_whole_and_keep_the_sum(wanted: list[Fraction]) -> None:
    found = shares(wanted)
    assert sum(found) == round(sum(wanted))
    assert all(abs(each - want) < 1 for each, want in zip(found, wanted, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=4),
    st.integers(0, 9),
)
def test_a_mixture_sees_rows_as_often_as_its_weights_say(sets: list[tuple[int, float]], seed: int) -> None:
    rows = [make_rows([3] * count, f"s{n}") for n, (count, _) in enumerate(sets)]
    mixed = Mixture(rows, [weight for _, weight in sets], seed=seed)
    epochs = [mixed.order(epoch) for epoch in range(4)]
    starts = np.cumsum([0, *(count for count, _ in sets)])
    for order in epochs:
        assert len(order) == mixed.epoch_units == round(sum(count * weight for count, weight in sets))
        found = np.histogram(order, bins=starts)[0]
        assert found.tolist() == mixed.seen
    every = np.bincount(np.concatenate(epochs), minlength=len(mixed))
    for (_, __), start, end in zip(sets, starts, starts[1:], strict=False):
        assert every[start:end].max() - every[start:end].min() <= 1  # no row twice before all were seen
    middle = len(epochs[1]) // 2
    assert np.array_equal(mixed.order(1, middle), epochs[1][middle:])  # from any place on


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), max_size=300), st.integers(64, 200))
def test_packs_hold_every_row_once(lengths: list[int], capacity: int) -> None:
    given_ = np.array(lengths, dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill_module, "WINDOW", 50)
        order, ends = fill(given_, capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    begins = [0, *ends.tolist()]
    for first, last in pairwise(begins):
        assert last > first
        assert given_[order[first:last]].sum() <= capacity


KINDS = {
    "gamma": lambda rng: rng.gamma(5, 20, 20_000),
    "lognormal": lambda rng: np.exp(rng.normal(np.log(300), 1, 20_000)),
    "uniform": lambda rng: rng.integers(1, 2049, 20_000),
}


@pytest.mark.parametrize("kind", KINDS)
def test_packs_are_full_and_not_sorted(kind: str) -> None:
    lengths = np.clip(KINDS[kind](np.random.default_rng(0)), 2, 2048).astype(np.int64)
    order, ends = fill(lengths, 2048)
    assert lengths.sum() / (2048 * len(ends)) >= 0.99
    if kind == "gamma":  # many rows a pack: their mean is that of a random choice, not of one kind
        begins = np.concatenate([[0], ends[:-1]])
        means = np.add.reduceat(lengths[order], begins) / (ends - begins)
        assert means.std() < 1.5 * lengths.std() / np.sqrt((ends - begins).mean())
    again = fill(lengths, 2048)
    assert np.array_equal(order, again[0])
    assert np.array_equal(ends, again[1])


def test_a_sampler_sees_every_row_once_an_epoch_in_any_order_of_asking() -> None:
    rng = np.random.default_rng(1)
    rows = make_rows(rng.integers(2, 60, 400).tolist())
    sampler = RowSampler(rows, micro_tokens=128, packs_per_step=3, seed=5)
    total = sampler.total_steps(2)
    batches = [sampler.batch(step) for step in range(total)]
    first = [row.id for batch in batches[: sampler.steps_in_epoch(0)] for pack in batch for row in pack.rows]
    second = [row.id for batch in batches[sampler.steps_in_epoch(0) :] for pack in batch for row in pack.rows]
    assert sorted(first) == sorted(second) == sorted(row.id for row in rows.rows)
    assert first != second
    assert all(pack.computed_tokens <= 128 for batch in batches for pack in batch)
    for step in (total - 1, 0, total // 2):
        assert RowSampler(rows, micro_tokens=128, packs_per_step=3, seed=5).batch(step) == batches[step]
    stats = sampler.stats(2)
    packs = [pack for batch in batches for pack in batch]
    assert (stats.rows, stats.packs) == (800, len(packs))
    assert stats.row_tokens == stats.computed_tokens == sum(pack.computed_tokens for pack in packs)
    assert stats.label_tokens == sum(pack.label_tokens for pack in packs)
    with pytest.raises(CapacityError, match=r"row-\d+' needs \d+ tokens, a pack holds 40"):
        RowSampler(rows, micro_tokens=40, packs_per_step=1, seed=0)


def test_pairs_stay_together_and_share_their_prompt() -> None:
    rows = []
    for n in range(40):
        prompt = tuple(range(100, 130 if n % 2 else 104))
        for side in (0, 1):
            ids = (*prompt, *([n * 2 + side] * (3 + n % 5)))
            rows.append(TokenRow(f"{n}/{side}", ids, (False,) * len(prompt) + (True,) * (3 + n % 5)))
    shared = [29 if n // 2 % 2 else 3 for n in range(80)]
    pairs = ListRows(rows, paired=True, shared=shared, tags=[1, 2] * 40)
    sampler = RowSampler(pairs, micro_tokens=160, packs_per_step=1, seed=0)
    seen = []
    for step in range(sampler.total_steps(1)):
        (pack,) = sampler.batch(step)
        assert pack.computed_tokens <= 160
        for group in pack.groups:
            one, other = group.rows
            assert one.id.split("/")[0] == other.id.split("/")[0]
            assert (one.id[-1], other.id[-1]) == ("0", "1")
            assert group.prefix == (29 if int(one.id.split("/")[0]) % 2 else 0)
            seen += [one.id, other.id]
    assert sorted(seen) == sorted(row.id for row in rows)
    assert sampler.stats(1).computed_tokens == sum(
        pack.computed_tokens for step in range(sampler.total_steps(1)) for pack in sampler.batch(step)
    )
