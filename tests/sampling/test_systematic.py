import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.sampling.systematic import DrawRandomness, systematic_counts

ROUNDING = 1e-9  # of size * p: sums of up to 1000 doubles below 1000 are exact to about 1e-10


@st.composite
def mixes(draw, most=40):
    """Class mixes of every kind: with zeros, with tiny probabilities, and of a single class."""
    shares = draw(
        st.lists(
            st.one_of(st.just(0.0), st.floats(1e-9, 1e-3), st.floats(0.01, 1.0)), min_size=1, max_size=most
        ).filter(lambda values: sum(values) > 0)
    )
    return np.array(shares) / sum(shares)


def random_start(rng):
    return (int(rng.integers(0, 2**32)) + 0.5) / 2**32


def random_counts(probs, size, rng):
    """Counts of every class of one draw, in a random order of the classes."""
    split = systematic_counts(probs, size, rng.permutation(probs.size), random_start(rng))
    assert np.unique(split.classes).size == split.classes.size
    assert split.counts.min() >= 1
    assert split.labels.shape == (size,)
    return split.to_dense(probs.size)


# -- counts (law 1) ------------------------------------------------------------------------------------


@given(probs=mixes(), size=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_counts_are_floor_or_ceiling(probs, size, seed):
    counts = random_counts(probs, size, np.random.default_rng(seed))
    assert counts.sum() == size
    assert (counts >= np.floor(size * probs - ROUNDING)).all()
    assert (counts <= np.ceil(size * probs + ROUNDING)).all()
    assert (counts[probs == 0] == 0).all()


@given(probs=mixes(), size=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_counts_are_those_of_reference(probs, size, seed):
    counts = random_counts(probs, size, np.random.default_rng(seed))
    same = np.random.default_rng(seed)
    order = same.permutation(probs.size).tolist()
    assert counts.tolist() == reference.systematic(probs.tolist(), size, order, random_start(same))


@pytest.mark.parametrize("start", [0.5 / 2**32, 0.5, 1 - 0.5 / 2**32])
@pytest.mark.parametrize("probs", [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]], ids=str)
@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=str)
def test_extreme_start_fills_batch(start, probs, order):
    counts = systematic_counts(np.array(probs), 64, np.array(order), start).to_dense(2)
    assert counts.tolist() == (64 * np.array(probs)).tolist()


def test_rounding_never_draws_absent_class():
    """With the largest double below one as start, the number of points below the last edge can round to 63 or 65."""
    start = float(np.nextafter(1.0, 0.0))
    for probs in ([0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.1] * 10, [0.0, *[0.7 / 7] * 7, 0.3, 0.0]):
        counts = systematic_counts(np.array(probs), 64, np.arange(len(probs)), start).to_dense(len(probs))
        assert counts.sum() == 64
        assert (counts[np.array(probs) == 0] == 0).all()


def test_expected_counts_are_exact():
    probs, size, draws = np.array([0.437, 0.05, 0.013, 0.5]), 10, 20_000
    rng = np.random.default_rng(0)
    mean = sum(random_counts(probs, size, rng) for _ in range(draws)) / draws
    # A count is its floor plus a Bernoulli of the fraction f: the standard error is sqrt(f (1 - f) / draws).
    fraction = size * probs % 1.0
    error = np.sqrt(fraction * (1.0 - fraction) / draws)
    assert (np.abs(mean - size * probs) <= 4.0 * error + ROUNDING).all()


def test_expected_counts_of_many_classes():
    rng = np.random.default_rng(1)
    probs, size, draws = rng.dirichlet(np.full(1000, 5.0)), 64, 4000
    totals = np.zeros(1000)
    for _ in range(draws):
        counts = random_counts(probs, size, rng)
        assert counts.sum() == size
        assert counts.max() <= 1  # size * p < 1 for every class here
        totals += counts
    error = np.sqrt(size * probs * (1.0 - size * probs) / draws)
    # 1000 comparisons: five standard errors are passed by chance once in 1700 seeds.
    assert (np.abs(totals / draws - size * probs) <= 5.0 * error).all()


def test_any_two_classes_can_meet():
    """In a fixed order the start alone would decide, and only (0, 2) and (1, 3) would ever meet."""
    rng = np.random.default_rng(2)
    pairs = {tuple(np.flatnonzero(random_counts(np.full(4, 0.25), 2, rng)).tolist()) for _ in range(200)}
    assert pairs == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


# -- random numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "size"), [(10, 256), (1, 1), (3, 2000), (5000, 64)])
def test_randomness_depends_on_seed_and_number(K, size):
    randomness = DrawRandomness(3, K, size)
    for draw_id in [0, 1, 63, 64, 500, 1, 10**9]:
        order, start, shuffle = randomness(draw_id)
        assert sorted(order.tolist()) == list(range(K))
        assert 0.0 < start < 1.0
        assert sorted(shuffle.tolist()) == list(range(size))
        same, other = DrawRandomness(3, K, size)(draw_id), DrawRandomness(4, K, size)(draw_id)
        assert (order.tolist(), start, shuffle.tolist()) == (same[0].tolist(), same[1], same[2].tolist())
        assert start != other[1]
        if K > 5:
            assert order.tolist() != other[0].tolist()


@pytest.mark.parametrize("size", [4096, 4097, 65_536])
def test_class_counts_do_not_depend_on_size_of_shuffle(size):
    """One process with a large batch and ranks with small ones draw the same class counts, in every block of draws."""
    one, rank = DrawRandomness(0, 10, size), DrawRandomness(0, 10, 64)
    for draw_id in (0, 5, 63, 64, 200):
        (order, start, shuffle), (order_of_rank, start_of_rank, _) = one(draw_id), rank(draw_id)
        assert (order.tolist(), start) == (order_of_rank.tolist(), start_of_rank)
        assert np.array_equal(np.sort(shuffle), np.arange(size))


def test_memory_of_large_batches():
    """The random numbers of a large batch are not held."""
    randomness = DrawRandomness(0, 10, 10**6)
    shuffles = [randomness(draw_id)[2] for draw_id in (0, 1)]
    assert randomness._shuffles.nbytes == 0
    assert all(np.array_equal(np.bincount(shuffle), np.ones(10**6)) for shuffle in shuffles)
    assert (shuffles[0] != shuffles[1]).any()


def test_randomness_is_uniform_and_independent():
    randomness = DrawRandomness(0, 4, 64)
    draws = [randomness(draw_id) for draw_id in range(4096)]
    starts = np.array([start for _, start, _ in draws])
    firsts = np.array([shuffle[0] for _, _, shuffle in draws])
    assert {order[0] for order, _, _ in draws} == {0, 1, 2, 3}
    for cells in ((starts * 64).astype(int), firsts):
        counts = np.bincount(cells, minlength=64)
        assert ((counts - 64) ** 2 / 64).sum() < reference.chi_square_limit(63)
    for values in (starts, firsts):
        # The correlation of 4095 neighbors has a deviation of 1/64.
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / 64
