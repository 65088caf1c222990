import itertools

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.pools import ClassPools, permute


def keys(rng, size):
    return rng.integers(0, 2**64, size, dtype=np.uint64)


# -- permute -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permute_is_a_bijection_for_every_size(seed):
    sizes = np.arange(1, 301)
    place = np.concatenate([np.arange(n) for n in sizes])
    size = np.repeat(sizes, sizes)
    key = np.repeat(keys(np.random.default_rng(seed), sizes.size), sizes)
    before = place.copy()
    position = permute(place, size, key)
    assert (place == before).all()
    for n, start in zip(sizes, np.cumsum(sizes) - sizes, strict=True):
        assert sorted(position[start : start + n].tolist()) == list(range(n))


@pytest.mark.parametrize("n", [10_007, 65_536, 99_999])
def test_permute_is_a_bijection_for_large_sizes(n):
    position = permute(np.arange(n), np.full(n, n), np.full(n, 12345, dtype=np.uint64))
    assert (np.bincount(position, minlength=n) == 1).all()


@pytest.mark.parametrize("n", [2, 5, 17, 100, 256, 257, 300])
@pytest.mark.parametrize("place", ["first", "last"])
def test_every_position_is_as_likely(n, place):
    trials = 100 * n
    where = 0 if place == "first" else n - 1
    position = permute(np.full(trials, where), np.full(trials, n), keys(np.random.default_rng(n), trials))
    counts = np.bincount(position, minlength=n)
    # Chi-square of n cells of 100 expected; passed by chance once in 10,000 seeds.
    assert ((counts - 100) ** 2 / 100).sum() < reference.chi_square_limit(n - 1)


@pytest.mark.parametrize("n", [3, 4])
def test_every_permutation_of_a_small_class_is_as_likely(n):
    all_of_them = list(itertools.permutations(range(n)))
    trials = 200 * len(all_of_them)
    key = np.repeat(keys(np.random.default_rng(0), trials), n)
    position = permute(np.tile(np.arange(n), trials), np.full(trials * n, n), key).reshape(trials, n)
    found = dict.fromkeys(all_of_them, 0)
    for row in position.tolist():
        found[tuple(row)] += 1
    statistic = sum((count - 200) ** 2 / 200 for count in found.values())
    assert statistic < reference.chi_square_limit(len(all_of_them) - 1)


# -- fair items (law 3) --------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_use_of_the_items_of_a_class_never_differs_by_more_than_one(sizes, seed, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(labels)
    pools = ClassPools(labels, len(sizes), seed)
    uses, asked = np.zeros(labels.size, dtype=int), np.zeros(len(sizes), dtype=int)
    for _ in range(12):
        counts = np.array(data.draw(st.lists(st.integers(0, 15), min_size=len(sizes), max_size=len(sizes))))
        items = pools.draw(counts.copy())
        assert np.bincount(labels[items], minlength=len(sizes)).tolist() == counts.tolist()
        assert (np.diff(labels[items]) >= 0).all()  # class by class
        uses += np.bincount(items, minlength=labels.size)
        asked += counts
        assert pools.drawn.tolist() == asked.tolist()
        for label, size in enumerate(sizes):
            assert np.ptp(uses[labels == label]) <= 1
            mine = items[labels[items] == label]
            if counts[label] <= size:
                assert np.unique(mine).size == mine.size


def test_class_without_items_is_left_alone():
    pools = ClassPools(np.array([0, 2, 2]), 3)
    assert pools.sizes.tolist() == [1, 0, 2]
    assert sorted(pools.draw(np.array([1, 0, 2])).tolist()) == [0, 1, 2]
    assert pools.draw(np.zeros(3, dtype=np.int64)).tolist() == []


def test_state_takes_the_pools_back():
    labels = np.repeat([0, 1], [5, 3])
    pools = ClassPools(labels, 2, seed=3)
    counts = np.array([4, 2])
    while not pools.state.owed:  # the state that is hard to keep: an item passed over
        pools.draw(counts)
    state = pools.state
    drawn = pools.drawn.tolist()
    after = [pools.draw(counts).tolist() for _ in range(6)]
    pools.state = state
    assert pools.drawn.tolist() == drawn
    assert [pools.draw(counts).tolist() for _ in range(6)] == after
    pools.state = state
    assert [pools.draw(counts).tolist() for _ in range(6)] == after


# -- random order --------------------------------------------------------------------------------------


def passes(seed, label=0, size=8, many=6):
    """The order of each pass over one class."""
    pools = ClassPools(np.repeat(np.arange(3), size), 3, seed)
    counts = np.zeros(3, dtype=np.int64)
    counts[label] = size
    return [tuple((pools.draw(counts) - label * size).tolist()) for _ in range(many)]


def test_order_is_new_for_every_pass_class_and_seed():
    orders = [order for seed in (0, 1, 2) for label in (0, 1, 2) for order in passes(seed, label)]
    # 54 orders among 40,320: 54 * 53 / 2 pairs, so 0.035 are expected to be alike.
    assert len(set(orders)) == len(orders)


def test_same_seed_gives_the_same_order():
    assert passes(seed=5) == passes(seed=5)


def test_items_meet_in_batches_as_often_as_chance_has_it():
    # Each pass parts 12 items at random into 3 batches of 4, so a pair meets in a pass with 3 * C(4,2) / C(12,2)
    # = 3/11. Each item meets exactly 3 others, so the 66 pair counts live in the 54 dimensions left by 12 fixed
    # sums, and by symmetry vary alike in all of them: their variance there, per pass, is 66 * 3/11 * 8/11 / 54.
    n, batch, many = 12, 4, 1500
    pools = ClassPools(np.zeros(n, dtype=np.int64), 1, seed=7)
    together = np.zeros((n, n))
    for _ in range(many * n // batch):
        items = pools.draw(np.array([batch]))
        together[np.ix_(items, items)] += 1
    pairs = together[np.triu_indices(n, 1)]
    assert pairs.sum() == many * 18
    variance = many * 66 * (3 / 11) * (8 / 11) / 54
    statistic = ((pairs - many * 3 / 11) ** 2).sum() / variance
    # Chi-square with 54 degrees of freedom: each side is passed by chance once in 10,000 seeds.
    assert reference.chi_square_limit(54, -3.719) < statistic < reference.chi_square_limit(54)
