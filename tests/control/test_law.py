"""Each formula of the law against its slow reference, and the properties that every law must have."""

import math

import numpy as np
import pytest
import reference
from control_helpers import class_mixes
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.control import law


def arrays(low, high, size=6):
    """Arrays of ``size`` numbers, to be cut to the number of classes."""
    return st.lists(st.floats(low, high), min_size=size, max_size=size).map(np.array)


max_weights = st.one_of(st.floats(1.0, 100.0), st.just(math.inf))


def next_probs(q, r, loss_score=None, alpha=8.0, lambda1=1.0, lambda2=0.5, max_weight=10.0, min_prob=0.0):
    """Return the class mix of the next batch, from the parts of the law."""
    loss_score = np.zeros(q.size) if loss_score is None else loss_score
    deficit = law.relative_deficit(r, q, law.reciprocal(q))
    with np.errstate(divide="ignore"):
        logits = law.draw_logits(np.log(q), deficit, loss_score, alpha, lambda1, lambda2)
    return law.softmax_with_floor(logits, law.mixture_floor(q, max_weight, min_prob))


# -- properties of the next class mix --------------------------------------------------------------


@given(
    q=class_mixes(),
    r=arrays(0.01, 1.0),
    e=arrays(-3.0, 3.0),
    alpha=st.floats(0.0, 100.0),
    lambda1=st.floats(0.0, 2.0),
    lambda2=st.floats(0.0, 2.0),
    max_weight=max_weights,
    share=st.floats(0.0, 1.0),
)
def test_next_mix_follows_reference(q, r, e, alpha, lambda1, lambda2, max_weight, share):
    K = q.size
    r, e, min_prob = r[:K] / r[:K].sum(), e[:K], share * (1.0 - 1.0 / max_weight) / K
    settings = {"alpha": alpha, "lambda1": lambda1, "lambda2": lambda2, "max_weight": max_weight, "min_prob": min_prob}
    p = next_probs(q, r, e, **settings)
    np.testing.assert_allclose(p, reference.law(q.tolist(), r.tolist(), e.tolist(), **settings), rtol=1e-6, atol=1e-12)


@given(
    q=class_mixes(),
    r=arrays(0.01, 1.0),
    alpha=st.floats(0.0, 1e4),
    max_weight=max_weights,
    share=st.floats(0.0, 1.0),
)
def test_sums_to_one_and_keeps_floor(q, r, alpha, max_weight, share):
    """No weight ``q / p`` exceeds the bound, and no probability is below the floor."""
    min_prob = share * (1.0 - 1.0 / max_weight) / q.size
    p = next_probs(q, r[: q.size] / r[: q.size].sum(), alpha=alpha, max_weight=max_weight, min_prob=min_prob)
    assert p.sum() == pytest.approx(1.0)
    assert (p >= min_prob * (1.0 - 1e-12)).all()
    assert max_weight == math.inf or (q <= max_weight * p * (1.0 + 1e-12)).all()


@given(r=arrays(0.01, 1.0), alpha=st.floats(0.0, 100.0))
def test_more_deficit_gives_more_probability(r, alpha):
    q = np.full(6, 1 / 6)
    p = next_probs(q, r / r.sum(), alpha=alpha)
    assert (np.diff(p[np.argsort(-r)]) >= -1e-15).all()


@given(q=class_mixes(2), r=arrays(0.01, 1.0), label=st.integers(0, 5), share=st.floats(0.01, 0.99))
def test_own_deficit_raises_own_probability(q, r, label, share):
    label %= q.size
    r = r[: q.size] / r[: q.size].sum()
    less = r.copy()
    less[label] *= share
    assert next_probs(q, less)[label] >= next_probs(q, r)[label] * (1.0 - 1e-12)


@given(q=class_mixes(2), r=arrays(0.01, 1.0), e=arrays(-3.0, 3.0), seed=st.integers(0, 1000))
def test_permuted_classes_permute_the_mix(q, r, e, seed):
    order = np.random.default_rng(seed).permutation(q.size)
    r, e = r[: q.size] / r[: q.size].sum(), e[: q.size]
    np.testing.assert_allclose(next_probs(q[order], r[order], e[order]), next_probs(q, r, e)[order], rtol=1e-9)


@given(q=class_mixes(), alpha=st.floats(0.0, 100.0), max_weight=max_weights)
def test_target_is_the_fixed_point(q, alpha, max_weight):
    np.testing.assert_allclose(next_probs(q, q, alpha=alpha, max_weight=max_weight), q, rtol=1e-9)


def test_class_with_target_zero_gets_nothing():
    p = next_probs(np.array([0.5, 0.0, 0.5]), np.array([0.4, 0.2, 0.4]), min_prob=0.01)
    assert p[1] == 0.0
    assert (
        law.relative_deficit(np.array([0.5, 0.5]), np.array([1.0, 0.0]), law.reciprocal(np.array([1.0, 0.0])))[1] == 0
    )


def test_tiny_target_keeps_the_mix_finite():
    q = np.array([1.0 - 1e-320, 1e-320])
    p = next_probs(q, np.array([0.5, 0.5]))
    assert p.sum() == pytest.approx(1.0)


# -- softmax and floor -----------------------------------------------------------------------------


@given(mix=class_mixes(max_size=40), share=st.floats(0.0, 1.0))
def test_applied_floor_follows_reference(mix, share):
    floor = np.full(mix.size, share / mix.size)
    p = law.apply_floor(3.0 * mix, floor)
    assert p.tolist() == pytest.approx(reference.mixed(mix.tolist(), floor.tolist()))
    assert (np.diff(p[np.argsort(mix)]) >= -1e-15).all()


@given(mix=class_mixes(2), absent=st.booleans(), max_weight=max_weights, min_prob=st.floats(0.0, 0.2))
def test_mixture_floor_follows_reference(mix, absent, max_weight, min_prob):
    q = np.where(np.arange(mix.size) == 0, 0.0, mix) / (mix.sum() - mix[0]) if absent else mix
    floor = law.mixture_floor(q, max_weight, min_prob)
    assert floor.tolist() == pytest.approx(reference.floor(q.tolist(), max_weight, min_prob))


@given(logits=arrays(-5.0, 5.0), shift=st.sampled_from([-1e6, 0.0, 1e6]))
def test_softmax_follows_reference(logits, shift):
    p = law.softmax_with_floor(logits + shift, np.zeros(6))
    # 5.0 + 1e6 is rounded to 1e-10.
    np.testing.assert_allclose(p, reference.softmax(logits.tolist()), rtol=1e-9)


# -- the next state --------------------------------------------------------------------------------


@given(r=class_mixes(6), counts=st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(any), H=st.floats(1.0, 99.0))
def test_trained_mix_follows_reference(r, counts, H):
    mix = law.moving_average(r, np.array(counts) / sum(counts), H)
    np.testing.assert_allclose(mix, reference.follow(r.tolist(), counts, H), rtol=1e-12, atol=1e-15)
    assert mix.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("trained", [[2, 0, 0], [1, 1, 1], [0, 0, 0]])
def test_correction_replaces_a_batch(trained):
    """The corrected mix is the one that the trained batch would have left, or no batch at all."""
    r, drawn, later = np.full(3, 1 / 3), [2, 2, 4], [[3, 3, 2], [2, 3, 3]]
    mix, expected = reference.follow(r, drawn, 16.0), reference.follow(r, trained, 16.0)
    for counts in later:
        mix, expected = reference.follow(mix, counts, 16.0), reference.follow(expected, counts, 16.0)
    correction = law.mix_correction(np.array(trained), np.array(drawn), r)
    np.testing.assert_allclose(law.correct_mix(np.array(mix), correction, len(later), 16.0), expected, rtol=1e-12)


@given(old=class_mixes(4, 4), new=class_mixes(4, 4), r=class_mixes(4, 4))
def test_rescaled_mix_keeps_deficits_in_proportion(old, new, r):
    moved = law.rescale_mix(r, old, new)
    assert moved.sum() == pytest.approx(1.0)
    served_before, served_after = r / old, moved / new
    np.testing.assert_allclose(served_after / served_after.mean(), served_before / served_before.mean(), rtol=1e-9)


def test_new_class_begins_without_a_deficit():
    moved = law.rescale_mix(np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([0.75, 0.25]))
    assert moved.tolist() == [0.75, 0.25]


@given(seed=st.integers(0, 1000), decay=st.floats(0.0, 0.99))
def test_class_losses_follow_reference(seed, decay):
    rng = np.random.default_rng(seed)
    ema, slow = np.full(3, np.nan), [None] * 3
    for _ in range(4):
        y, losses = rng.integers(0, 3, 5), rng.exponential(size=5)
        losses[rng.random(5) < 0.2] = math.nan
        counts, sums, finite = law.batch_statistics(y, losses, 3)
        assert counts.tolist() == np.bincount(y, minlength=3).tolist()
        ema = law.update_losses(ema, law.mean_losses(sums, finite), decay)
        slow = reference.follow_losses(slow, y.tolist(), losses.tolist(), decay)
        np.testing.assert_allclose(ema, [math.nan if loss is None else loss for loss in slow], rtol=1e-9)


def test_infinite_loss_sum_is_no_mean():
    means = law.mean_losses(np.array([math.inf, 4.0, 0.0]), np.array([1, 2, 0]))
    np.testing.assert_array_equal(means, [math.nan, 2.0, math.nan])


@given(q=class_mixes(), losses=arrays(0.0, 10.0), seen=st.lists(st.booleans(), min_size=6, max_size=6))
def test_standardized_losses_follow_reference(q, losses, seen):
    losses = np.where(seen, losses, math.nan)[: q.size].round(3)
    slow = [None if math.isnan(loss) else loss for loss in losses.tolist()]
    np.testing.assert_allclose(law.standardize_losses(losses, q), reference.standardize(slow, q.tolist()), atol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1e-9, 0.0), (1e9, 1e9), (1e300, 0.0)])
def test_standardized_losses_have_no_unit(scale, shift):
    losses, q = np.array([1.0, 2.0, 5.0]), np.array([0.5, 0.3, 0.2])
    z = law.standardize_losses(scale * losses + shift, q)
    np.testing.assert_allclose(z, law.standardize_losses(losses, q), rtol=1e-6)


# -- the objective ---------------------------------------------------------------------------------


@given(mix=class_mixes(), tilt=arrays(-20.0, 20.0))
def test_tilted_mix_follows_reference(mix, tilt):
    tilt = tilt[: mix.size]
    np.testing.assert_allclose(law.tilt_mix(mix, tilt), reference.tilted(mix.tolist(), tilt.tolist()), rtol=1e-9)


def test_tilt_of_any_size_gives_a_mix():
    assert law.tilt_mix(np.array([0.5, 0.5]), np.array([1000.0, -1000.0])).tolist() == [1.0, 0.0]


@given(
    tilt=arrays(-3.0, 3.0),
    scores=arrays(0.0, 1.0),
    seen=st.lists(st.booleans(), min_size=6, max_size=6).filter(any),
    gain=st.floats(0.0, 5.0),
)
def test_validation_tilt_follows_reference(tilt, scores, seen, gain):
    slow = [score if has else None for score, has in zip(scores.tolist(), seen, strict=True)]
    moved = law.follow_scores(tilt, np.where(seen, scores, math.nan), gain)
    np.testing.assert_allclose(moved, reference.validation_tilt(tilt.tolist(), slow, gain=gain), atol=1e-12)


def test_validation_without_a_class_changes_nothing():
    tilt = np.array([0.5, -0.5])
    assert law.follow_scores(tilt, np.full(2, math.nan), gain=3.0).tolist() == tilt.tolist()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_target", "size", "expected"),
    [
        (0.5, 64, 16),
        (0.001, 64, 1563),
        (0.01, 64, 157),
        (0.01, 4, 2500),
        (0.02, 4, 1250),
        (0.1, 32, 32),
        (0.0, 64, 1e4),
    ],
)
def test_default_horizon_expects_100_samples(min_target, size, expected):
    assert law.default_horizon(min_target, size) == expected
    if min_target:
        assert expected == reference.horizon(size, [min_target, 1.0 - min_target])
        assert expected * size * min_target >= 100


@given(q=class_mixes(2), losses=arrays(0.0, 10.0))
def test_no_standardized_loss_is_above_its_bound(q, losses):
    z = law.standardize_losses(losses[: q.size], q)
    assert (z - q @ z).max() <= law.max_z(q.min()) + 1e-9


@pytest.mark.parametrize(("lambda2", "limit"), [(0.0, 31.0), (0.3, 31.0 / 1.9)])
def test_gain_below_the_limit_is_accepted(lambda2, limit):
    law.check_gain(0.999 * limit, 1.0, lambda2, horizon=16.0, min_target=0.1)
    with pytest.raises(
        ValueError, match=r"must be below 2 \* horizon - 1 = 31, .*The largest stable alpha is just below"
    ):
        law.check_gain(1.001 * limit, 1.0, lambda2, horizon=16.0, min_target=0.1)


def test_gain_without_deficit_is_not_limited():
    law.check_gain(1000.0, 0.0, 1.0, horizon=16.0, min_target=0.1)
