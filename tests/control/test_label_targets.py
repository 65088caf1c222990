"""Targets of samples with several labels: what share each label gets, and what is said if it cannot have it."""

import re
import warnings

import numpy as np
import pytest
import reference
from label_set_helpers import ROWS, SETS, K, make_sampler, some_losses, tags

from lightning_fair import FeedbackController
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.control.label_draws import reached_classes
from lightning_fair.control.target_values import AutoTarget
from lightning_fair.schedules import Linear, Shift, Step

UNREACHED = "No draws bring the target"


def drawn_shares(sampler):
    """Draw all batches of an epoch; return the share of each label in them."""
    for batch in sampler:
        sampler.controller.step_update(sampler.labels.take(batch).to_dense())
    return sampler.drawn / sampler.drawn.sum()


@pytest.fixture
def messages():
    """What the test warns of unreached targets."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in caught if UNREACHED in str(w.message)]


@pytest.mark.parametrize("target", ["sqrt", [0.32, 0.2, 0.2, 0.1, 0.06, 0.12], {5: 0.3, 0: 0.3, 1: 0.15}])
def test_reachable_shares_are_reached(target, messages):
    """Each label has about its share, without a warning."""
    sampler = make_sampler(target=target, batch_size=16, steps=100)
    asked = FeedbackController(K, target, class_counts=SETS.counts).q
    np.testing.assert_allclose(sampler.controller.q, asked, rtol=0.1)
    np.testing.assert_allclose(drawn_shares(sampler), asked, rtol=0.1)
    assert messages() == []


@pytest.mark.parametrize("target", ["uniform", {4: 0.5, 5: 0.5}, [0.0, 0.3, 0.2, 0.2, 0.2, 0.1]])
def test_nearest_shares_are_reached(target, messages):
    """One warning names labels, what was asked for, and what they get."""
    names = [f"<{k}>" for k in range(K)]
    sampler = make_sampler(target=target, batch_size=16, steps=100, class_names=names)
    asked = FeedbackController(K, target, class_counts=SETS.counts).q
    share = drawn_shares(sampler)
    np.testing.assert_allclose(share, sampler.controller.q, atol=0.01)
    (message,) = messages()
    shares = re.findall(r"<(\d)> (\S+) in place of ([0-9.]+[0-9])", message)
    assert "4" in {label for label, *_ in shares}
    for label, reached, wanted in shares:
        assert share[int(label)] == pytest.approx(float(reached), abs=0.01)
        assert float(wanted) == pytest.approx(asked[int(label)], rel=0.01)
    unshares = [k for k in range(K) if str(k) not in {label for label, *_ in shares} and asked[k] > 0]
    np.testing.assert_allclose(share[unshares], asked[unshares], rtol=0.13)


def test_batches_begin_at_the_nearest_mix():
    """Without a deficit: the first draw is the one that brings the mix."""
    with pytest.warns(UserWarning, match=UNREACHED):
        controller = FeedbackController(K, label_sets=SETS)
    np.testing.assert_allclose(controller.get_probs(), controller.rest_at(0.0))
    np.testing.assert_allclose(controller.deficits, 0.0, atol=1e-12)
    brought = controller.rest_at(0.0) / SETS.counts @ ROWS.T.astype(float) @ ROWS
    np.testing.assert_allclose(brought / brought.sum(), controller.q, rtol=1e-6)
    assert brought.sum() == pytest.approx(controller.labels_per_draw)


def test_target_moves_between_the_nearest_mixes():
    """On the way too, the draws bring the target of the moment, and it is no deficit that it moves."""
    target = Shift(Linear(0.0, 1.0, 10), start="prior", end=[0.1, 0.3, 0.1, 0.2, 0.1, 0.2])
    controller = FeedbackController(K, target, label_sets=SETS)
    for progress in (0.0, 0.3, 1.0):
        brought = controller.rest_at(progress) / SETS.counts @ ROWS.T.astype(float) @ ROWS
        np.testing.assert_allclose(brought / brought.sum(), controller.target_at(progress), rtol=1e-6)
    assert np.abs(controller.target_at(0.0) - controller.target_at(1.0)).max() > 0.1
    controller.step_update(ROWS[:50])
    before = controller.deficits
    np.testing.assert_allclose(controller.trained_mix / controller.q, 1.0 - before, rtol=1e-9)
    controller.next_probs()  # moves the target
    assert controller.progress == 0.1
    np.testing.assert_allclose(controller.deficits, before, atol=0.02)


def test_shares_follow_a_moving_target():
    target = Shift(Step(0.0, 1.0, at=100), start="prior", end="sqrt")
    sampler = make_sampler(target=target, batch_size=16, steps=100, horizon=30.0, alpha=4.0)
    for progress in (0.0, 1.0):
        before = sampler.drawn
        drawn_shares(sampler)
        now = sampler.drawn - before
        np.testing.assert_allclose(now / now.sum(), sampler.controller.target_at(progress), rtol=0.1)


def test_label_without_a_target_sets_no_horizon():
    """Label 4 comes along with others in less than a hundredth of the labels."""
    rows = np.zeros((300, 3), bool)
    rows[np.arange(300), np.arange(300) % 2] = True
    rows[:2, 2] = True
    sets = LabelSets.from_matrix(rows)
    controller = FeedbackController(3, [0.5, 0.5, 0.0], label_sets=sets, batch_size=10)
    assert controller.q[2] < 0.01
    assert controller.horizon == 21.0  # of a target of about a half


@pytest.mark.parametrize("width", [None, K - 1, K])
def test_losses_of_each_label(width):
    """Losses of samples, or of each label, of which the class of samples without a label can be left out."""
    controller, batch = make_sampler(loss_ema_decay=0.0, lambda2=0.1, horizon=32.0).controller, list(range(12))
    losses = some_losses(batch)[:, 0] if width is None else some_losses(batch)[:, :width]
    losses[1] = np.inf
    controller.step_update(ROWS[:12], losses)
    controller.next_probs()
    means = reference.set_losses([row.nonzero()[0].tolist() for row in ROWS[:12]], losses.tolist(), K)
    assert sum(mean is not None for mean in means) > 3
    np.testing.assert_allclose(controller.ema_loss, np.array(means, float), rtol=1e-9)
    with pytest.raises(
        ValueError, match=r"one value per sample, shape \(12,\), or per sample and label, shape \(12, 6\)"
    ):
        controller.step_update(ROWS[:12], np.ones((12, 3)))


def test_losses_are_standardized_and_fed_back_for_each_label():
    sampler = make_sampler(lambda2=0.3, horizon=32.0, loss_ema_decay=0.0)
    controller = sampler.controller
    for batch in sampler:
        controller.step_update(ROWS[batch], some_losses(batch) * [1, 1, 1, 1, 1, 9])
    assert controller.get_probs()[5] > 1.2 * controller.rest_at(0.0)[5]


@pytest.mark.parametrize("reference", ["prior", [0.0, 0.3, 0.2, 0.2, 0.1, 0.2]])
def test_reference_of_a_label_without_a_target(reference):
    """The loss can stand for it if all of its samples have another label that is drawn."""
    rows = tags()
    rows[:, 1] |= rows[:, 4]
    target = [0.3, 0.2, 0.2, 0.1, 0.0, 0.2]
    sets = LabelSets.from_matrix(rows)
    sampler = make_sampler(sets, target=target, reference=reference, max_weight=1e3)
    share = rows_per_sample(sets) @ sampler.controller.rest_at(0.0)
    assert share.min() > 0
    assert share @ sampler.weights_at(sampler.controller.rest_at(0.0)) == pytest.approx(1.0)
    rows[0] = [0, 0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"class 4 a share of .* samples of it that have no label with a target are"):
        make_sampler(LabelSets.from_matrix(rows), target=target, reference=reference)


def rows_per_sample(sets):
    return sets.to_dense() / sets.counts


def test_reached_classes():
    sets = LabelSets.from_lists([[0], [0, 1], [2], [2, 1]], 4)
    reached = reached_classes(sets, np.array([True, False, False, False]))
    assert reached.tolist() == [True, False, False, True]
    assert reached_classes(sets, np.array([True, False, True, False])).all()


def test_state_of_another_length_of_training():
    """The target "auto" of a checkpoint goes on, with its draws."""
    one, other = (FeedbackController(K, AutoTarget(t), label_sets=SETS) for t in (0.5, 0.7))
    one.step_update(ROWS[:20])
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(other.q, one.q)
    np.testing.assert_array_equal(other.rest_at(0.0), one.rest_at(0.0))
    np.testing.assert_array_equal(other.get_probs(), one.get_probs())
