"""Draws of samples with several labels: the labels they bring, and the weights of the samples."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.common.label_sets import LabelSets
from lightning_fair.control.label_draws import RestingDraw, SampleWeights, label_prior


@st.composite
def labeled(draw, min_classes=1):
    """The classes of each of some samples; each class has one of them at least."""
    K = draw(st.integers(min_classes, 5))
    row = st.sets(st.integers(0, K - 1), min_size=1)
    rows = draw(st.lists(row, min_size=1, max_size=12)) + [{k} | draw(row) for k in range(K)]
    return [sorted(each) for each in rows]


@st.composite
def mixes(draw, K, *, with_zeros=False):
    shares = np.array(draw(st.lists(st.floats(0.05, 1.0), min_size=K, max_size=K)))
    if with_zeros and K > 1:
        shares[list(draw(st.sets(st.integers(0, K - 1), max_size=K - 1)))] = 0.0
    return shares / shares.sum()


def num_classes(rows):
    return 1 + max(map(max, rows))


@given(data=st.data(), rows=labeled())
def test_no_other_draws_are_nearer(data, rows):
    """Nothing is gained by drawing any class more often. Relative entropy is convex, so no other draws are better."""
    K = num_classes(rows)
    q = data.draw(mixes(K, with_zeros=True))
    resting = RestingDraw(q, LabelSets.from_lists(rows, K).cooccurrence())
    brought, per_draw = reference.labels_of_draws(rows, resting.mix.tolist())
    np.testing.assert_allclose(resting.labels, brought, rtol=1e-9)
    assert resting.labels_per_draw == pytest.approx(per_draw)
    assert resting.mix.sum() == pytest.approx(1.0)
    assert (resting.mix >= 0.05 * q * (1.0 - 1e-12)).all()
    assert not resting.mix[q == 0].any()
    least = reference.relative_entropy(q, brought)
    for k in np.flatnonzero(q):
        for step in (0.01, 0.3, 1.0):
            other = (1.0 - step) * (resting.mix - 0.05 * q) + 0.05 * q
            other[k] += step * 0.95
            entropy = reference.relative_entropy(q, reference.labels_of_draws(rows, other.tolist())[0])
            assert entropy > least - 1e-5


@given(data=st.data(), sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_single_labels_are_drawn_as_the_target(data, sizes):
    """Also if a class has no samples."""
    q = data.draw(mixes(len(sizes), with_zeros=True))
    resting = RestingDraw(q, np.diag(sizes))
    np.testing.assert_allclose(resting.mix, q, atol=1e-9)
    np.testing.assert_allclose(resting.labels, q, atol=1e-9)
    assert resting.labels_per_draw == pytest.approx(1.0)


def test_reachable_target_is_reached():
    """Label 1 comes with label 0 in half of its samples, and can have its share without too much of the other."""
    rows = [[0]] * 90 + [[0, 1]] * 5 + [[1]] * 5
    resting = RestingDraw(np.array([0.6, 0.4]), LabelSets.from_lists(rows, 2).cooccurrence())
    np.testing.assert_allclose(resting.labels, [0.6, 0.4], atol=1e-4)
    brought = resting.mix @ [[1.0, 5 / 95], [0.5, 1.0]]
    assert brought[0] / brought[1] == pytest.approx(1.5, rel=1e-3)


def test_label_that_always_comes_along_is_drawn_little():
    """Label 0 comes with each label 1. Equal shares would need label 1 alone; label 0 keeps a twentieth of its own."""
    rows = [[0]] * 50 + [[0, 1]] * 50
    resting = RestingDraw(np.array([0.5, 0.5]), LabelSets.from_lists(rows, 2).cooccurrence())
    np.testing.assert_allclose(resting.mix, [0.025, 0.975], atol=1e-3)


@given(data=st.data(), rows=labeled(), is_prior=st.booleans())
def test_weights_are_those_of_the_reference(data, rows, is_prior):
    """Over all samples, their mean under the draw is one, and that of a value is its mean under the reference."""
    K = num_classes(rows)
    p, mix = data.draw(mixes(K)), data.draw(mixes(K))
    sets = LabelSets.from_lists(rows, K)
    weights = SampleWeights.of(sets, is_prior=is_prior).weigh(sets, p, mix)
    expected = reference.set_weights(rows, p.tolist(), mix.tolist(), is_prior=is_prior)
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    drawn = np.array(reference.share_of_samples(rows, p.tolist()))
    assert drawn @ weights == pytest.approx(1.0)


@given(data=st.data(), rows=labeled())
def test_prior_stands_for_all_samples(data, rows):
    """Whatever the draw is, the weighted mean of any value is its plain mean."""
    K = num_classes(rows)
    p, sets = data.draw(mixes(K)), LabelSets.from_lists(rows, K)
    np.testing.assert_allclose(label_prior(sets), reference.prior_of_sets(rows, K))
    weights = SampleWeights.of(sets, is_prior=True).weigh(sets, p, label_prior(sets))
    share = np.array(reference.share_of_samples(rows, p.tolist()))
    np.testing.assert_allclose(share * weights, 1.0 / len(rows), rtol=1e-9)


def test_sample_that_cannot_be_drawn_has_no_weight():
    rows = [[0], [0, 1], [1], [2]]
    sets = LabelSets.from_lists(rows, 3)
    weights = SampleWeights.of(sets, is_prior=True).weigh(sets, np.array([0.0, 0.6, 0.4]), label_prior(sets))
    np.testing.assert_allclose(weights, [0.0, 0.25 / 0.3, 0.25 / 0.3, 0.25 / 0.4])
