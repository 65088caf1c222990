import math
import pickle
import weakref
from copy import deepcopy

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.common.class_counts import ClassCounts
from lightning_fair.sampling.class_pools import ClassPools, PoolState, permute


def keys(rng, size):
    return rng.integers(0, 2**64, size, dtype=np.uint64)


def take(pools, counts):
    """Draw ``counts[c]`` items of each class ``c``, class by class."""
    return pools.draw(ClassCounts.of(np.repeat(np.arange(len(counts)), counts)))


# -- permute -------------------------------------------------------------------------------------------


def permuted(n, places, key):
    """Where some places lie in the permutation of each key, shape ``(keys, places)``."""
    every = np.tile(np.array(places, dtype=np.uint32), key.size)
    position = permute(every, np.full(key.size, n), key, np.full(key.size, len(places)))
    return position.reshape(key.size, len(places)).astype(np.int64)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permute_is_a_bijection_for_every_size(seed):
    sizes = np.arange(1, 301)
    place = np.concatenate([np.arange(n, dtype=np.uint32) for n in sizes])
    before = place.copy()
    position = permute(place, sizes, keys(np.random.default_rng(seed), sizes.size), sizes)
    assert (place == before).all()
    for n, start in zip(sizes, np.cumsum(sizes) - sizes, strict=True):
        assert sorted(position[start : start + n].tolist()) == list(range(n))


@pytest.mark.parametrize("n", [10_007, 65_536, 99_999])
def test_permute_is_a_bijection_for_large_sizes(n):
    position = permuted(n, range(n), np.array([12345], dtype=np.uint64))
    assert (np.bincount(position[0], minlength=n) == 1).all()


@pytest.mark.parametrize("n", [2**31 + 11, 2**32 - 2**16])
def test_permute_stays_in_its_range_and_apart_at_the_largest_sizes(n):
    place = np.concatenate((np.arange(500), np.arange(n - 500, n)))
    position = permuted(n, place, np.array([12345], dtype=np.uint64))
    assert position.max() < n
    assert np.unique(position).size == 1000
    assert position.max() - position.min() > 0.9 * n


def test_permute_does_the_same_in_stretches_and_alone():
    rng = np.random.default_rng(0)
    sizes = np.array([1, 2, 7, 32, 33, 40, 128, 200, 1024, 1025, 5000])
    lengths = np.array([1, 3, 0, 20, 40, 5, 70, 200, 500, 600, 70])
    place = np.concatenate([rng.integers(0, n, many) for n, many in zip(sizes, lengths, strict=True)]).astype(np.uint32)
    key = keys(rng, sizes.size)
    ones = np.ones_like(place, dtype=np.int64)
    alone = permute(place, sizes.repeat(lengths), key.repeat(lengths), ones)
    assert (permute(place, sizes, key, lengths) == alone).all()


def balance_mixes(n, places, trials, seed):
    """Chi-square of the positions that some places have together, and its limit."""
    position = permuted(n, places, keys(np.random.default_rng(seed), trials))
    cells = math.perm(n, len(places))
    found = np.bincount(position @ n ** np.arange(len(places)))
    found = found[found > 0]
    expected = trials / cells
    statistic = ((found - expected) ** 2 / expected).sum() + (cells - found.size) * expected
    return statistic, reference.chi_square_limit(cells - 1)


@pytest.mark.parametrize("n", [2, 5, 17, 100, 256, 257, 300, 1000, 1025, 3000])
@pytest.mark.parametrize("place", ["first", "last"])
def test_every_position_is_as_likely(n, place):
    # Chi-square of n cells of 100 expected; passed by chance once in 10,000 seeds.
    statistic, limit = balance_mixes(n, [0 if place == "first" else n - 1], 100 * n, n)
    assert statistic < limit


@pytest.mark.parametrize("n", [3, 4, 6, 7, 10, 16, 17, 32, 33, 64, 100, 128, 200, 257])
@pytest.mark.parametrize("places", [(0, 1), (0, -1)])
def test_two_places_have_every_pair_of_positions_alike(n, places):
    statistic, limit = balance_mixes(n, [place % n for place in places], 20 * n * n, n)
    assert statistic < limit


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_permutation_of_a_small_class_is_as_likely(n):
    statistic, limit = balance_mixes(n, list(range(n)), 200 * math.factorial(n), 0)
    assert statistic < limit


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
        items = take(pools, counts)
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


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    width=st.sampled_from([2, 6, 16, None]),
    data=st.data(),
)
def test_draws_are_those_of_the_slow_reference(sizes, seed, width, data):
    K = len(sizes)
    labels = np.repeat(np.arange(K), sizes)
    np.random.default_rng(seed).shuffle(labels)
    pools, one_by_one = (ClassPools(labels, K, seed) for _ in range(2))
    if width:
        pools._make_rows(width, np.zeros(K, dtype=np.int64))
    queues = [[int(take(one_by_one, row)[0]) for _ in range(150)] for row in np.eye(K, dtype=int)]
    for _ in range(8):
        counts = data.draw(st.lists(st.integers(0, 15), min_size=K, max_size=K))
        items = take(pools, counts).tolist()
        for queue, count, size in zip(queues, counts, sizes, strict=True):
            assert [items.pop(0) for _ in range(count)] == reference.taken_in_turn(queue, count, size)


def test_class_without_items_is_left_alone():
    pools = ClassPools(np.array([0, 2, 2]), 3)
    assert pools.sizes.tolist() == [1, 0, 2]
    assert sorted(take(pools, [1, 0, 2]).tolist()) == [0, 1, 2]
    assert take(pools, [0, 0, 0]).tolist() == []


def test_state_takes_the_pools_back():
    labels = np.repeat([0, 1], [5, 3])
    pools = ClassPools(labels, 2, seed=3)
    counts = np.array([4, 2])
    while not pools.state.owed:  # the state that is hard to keep: an item passed over
        take(pools, counts)
    state = pools.state
    drawn = pools.drawn.tolist()
    after = [take(pools, counts).tolist() for _ in range(6)]
    pools.state = state
    assert pools.drawn.tolist() == drawn
    assert [take(pools, counts).tolist() for _ in range(6)] == after
    pools.state = state
    assert [take(pools, counts).tolist() for _ in range(6)] == after


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    width=st.sampled_from([2, 4, 6, 16]),
    data=st.data(),
)
def test_draws_do_not_depend_on_what_was_worked_out_in_advance(sizes, seed, width, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    steady, moved = (ClassPools(labels, len(sizes), seed) for _ in range(2))
    # Rows so short that they end all the time: the other draws are compared with what these give.
    moved._make_rows(width, np.zeros(len(sizes), dtype=np.int64))
    states = [moved.state]
    drawn = []
    for _ in range(10):
        counts = data.draw(st.lists(st.integers(0, 15), min_size=len(sizes), max_size=len(sizes)))
        drawn.append((counts, take(steady, counts).tolist()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightning_fair.sampling.class_pools._MOST_ROOM", 0)  # so they stay short
            assert take(moved, counts).tolist() == drawn[-1][1]
        states.append(moved.state)
        assert states[-1].taken.tolist() == steady.state.taken.tolist()
        assert {c: o.tolist() for c, o in states[-1].owed.items()} == {
            c: o.tolist() for c, o in steady.state.owed.items()
        }
    back = data.draw(st.integers(0, 9))
    for pools in (moved, ClassPools(labels, len(sizes), seed)):
        pools.state = states[back]
        for counts, items in drawn[back:]:
            assert take(pools, counts).tolist() == items


@pytest.mark.parametrize(("K", "size"), [(1, 30_000), (3, 5000), (700, 40), (40_000, 3)])
def test_large_pools_taken_up_in_the_middle_go_on_as_if_they_had_not_stopped(K, size):
    labels = np.tile(np.arange(K), size)
    steady = ClassPools(labels, K, seed=1)
    rng = np.random.default_rng(0)
    draws = [np.sort(rng.integers(0, K, 256)) for _ in range(60)]
    for wanted in draws[:40]:
        items = steady.draw(ClassCounts.of(wanted))
        assert (labels[items] == wanted).all()
    fresh = ClassPools(labels, K, seed=1)
    fresh.state = steady.state
    for wanted in draws[40:]:
        assert steady.draw(ClassCounts.of(wanted)).tolist() == fresh.draw(ClassCounts.of(wanted)).tolist()


def test_state_that_was_read_is_not_changed_by_later_draws():
    labels = np.repeat([0, 1], [5, 3])
    pools = ClassPools(labels, 2, seed=3)
    read, copies, drawn = [], [], []
    for _ in range(30):
        read.append(pools.state)
        copies.append(deepcopy(pools.state))
        drawn.append(take(pools, np.array([4, 2])).tolist())
    assert any(state.owed for state in read)
    for state, copied, items in zip(read, copies, drawn, strict=True):
        assert (state.taken == copied.taken).all()
        assert {c: o.tolist() for c, o in state.owed.items()} == {c: o.tolist() for c, o in copied.owed.items()}
        pools.state = state
        assert take(pools, np.array([4, 2])).tolist() == items


@pytest.mark.parametrize("by", [deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_state_is_the_same_long_after_and_as_a_copy(by):
    labels = np.repeat([0, 1], [5, 3])
    pools = ClassPools(labels, 2, seed=3)
    while not pools.state.owed:
        take(pools, np.array([4, 2]))
    state = pools.state
    taken, owed = state.taken.tolist(), {label: items.tolist() for label, items in state.owed.items()}
    after = [take(pools, np.array([4, 2])).tolist() for _ in range(3000)]
    pools.state = PoolState.of(np.array([7, 7]), {})  # the draws that followed are no longer the pools' own
    take(pools, np.array([4, 2]))
    for same in (state, by(state)):
        assert same.taken.tolist() == taken
        assert {label: items.tolist() for label, items in same.owed.items()} == owed
        pools.state = same
        assert [take(pools, np.array([4, 2])).tolist() for _ in range(3000)] == after


def test_state_that_nobody_keeps_is_forgotten():
    pools = ClassPools(np.repeat([0, 1], [5, 3]), 2)
    state = weakref.ref(pools.state)
    for _ in range(2):
        take(pools, np.array([2, 2]))
    assert state() is None


@pytest.mark.parametrize("counts", [[1, 0, 0], [1, 0, 1], [2, 0, 3]])
def test_draw_is_the_same_where_classes_without_a_sample_are_named(counts):
    labels = np.repeat([0, 1, 2], [5, 1, 4])
    one, other = ClassPools(labels, 3), ClassPools(labels, 3)
    split = ClassCounts(np.array([2, 1, 0]), np.array(counts[::-1]), np.array([0, counts[2], counts[2]]))
    for _ in range(20):
        assert one.draw(split).tolist() == other.draw(ClassCounts.of(split.labels)).tolist()
        assert one.state.taken.tolist() == other.state.taken.tolist()


def test_draw_that_takes_more_of_a_class_than_is_worked_out_in_advance():
    labels = np.repeat([0, 1], [100_000, 40])
    one, other = ClassPools(labels, 2), ClassPools(labels, 2)
    at_once = take(one, [60_000, 30])
    parts = [take(other, [600, 0]) for _ in range(100)]
    assert at_once[:60_000].tolist() == np.concatenate(parts).tolist()
    assert np.unique(at_once).size == 60_030
    assert take(one, [40_000, 0]).tolist() == take(other, [40_000, 0]).tolist()


@pytest.mark.parametrize(("K", "count", "draws"), [(32, 8, 1200), (256, 1, 1200), (1000, 3, 300)])
def test_no_draw_works_out_many_items_though_all_rows_end_together(K, count, draws, monkeypatch):
    worked_out = []
    iter_with_ids = ClassPools._numbered
    monkeypatch.setattr(
        ClassPools, "_numbered", lambda *args: worked_out.append(int(args[3].sum())) or iter_with_ids(*args)
    )
    pools = ClassPools(np.tile(np.arange(K), 40), K)
    for _ in range(draws):
        take(pools, np.full(K, count))
    assert draws * K * count <= sum(worked_out) <= 2 * draws * K * count + 2**19
    assert max(worked_out) <= 2**15


def test_passes_that_end_together_are_looked_after_together(monkeypatch):
    """Of 300 classes of 5 items 4 are taken every time, so that in most draws most passes end."""
    calls = []
    iter_with_ids = ClassPools._numbered
    monkeypatch.setattr(ClassPools, "_numbered", lambda *args: calls.append(1) or iter_with_ids(*args))
    labels = np.tile(np.arange(300), 5)
    pools, uses = ClassPools(labels, 300), np.zeros(labels.size, dtype=int)
    for number in range(1, 101):
        before = len(calls)
        items = take(pools, np.full(300, 4))
        assert len(calls) <= before + 2  # once to go on with the rows, once for what has to come from beyond them
        assert np.unique(items).size == items.size
        uses[items] += 1
        assert uses.max() - uses.min() <= 1
        assert uses.sum() == 1200 * number


# -- random order --------------------------------------------------------------------------------------


def passes(seed, label=0, size=8, many=6):
    """The order of each pass over one class."""
    pools = ClassPools(np.repeat(np.arange(3), size), 3, seed)
    counts = np.zeros(3, dtype=np.int64)
    counts[label] = size
    return [tuple((take(pools, counts) - label * size).tolist()) for _ in range(many)]


def test_order_is_new_for_every_pass_class_and_seed():
    orders = [order for seed in (0, 1, 2) for label in (0, 1, 2) for order in passes(seed, label)]
    # 54 orders among 40,320: 54 * 53 / 2 pairs, so 0.035 are expected to be alike.
    assert len(set(orders)) == len(orders)


def test_same_seed_gives_the_same_order():
    assert passes(seed=5) == passes(seed=5)


@pytest.mark.parametrize(("n", "batch"), [(12, 4), (33, 3), (60, 4), (264, 4)])  # sorted; by the network
def test_items_meet_in_batches_as_often_as_chance_has_it(n, batch):
    # Each pass parts the items at random into batches of B, so a pair meets in a pass with chance = (B - 1) / (n - 1).
    # Each item meets exactly B - 1 others, so the pair counts live in n dimensions less, those of n fixed sums, and by
    # symmetry vary alike in all of them: their variance there, per pass, is pairs * chance * (1 - chance) / freedom.
    many = 1500
    pairs, chance = n * (n - 1) // 2, (batch - 1) / (n - 1)
    freedom = pairs - n
    pools = ClassPools(np.zeros(n, dtype=np.int64), 1, seed=7)
    balance_mixes = np.zeros((n, n))
    for _ in range(many * n // batch):
        items = take(pools, [batch])
        balance_mixes[np.ix_(items, items)] += 1
    met = balance_mixes[np.triu_indices(n, 1)]
    assert met.sum() == many * n // batch * (batch * (batch - 1) // 2)
    statistic = ((met - many * chance) ** 2).sum() / (many * pairs * chance * (1 - chance) / freedom)
    # Each side is passed by chance once in 10,000 seeds.
    assert reference.chi_square_limit(freedom, -3.719) < statistic < reference.chi_square_limit(freedom)


@pytest.mark.parametrize(("n", "apart"), [(257, 1), (257, 16), (1025, 1), (1025, 32), (1500, 32), (4097, 64)])
def test_places_a_step_or_a_row_apart_lie_as_far_apart_as_chance_has_it(n, apart):
    """The network mixes neighbours slowest where it is smallest, and those above each other in its table."""
    many = 1_000_000
    found = permuted(n, [0, apart], keys(np.random.default_rng(1), many))
    gaps = np.bincount((found[:, 1] - found[:, 0]) % n, minlength=n)[1:]
    statistic = ((gaps - many / (n - 1)) ** 2).sum() / (many / (n - 1))
    assert statistic < reference.chi_square_limit(n - 2)


@pytest.mark.parametrize("copied", [deepcopy, lambda pools: pickle.loads(pickle.dumps(pools))])
def test_copies_go_on_as_the_pools_would(copied):
    pools = ClassPools(np.repeat([0, 1, 2], [3000, 7, 40]), 3, seed=3)
    split = ClassCounts.of(np.repeat([0, 1, 2], [40, 3, 5]))
    for _ in range(5):
        pools.draw(split)
    other = copied(pools)
    for _ in range(500):  # rows run out, passes end, and items are owed
        assert pools.draw(split).tolist() == other.draw(split).tolist()
        assert other.state.taken.tolist() == other.drawn.tolist() == pools.drawn.tolist()
    assert {y: o.tolist() for y, o in other.state.owed.items()} == {y: o.tolist() for y, o in pools.state.owed.items()}
