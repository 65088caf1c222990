import warnings

import numpy as np
import pytest
import reference
from benchmarks.comparison import CountDeficitController
from control_helpers import labels_from_counts, make_draw, same, state_is_finite

from lightning_fair import FeedbackBatchSampler


def test_published_law():
    controller = CountDeficitController(3, [0.5, 0.3, 0.2], alpha=0.5, lambda2=0.4)
    counts, losses = [0, 0, 0], [None] * 3
    rng = np.random.default_rng(0)
    for _ in range(6):
        expected = reference.count_law(
            [0.5, 0.3, 0.2], counts, [loss or 0.0 for loss in losses], alpha=0.5, lambda2=0.4
        )
        np.testing.assert_allclose(controller.get_probs(), expected, rtol=1e-9)
        y, values = rng.integers(0, 3, 4), rng.exponential(size=4)
        controller.step_update(y, values)
        counts = [n + int((y == label).sum()) for label, n in enumerate(counts)]
        losses = reference.follow_losses(losses, y.tolist(), values.tolist(), 0.9)


def test_reported_counts_replace_drawn_counts():
    controller, seen = (CountDeficitController(2, alpha=0.1) for _ in range(2))
    make_draw(controller, [2, 2])
    controller.step_update([0, 0])
    seen.step_update([0, 0])
    assert controller.get_probs().tolist() == seen.get_probs().tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_infinite_loss_leaves_state_finite(bad):
    controller = CountDeficitController(3, alpha=1.0, lambda2=0.5)
    controller.step_update([0, 1, 2], [1.0, 2.0, 3.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        controller.step_update([0, 0, 1], [bad, 5.0, bad])
    np.testing.assert_allclose(controller.ema_loss, [0.9 * 1.0 + 0.1 * 5.0, 2.0, 3.0])
    assert state_is_finite(controller)


def test_loaded_state_continues_exactly():
    def new():
        return CountDeficitController(3, [0.5, 0.3, 0.2], alpha=0.1, lambda2=0.5, feedback_delay=4)

    controller, rng = new(), np.random.default_rng(0)
    for _ in range(5):
        make_draw(controller, rng.multinomial(8, controller.next_probs()))
    controller.step_update(labels_from_counts(controller.in_flight[0].counts)[1:], rng.exponential(size=7))
    loaded = new()
    loaded.load_state_dict(controller.state_dict())
    controller.withdraw()  # the draws in flight are made again after a load
    for _ in range(5):
        assert loaded.next_probs().tolist() == controller.next_probs().tolist()
        for each in (controller, loaded):
            each.step_update([0, 1], [1.0, 2.0])
        assert same(loaded.state_dict(), controller.state_dict())


@pytest.mark.parametrize(("K", "distance"), [(2, 0.49), (10, 0.5)])
def test_every_batch_has_one_class(K, distance):
    """After ten batches of 99:1, half a batch is always on the wrong side. The library's law: tests/test_laws.py."""
    labels = np.repeat(np.arange(K), 1000)
    controller = CountDeficitController(K)
    for _ in range(10):
        controller.step_update(np.repeat(np.arange(K), [256 - 3 * (K - 1)] + [3] * (K - 1)))
    distances, max_weight = [], 0.0
    for batch in FeedbackBatchSampler(labels, 256, 100, controller):
        mix = np.bincount(labels[batch], minlength=K) / 256
        distances.append(np.abs(mix - controller.q).sum() / 2)
        max_weight = max(max_weight, float((controller.q / controller.get_probs()).max()))
        controller.step_update(labels[batch])
    assert np.mean(distances) > distance
    assert K > 2 or min(distances) >= distance
    assert max_weight == pytest.approx(1 / K / 1e-6, rel=0.01)
