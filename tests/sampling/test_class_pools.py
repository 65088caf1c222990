import math
import pickle
from copy import deepcopy

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fair.common.class_counts import ClassCounts
from lightning_fair.sampling import class_pools
from lightning_fair.sampling.class_pools import ClassPools

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def take(pools, counts):
    """Draw ``counts[c]`` items of each class ``c``, class by class."""
    counts = np.asarray(counts, dtype=np.int64)
    (classes,) = counts.nonzero()
    return pools.draw(ClassCounts(classes, counts[classes]))


def shuffled_labels(sizes, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(labels)
    return labels


def counts_of_draws(data, num_classes, draws=8):
    counts = st.lists(st.integers(0, 15), min_size=num_classes, max_size=num_classes)
    return data.draw(st.lists(counts, min_size=draws, max_size=draws))


@pytest.fixture
def small_limits(monkeypatch):
    """Let a class of 9 items count as large, and small classes be shuffled a few at a time."""
    monkeypatch.setattr(class_pools, "_BLOCK", 4)
    monkeypatch.setattr(class_pools, "_LARGE", 8)
    monkeypatch.setattr(class_pools, "_CHUNK", 10)


def reference_items(labels, num_classes, seed, passes, large=class_pools._LARGE):
    """The items of each class in the order in which they are drawn, for the first passes."""
    keys = np.random.default_rng(seed).integers(0, 2**64, num_classes, dtype=np.uint64).tolist()
    items = []
    for label in range(num_classes):
        mine, queue = np.flatnonzero(labels == label), []
        for number in range(passes):
            if mine.size > large:
                order = mine.copy()
                np.random.default_rng([seed, label, number]).shuffle(order)
                queue += order.tolist()
            else:
                queue += reference.order_of_pass(mine.tolist(), keys[label], number)
        items.append(queue)
    return items


def assert_reference_draws(sizes, seed, draws, large=class_pools._LARGE):
    K, labels = len(sizes), shuffled_labels(sizes, seed)
    pools = ClassPools(labels, K, seed)
    queues = reference_items(labels, K, seed, sum(map(max, draws)) + 1, large)
    for counts in draws:
        expected = [queues[label].pop(0) for label in range(K) for _ in range(counts[label])]
        assert take(pools, counts).tolist() == expected


# -- fair items (law 3) --------------------------------------------------------------------------------


@given(sizes=SIZES, seed=st.integers(0, 1000), data=st.data())
def test_uses_differ_by_at_most_one(sizes, seed, data):
    labels = shuffled_labels(sizes, seed)
    pools = ClassPools(labels, len(sizes), seed)
    uses = np.zeros(labels.size, dtype=int)
    for counts in counts_of_draws(data, len(sizes)):
        items = take(pools, counts)
        assert labels[items].tolist() == np.repeat(np.arange(len(sizes)), counts).tolist()
        np.add.at(uses, items, 1)
        assert pools.drawn.tolist() == [uses[labels == label].sum() for label in range(len(sizes))]
        assert all(np.ptp(uses[labels == label]) <= 1 for label in range(len(sizes)))


@given(sizes=SIZES, seed=st.integers(0, 1000), data=st.data())
def test_draws_are_those_of_reference(sizes, seed, data):
    assert_reference_draws(sizes, seed, counts_of_draws(data, len(sizes)))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("seed", range(20))
def test_large_class_has_reference_draws(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 13, 5).tolist()
    assert_reference_draws(sizes, seed, rng.integers(0, 16, (8, 5)).tolist(), large=8)


def test_empty_class_is_never_drawn():
    pools = ClassPools(np.array([0, 2, 2]), 3)
    assert pools.sizes.tolist() == [1, 0, 2]
    assert sorted(take(pools, [1, 0, 2]).tolist()) == [0, 1, 2]
    assert take(pools, [0, 0, 0]).tolist() == []
    assert pools.drawn.tolist() == [1, 0, 2]


@pytest.mark.parametrize("counts", [[1, 0, 0], [1, 0, 1], [2, 0, 3]])
def test_counts_of_zero_change_nothing(counts):
    labels = np.repeat([0, 1, 2], [5, 1, 4])
    one, other = ClassPools(labels, 3), ClassPools(labels, 3)
    for _ in range(20):
        assert one.draw(ClassCounts(np.arange(3), np.array(counts))).tolist() == take(other, counts).tolist()


def test_draw_of_many_passes():
    """A draw of 60,000 items contains several passes of both classes, in the order of small draws."""
    labels = np.repeat([0, 1], [10_000, 40])
    one, other = ClassPools(labels, 2), ClassPools(labels, 2)
    at_once = take(one, [25_000, 35_000])
    parts = [take(other, [500, 700]) for _ in range(50)]
    assert at_once[:25_000].tolist() == np.concatenate([part[:500] for part in parts]).tolist()
    assert at_once[25_000:].tolist() == np.concatenate([part[500:] for part in parts]).tolist()
    assert np.unique(np.bincount(at_once)[:10_000]).tolist() == [2, 3]
    assert np.unique(np.bincount(at_once)[10_000:]).tolist() == [875]


# -- state (law 5) -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(sizes=SIZES, seed=st.integers(0, 1000), data=st.data())
def test_drawn_restores_every_position(sizes, seed, data):
    """Pools that go back or forth, and fresh pools, continue exactly from every position."""
    K, labels = len(sizes), shuffled_labels(sizes, seed)
    pools = ClassPools(labels, K, seed)
    draws, states, items = counts_of_draws(data, K), [], []
    for counts in draws:
        states.append(pools.drawn)
        items.append(take(pools, counts).tolist())
    for position in data.draw(st.permutations(range(len(draws)))):
        for restored in (pools, ClassPools(labels, K, seed)):
            restored.drawn = states[position].copy()
            assert restored.drawn.tolist() == states[position].tolist()
            assert [take(restored, counts).tolist() for counts in draws[position:]] == items[position:]


@pytest.mark.usefixtures("small_limits")
def test_drawn_restores_large_classes():
    labels = shuffled_labels([9, 3, 12, 1])
    pools = ClassPools(labels, 4)
    states, items = [], []
    for _ in range(40):
        states.append(pools.drawn)
        items.append(take(pools, [2, 1, 3, 1]).tolist())
    for position in np.random.default_rng(0).permutation(40):
        pools.drawn = states[position]
        assert take(pools, [2, 1, 3, 1]).tolist() == items[position]


@pytest.mark.parametrize(("K", "size"), [(1, 30_000), (3, 5000), (700, 40), (20_000, 3)])
def test_drawn_restores_many_items(K, size):
    labels = np.tile(np.arange(K), size)
    steady = ClassPools(labels, K, seed=1)
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(0, K, 256), minlength=K) for _ in range(60)]
    for counts in draws[:40]:
        assert (labels[take(steady, counts)] == np.repeat(np.arange(K), counts)).all()
    fresh = ClassPools(labels, K, seed=1)
    fresh.drawn = steady.drawn
    for counts in draws[40:]:
        assert take(steady, counts).tolist() == take(fresh, counts).tolist()


@pytest.mark.parametrize("copied", [deepcopy, lambda pools: pickle.loads(pickle.dumps(pools))], ids=["copy", "pickle"])
def test_copy_continues_exactly(copied):
    pools = ClassPools(np.repeat([0, 1, 2], [3000, 7, 40]), 3, seed=3)
    for _ in range(5):
        take(pools, [40, 3, 5])
    other = copied(pools)
    for _ in range(200):
        assert take(pools, [40, 3, 5]).tolist() == take(other, [40, 3, 5]).tolist()
    assert other.drawn.tolist() == pools.drawn.tolist()


# -- cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1000], [10_000, 1], [30_000, 300, 7], [60] * 50, [900, *[1] * 99]], ids=str)
def test_item_takes_at_most_16_bytes(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    pools = ClassPools(labels, len(sizes))
    take(pools, np.ones(len(sizes)))
    arrays = [value for value in vars(pools).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays if array.size > len(sizes)) <= 16 * labels.size
    assert sum(array.size for array in arrays if array.size <= len(sizes)) <= 7 * len(sizes)


def test_passes_are_shuffled_together(monkeypatch):
    """Of 1,000 classes of 60 items, about four end a pass in every draw of 256."""
    calls, shuffle = [], ClassPools._sort_by_hash
    monkeypatch.setattr(ClassPools, "_sort_by_hash", lambda *args: calls.append(args[1].size) or shuffle(*args))
    pools = ClassPools(np.tile(np.arange(1000), 60), 1000)
    rng = np.random.default_rng(0)
    for _ in range(600):
        take(pools, np.bincount(rng.permutation(1000)[:256], minlength=1000))
    assert len(calls) <= 8
    assert sum(calls) >= 3000


# -- random order --------------------------------------------------------------------------------------


def orders(n, trials, passes=1, seed=0):
    """The orders of the passes of many classes of ``n`` items, shape ``(passes, trials, n)``."""
    pools = ClassPools(np.repeat(np.arange(trials), n), trials, seed)
    drawn = np.stack([take(pools, np.full(trials, n)).reshape(trials, n) for _ in range(passes)])
    return drawn - n * np.arange(trials)[:, None]


def assert_uniform(values, num_cells):
    """Chi-square of values in ``range(num_cells)``; exceeded by chance once in 10,000 seeds."""
    counts = np.bincount(values, minlength=num_cells)
    expected = values.size / num_cells
    assert ((counts - expected) ** 2 / expected).sum() < reference.chi_square_limit(num_cells - 1)


def test_order_is_new_for_every_pass():
    """No two of 54 orders of 8 items are the same: 54 * 53 / 2 pairs of 40,320 orders, so 0.035 are expected."""
    every = [tuple(order) for seed in range(3) for part in orders(8, 3, 6, seed) for order in part]
    assert len(set(every)) == len(every) == 54


def test_same_seed_gives_same_order():
    assert (orders(8, 3, 6, seed=5) == orders(8, 3, 6, seed=5)).all()


@pytest.mark.parametrize("n", [2, 5, 17, 100, 256])
@pytest.mark.parametrize("place", [0, -1])
def test_positions_are_uniform(n, place):
    assert_uniform(orders(n, 50 * n, seed=n)[0, :, place], n)


@pytest.mark.parametrize("n", [3, 7, 16, 33])
@pytest.mark.parametrize("places", [(0, 1), (0, -1)])
def test_pairs_of_positions_are_uniform(n, places):
    first, second = (orders(n, 20 * n * n, seed=n)[0, :, place] for place in places)
    assert_uniform(first * (n - 1) + second - (second > first), n * (n - 1))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_permutations_of_small_class_are_uniform(n):
    every = orders(n, 200 * math.factorial(n))[0] @ n ** np.arange(n)
    assert_uniform(np.unique(every, return_inverse=True)[1], math.factorial(n))


def test_passes_and_classes_are_independent():
    first, second = orders(8, 20_000, passes=2)[:, :, 0]
    assert_uniform(8 * first + second, 64)
    assert_uniform(8 * first[:-1] + first[1:], 64)


@pytest.mark.parametrize(("n", "batch"), [(12, 4), (33, 3), (60, 4)])
def test_items_meet_as_often_as_chance(n, batch):
    # Each pass parts the items at random into batches of B, so a pair meets in a pass with chance = (B - 1) / (n - 1).
    # Each item meets exactly B - 1 others, so the pair counts live in n dimensions less, those of n fixed sums, and by
    # symmetry vary alike in all of them: their variance there, per pass, is pairs * chance * (1 - chance) / freedom.
    passes, pairs, chance = 1500, n * (n - 1) // 2, (batch - 1) / (n - 1)
    freedom = pairs - n
    pools = ClassPools(np.zeros(n, dtype=np.int64), 1, seed=7)
    batches = take(pools, [passes * n]).reshape(-1, batch)
    meetings = np.zeros((n, n))
    for first in range(batch):
        for second in range(batch):
            np.add.at(meetings, (batches[:, first], batches[:, second]), 1)
    meetings = meetings[np.triu_indices(n, 1)]
    assert meetings.sum() == passes * n // batch * (batch * (batch - 1) // 2)
    statistic = ((meetings - passes * chance) ** 2).sum() / (passes * pairs * chance * (1 - chance) / freedom)
    # Each side is passed by chance once in 10,000 seeds.
    assert reference.chi_square_limit(freedom, -3.719) < statistic < reference.chi_square_limit(freedom)
