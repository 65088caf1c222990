"""Class counts by systematic sampling, and the random numbers of a draw."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.sampling.systematic import Chances, systematic_counts

ROUNDING = 1e-9  # of size * p: sums of up to 1000 doubles below 1000 are exact to about 1e-10


@st.composite
def mixes(draw, most=40):
    """Class mixes of every kind: with zeros, with tiny shares, and with one class only."""
    shares = draw(
        st.lists(
            st.one_of(st.just(0.0), st.floats(1e-9, 1e-3), st.floats(0.01, 1.0)), min_size=1, max_size=most
        ).filter(lambda values: sum(values) > 0)
    )
    return np.array(shares) / sum(shares)


# -- apportionment (law 1) -----------------------------------------------------------------------------


def counts_of(probs, size, rng, strands=None):
    """Counts of one draw, in a random order of the classes, or of as many strands of them."""
    split = systematic_counts(probs, size, rng.permutation(strands or probs.size), start_of(rng))
    labels, counts = split.labels, split.to_dense(probs.size)
    assert labels.shape == (size,)
    assert np.count_nonzero(np.diff(labels)) == np.unique(labels).size - 1  # those of a class side by side
    assert counts.tolist() == np.bincount(labels, minlength=probs.size).tolist()
    if split.offsets is not None:
        assert split.offsets.tolist() == (np.cumsum(split.counts) - split.counts).tolist()
    return counts


def start_of(rng):
    return (int(rng.integers(0, 2**32)) + 0.5) / 2**32


@given(probs=mixes(), size=st.integers(1, 300), seed=st.integers(0, 10_000), data=st.data())
def test_counts_are_the_floor_or_the_ceiling_and_fill_the_batch(probs, size, seed, data):
    strands = data.draw(st.integers(1, probs.size))
    counts = counts_of(probs, size, np.random.default_rng(seed), strands)
    assert counts.sum() == size
    assert (counts >= np.floor(size * probs - ROUNDING)).all()
    assert (counts <= np.ceil(size * probs + ROUNDING)).all()
    assert (counts[probs == 0] == 0).all()


@given(probs=mixes(), size=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_counts_are_those_of_the_slow_reference(probs, size, seed):
    counts = counts_of(probs, size, np.random.default_rng(seed))
    same = np.random.default_rng(seed)
    order = same.permutation(probs.size).tolist()
    # The reference counts whole numbers up to an edge from the other side.
    assert counts.tolist() == reference.systematic(probs.tolist(), size, order, start_of(same))


@pytest.mark.parametrize("strands", [1, 2])
@pytest.mark.parametrize("start", [0.5 / 2**32, 0.5, 1 - 0.5 / 2**32, np.nextafter(1.0, 0.0)])
def test_counts_fill_the_batch_at_the_largest_and_the_smallest_start(strands, start):
    # 64 + the largest double below one rounds to 65: the last point must not lie beyond the batch.
    for probs in (np.array([0.5, 0.5]), np.array([1.0, 0.0]), np.array([0.0, 1.0])):
        found = systematic_counts(probs, 64, np.arange(strands), float(start)).to_dense(2)
        if start < 1 - 2**-40:
            assert found.tolist() == (64 * probs).tolist()
        assert (found[probs == 0] == 0).all()


@pytest.mark.parametrize("strands", [4, 3, 2])
def test_expected_counts_are_exact(strands):
    probs = np.array([0.437, 0.05, 0.013, 0.5])
    size, draws = 10, 20_000
    rng = np.random.default_rng(0)
    mean = sum(counts_of(probs, size, rng, strands) for _ in range(draws)) / draws
    # A count is its floor plus a Bernoulli of the fraction f: the standard error is sqrt(f (1 - f) / draws).
    fraction = size * probs % 1.0
    error = np.sqrt(fraction * (1.0 - fraction) / draws)
    assert (np.abs(mean - size * probs) <= 4.0 * error + ROUNDING).all()


@pytest.mark.parametrize("strands", [1000, 317])
def test_expected_counts_are_exact_where_classes_outnumber_the_batch(strands):
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.full(1000, 5.0))
    size, draws = 64, 4000
    totals = np.zeros(1000)
    for _ in range(draws):
        counts = counts_of(probs, size, rng, strands)
        assert counts.sum() == size
        assert counts.max() <= 1  # size * p < 1 for every class here
        totals += counts
    error = np.sqrt(size * probs * (1.0 - size * probs) / draws)
    # 1000 comparisons: five standard errors are passed by chance once in 1700 seeds.
    assert (np.abs(totals / draws - size * probs) <= 5.0 * error).all()


def test_any_two_classes_can_meet_in_a_batch():
    # In a fixed order the start alone decides, and only (0, 2) and (1, 3) would ever meet.
    rng = np.random.default_rng(2)
    met = {tuple(np.flatnonzero(counts_of(np.full(4, 0.25), 2, rng)).tolist()) for _ in range(200)}
    assert met == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


# -- chances -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "size", "shuffled"), [(10, 256, None), (1, 1, None), (3, 100_000, 5), (50_000, 64, 64)])
def test_chances_are_a_function_of_the_seed_and_the_number_alone(K, size, shuffled):
    serials = [0, 1, 127, 128, 500, 1, 10**9]
    chances = Chances(3, K, size, shuffled)
    for draw_id in serials:
        order, start, shuffle = chances(draw_id)
        again = Chances(3, K, size, shuffled)(draw_id)
        assert sorted(order.tolist()) == list(range(order.size))
        assert order.size == K or 1000 < order.size < K
        assert 0.0 < start < 1.0
        assert sorted(shuffle.tolist()) == list(range(shuffled or size))
        assert (order.tolist(), start, shuffle.tolist()) == (again[0].tolist(), again[1], again[2].tolist())
        if K > 5:
            assert order.tolist() != Chances(4, K, size, shuffled)(draw_id)[0].tolist()


def test_chances_of_draws_are_even_and_have_nothing_to_do_with_each_other():
    chances = Chances(0, 4, 64)
    drawn = [chances(draw_id) for draw_id in range(4096)]
    starts = np.array([start for _, start, _ in drawn])
    firsts = np.array([shuffle[0] for _, _, shuffle in drawn])
    orders = np.array([order[0] for order, _, _ in drawn[::128]])
    assert np.bincount(orders, minlength=4).min() > 0
    for cells, limit in (((starts * 64).astype(int), 64), (firsts, 64)):
        found = np.bincount(cells, minlength=limit)
        assert ((found - 64) ** 2 / 64).sum() < reference.chi_square_limit(63)
    for values in (starts, firsts):
        # The correlation of 4095 neighbours has a deviation of 1/64.
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / 64
