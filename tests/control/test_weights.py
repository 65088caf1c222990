import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair import effective_sample_size, importance_weights, logit_adjustment
from lightning_fair.control.weights import class_weights, clipped_mass

shares = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8)


@given(
    data=st.data(),
    exponent=st.sampled_from([0.0, 0.5, 1.0]),
    max_w=st.sampled_from([None, 0.5, 2.0]),
    normalize=st.booleans(),
)
def test_weights_follow_reference(data, exponent, max_w, normalize):
    p = np.array(data.draw(shares))
    q = np.array(data.draw(st.lists(st.floats(0.0, 1.0), min_size=p.size, max_size=p.size))) + 1e-3
    p, q = p / p.sum(), q / q.sum()
    labels = data.draw(st.lists(st.integers(0, p.size - 1), min_size=1, max_size=20))
    weights = importance_weights(labels, q, p, max_w, normalize=normalize, exponent=exponent)
    slow = reference.importance_weights(labels, q, p, max_w, normalize=normalize, exponent=exponent)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), slow, rtol=1e-6)


@given(data=st.data())
def test_expected_weighted_loss_is_the_risk(data):
    p = np.array(data.draw(shares))
    q = np.array(data.draw(st.lists(st.floats(0.01, 1.0), min_size=p.size, max_size=p.size)))
    loss = np.array(data.draw(st.lists(st.floats(-5.0, 5.0), min_size=p.size, max_size=p.size)))
    p, q = p / p.sum(), q / q.sum()
    assert float((p * class_weights(q, p) * loss).sum()) == pytest.approx(float((q * loss).sum()), abs=1e-9)


@pytest.mark.parametrize("labels", [[0, 1, 1], np.array([0, 1, 1]), torch.tensor([0, 1, 1])])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors_are_accepted(labels, kind):
    weights = importance_weights(labels, kind([0.5, 0.5]), kind([0.75, 0.25]))
    np.testing.assert_allclose(weights.numpy(), [2 / 3, 2.0, 2.0], rtol=1e-6)


def test_empty_batch_has_no_weights():
    for normalize in (False, True):
        assert importance_weights([], [0.5, 0.5], [0.5, 0.5], normalize=normalize).shape == (0,)


def test_class_without_probability_weighs_zero():
    assert class_weights([0.5, 0.5], [1.0, 0.0]).tolist() == [0.5, 0.0]
    assert class_weights([0.5, 0.5], [1.0, 0.0], exponent=0.0).tolist() == [1.0, 0.0]


def test_normalized_zero_weights_are_finite():
    assert torch.isfinite(importance_weights([0, 0], [0.0, 1.0], [0.5, 0.5], normalize=True)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [0.5, 0.5], [1.0]), r"q and p must both have shape \(K,\), got \(2,\) and \(1,\)"),
        (([0], [[0.5, 0.5]], [[0.5, 0.5]]), r"both have shape \(K,\), got \(1, 2\)"),
        (([0], [-0.5, 1.5], [0.5, 0.5]), r"q must be probabilities: finite and not negative"),
        (([0], [0.5, 0.5], [float("nan"), 0.5]), r"p must be probabilities: finite and not negative"),
        (([0], [0.5, 0.5], [0.5, 0.5], 0.0), r"max_w must lie in \(0, inf\], got 0\.0"),
        (([0], [0.5, 0.5], [0.5, 0.5], float("nan")), r"max_w must lie in"),
        (([0, 1], [0.5, 0.5], [1.0, 0.0]), r"class 1, which has p = 0 .*Pass the p of the batch's own draw"),
        (([2], [0.5, 0.5], [0.5, 0.5]), r"labels must lie in \[0, 2\), got 2"),
        (([[0]], [0.5, 0.5], [0.5, 0.5]), r"labels must have shape \(N,\)"),
        (([0.0], [0.5, 0.5], [0.5, 0.5]), r"labels must be integers"),
    ],
)
def test_invalid_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        importance_weights(*arguments)


@pytest.mark.parametrize("exponent", [-0.1, 1.1, float("nan")])
def test_exponent_out_of_range_is_refused(exponent):
    with pytest.raises(ValueError, match=r"exponent must lie in \[0, 1\], got"):
        importance_weights([0], [0.5, 0.5], [0.5, 0.5], exponent=exponent)


# -- clipped mass and logits ---------------------------------------------------------------------------


def mixes_of(data):
    """Return two class mixes, of which some entries are zero."""
    size = data.draw(st.integers(2, 6))
    shares = st.lists(st.sampled_from([0.0, 0.0, 1e-14, 0.1, 0.5, 1.0]), min_size=size, max_size=size).filter(any)
    one, other = (np.array(data.draw(shares)) for _ in range(2))
    return one / one.sum(), other / other.sum()


@given(data=st.data(), max_w=st.sampled_from([1.0, 2.0, 10.0, 1e6]))
def test_clipped_mass_follows_reference(data, max_w):
    ref, p = mixes_of(data)
    mass = clipped_mass(ref, p, max_w)
    assert mass == pytest.approx(reference.clipped_mass(ref.tolist(), p.tolist(), max_w), abs=1e-12)
    # The mass that clipped weights keep, and the clipped one, are the reference.
    assert (p * class_weights(ref, p, max_w)).sum() + mass == pytest.approx(1.0)


def test_without_bound_only_absent_classes_are_clipped():
    assert clipped_mass([0.5, 0.3, 0.2], [0.999, 0.001, 0.0], np.inf) == pytest.approx(0.2)


@given(data=st.data())
def test_logit_adjustment_follows_reference(data):
    p, ref = mixes_of(data)
    offsets = logit_adjustment(p, ref)
    assert offsets.dtype == torch.float32
    np.testing.assert_allclose(offsets, reference.offsets(p.tolist(), ref.tolist()), rtol=1e-6, atol=1e-6)


@given(data=st.data())
def test_logit_adjustment_moves_a_trained_model(data):
    """Logits that estimate the posterior at one mix estimate it at the mix they are moved to."""
    old, new = (np.array(data.draw(shares.filter(lambda s: len(s) == 3))) for _ in range(2))
    old, new = old / old.sum(), new / new.sum()
    given_class = np.array([[0.7, 0.2, 0.1], [0.3, 0.8, 0.9]])  # P(x | y)
    logits = torch.from_numpy(np.log(given_class * old))
    joint = given_class * new
    moved = (logits + logit_adjustment(new, old)).softmax(dim=1)
    np.testing.assert_allclose(moved, joint / joint.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("function", [logit_adjustment, lambda p, ref: clipped_mass(ref, p, 10.0)])
@pytest.mark.parametrize(
    ("p", "ref", "message"),
    [
        ([0.5, 0.5], [1.0], r"must both have shape \(K,\), got \(\d,\) and \(\d,\)"),
        ([0.5, float("nan")], [0.5, 0.5], "p must be probabilities: finite and not negative"),
        ([0.5, 0.5], [1.5, -0.5], "ref must be probabilities: finite and not negative"),
    ],
)
def test_invalid_mix_is_refused(function, p, ref, message):
    with pytest.raises(ValueError, match=message):
        function(p, ref)


# -- effective sample size -----------------------------------------------------------------------------


@given(weights=st.lists(st.floats(0.001, 100.0), min_size=1, max_size=30))
def test_effective_sample_size_follows_reference(weights):
    """It is between 1 and the number of samples."""
    size = effective_sample_size(weights)
    assert size == pytest.approx(reference.effective_sample_size(weights))
    assert 1.0 - 1e-9 <= size <= len(weights) + 1e-9


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e3, 1e200])
def test_effective_sample_size_has_no_unit(scale):
    assert effective_sample_size([scale, scale, 2 * scale]) == pytest.approx(16 / 6)


def test_effective_sample_size_without_weight():
    assert effective_sample_size([]) == 0.0
    assert effective_sample_size([0.0, 0.0]) == 0.0


def test_effective_sample_size_of_tensors():
    assert effective_sample_size(torch.ones(5, requires_grad=True)) == 5.0
    assert effective_sample_size(torch.ones(5, dtype=torch.bfloat16)) == 5.0


@pytest.mark.parametrize("weights", [[-1.0, 1.0], [float("nan")], [float("inf")], [[1.0]], 1.0])
def test_invalid_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights must have shape \(batch,\) and be finite and not negative"):
        effective_sample_size(weights)
