import numpy as np
import pytest

from lightning_fair.app.simulation import CLASSES, simulate, survival
from lightning_fair.control.controller import FeedbackController


def test_feedback_holds_the_rare_class():
    """Without feedback the trained mix is that of the stream; with feedback the rarest class is near its target."""
    free = simulate(imbalance=8.0, alpha=0.0)
    np.testing.assert_allclose(free.trained[-20:].mean(0), survival(8.0) / survival(8.0).sum(), atol=0.03)
    np.testing.assert_allclose(free.weights, 1.0)
    held = simulate(imbalance=8.0, alpha=8.0, reversals=1)
    for rarest, batches in ((3, slice(30, 60)), (0, slice(90, 120))):
        assert held.trained[batches, rarest].mean() > 0.2 > 2 * held.unsteered[batches, rarest].mean()
        assert held.weights[batches, rarest].max() < 1.0  # drawn more often than its target


@pytest.mark.parametrize("largest", [1.0, 2.5, 10.0])
def test_largest_weight_bounds_the_weights(largest):
    """No weight exceeds the bound, a stream that turns comes up to it, and at 1 there is no feedback."""
    trace = simulate(imbalance=50.0, alpha=30.0, horizon=32.0, max_weight=largest, reversals=2)
    assert 0.9 * largest < trace.weights.max() <= largest + 1e-9
    if largest == 1.0:
        np.testing.assert_allclose(trace.weights, 1.0)


def test_lambda2_favors_high_losses():
    without, with_losses = (simulate(lambda2=value).trained[-60:].mean(0) for value in (0.0, 0.5))
    assert with_losses[3] > without[3] + 0.05  # the rarest class has the highest loss


@pytest.mark.parametrize("reversals", [0, 1, 2, 3, 10, 1001])
def test_last_batches_are_returned(reversals):
    trace = simulate(reversals=reversals)
    assert trace.first_batch == max(0, reversals - 2) * 60
    assert trace.arrived.shape == trace.weights.shape == (60 * min(reversals + 1, 3), CLASSES)
    assert int(trace.unsteered[-1].argmin()) == (0 if reversals % 2 else 3)


@pytest.mark.parametrize(("horizon", "lambda2"), [(16.0, 0.0), (2.0, 0.0), (30.0, 1.0), (16.0, 0.35)])
def test_limit_is_that_of_training(horizon, lambda2):
    limit = simulate(horizon=horizon, lambda2=lambda2).alpha_limit
    FeedbackController(CLASSES, alpha=limit * (1 - 1e-9), horizon=horizon, lambda2=lambda2)
    with pytest.raises(ValueError, match="oscillates"):
        FeedbackController(CLASSES, alpha=limit * (1 + 1e-9), horizon=horizon, lambda2=lambda2)


def test_high_gain_oscillates():
    """Batch by batch the shares swing more than twice as far as with the default gain."""
    default, high = (np.abs(np.diff(simulate(alpha=alpha).arrived[20:], axis=0)).mean() for alpha in (8.0, 40.0))
    assert high > 2 * default


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imbalance": 0.5}, r"imbalance must be at least 1, got 0\.5"),
        ({"alpha": -1.0}, r"alpha must lie in"),
        ({"max_weight": 0.5}, r"max_weight must lie in"),
    ],
    ids=["imbalance", "alpha", "max_weight"],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        simulate(**settings)


@pytest.mark.parametrize(
    ("settings", "swings"), [((8, 40, 10, 16, 0), True), ((1, 40, 10, 16, 0), False), ((8, 40, 1, 16, 0), False)]
)
def test_page_says_what_oscillates(settings, swings):
    """Too high a gain does no harm if nothing is to be corrected, or if a largest weight of 1 forbids it."""
    pytest.importorskip("gradio")
    from lightning_fair.app.feedback import _summary

    text = _summary(simulate(*settings), alpha=settings[1])["value"]
    assert "training would refuse it" in text
    assert ("of the trained samples" in text, "It does not here" in text) == (swings, not swings)
