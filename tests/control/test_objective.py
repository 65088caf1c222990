"""The objective: the mix that the loss stands for, and how training losses and validations move it."""

import io
import math
import warnings

import numpy as np
import pytest
import reference
import torch
from control_helpers import class_mixes, labels_from_counts, make_draw, same, state_is_finite
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair import FeedbackController, logit_adjustment
from lightning_fair.control.objective import validation_scores
from lightning_fair.schedules import Linear, Shift

RECALL = [0.9, 0.5, 0.4]
LATER = [0.1, math.nan, 0.8]


def validated(**settings):
    """Return a controller whose reference validations move."""
    return FeedbackController(**{"num_classes": 3, "feedback": "validation", "feedback_to": "objective", **settings})


def train(controller, batches=1, losses=None):
    """Draw and report ``batches`` batches."""
    for _ in range(batches):
        draw = make_draw(controller, [2, 2, 2])
        controller.step_update(labels_from_counts(draw.counts), losses)


# -- the reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("target", [0.5, 0.3, 0.2]),
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        (None, [1 / 3, 1 / 3, 1 / 3]),
        ("prior", [0.9, 0.09, 0.01]),
        ([0.2, 0.2, 0.6], [0.2, 0.2, 0.6]),
        ({2: 0.5}, [0.25, 0.25, 0.5]),
    ],
)
def test_reference_is_the_mix_it_describes(mix, expected):
    controller = FeedbackController(3, [0.5, 0.3, 0.2], reference=mix, class_counts=[900, 90, 10])
    np.testing.assert_allclose(controller.reference, expected)
    np.testing.assert_allclose(make_draw(controller, [2, 2, 2]).reference, expected)


def test_reference_of_a_draw_follows_a_moving_target():
    """With ``"target"`` the loss of each draw stands for the target of that draw."""
    controller = FeedbackController(2, Shift(Linear(0.0, 1.0, 4), start=[0.9, 0.1]))
    for _ in range(3):
        make_draw(controller, [4, 4])
    for share in (0.9, 0.8, 0.7):
        assert controller.get_reference() == pytest.approx([share, 1.0 - share])
        controller.step_update([0, 1])


def test_returned_reference_cannot_change_the_state():
    for mix in ("target", "prior"):
        controller = FeedbackController(2, reference=mix, class_counts=[9, 1])
        for returned in (controller.reference, controller.get_reference(), make_draw(controller, [1, 1]).reference):
            with pytest.raises(ValueError, match="read-only"):
                returned[:] = 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": [0.5, 0.5]}, r"reference must have one entry per class, shape \(3,\), got shape \(2,\)"),
        ({"reference": [0.5, 0.5, 0.5]}, r"reference must sum to one, got a sum of 1\.5"),
        ({"reference": "flat"}, r"reference must be 'uniform', 'prior'.* got 'flat'"),
        ({"reference": "prior"}, r"reference='prior' is computed from the data: pass class_counts"),
        ({"reference": {"cat": 0.5}}, r"reference names class 'cat'"),
        ({"reference": {0: 0.8, 1: 0.4}}, r"reference must sum to one, but the named classes already sum to 1\.2"),
        (
            {"target_probs": [0.5, 0.5, 0.0], "reference": "uniform"},
            r"gives class 2 a share of 0\.333, but its target is 0.*reference='target'",
        ),
        ({"feedback": "loss"}, r"feedback must be 'train' or 'validation', got 'loss'"),
        ({"feedback_to": "loss"}, r"feedback_to must be 'draw' or 'objective', got 'loss'"),
    ],
)
def test_invalid_argument_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FeedbackController(3, **settings)


def test_remedies_for_a_class_without_target():
    FeedbackController(3, [0.5, 0.5, 0.0], reference="target")
    FeedbackController(3, [0.5, 0.5, 0.0], reference=[0.2, 0.8, 0.0])
    FeedbackController(3, [0.5, 0.4, 0.1], reference="uniform")


# -- training losses -------------------------------------------------------------------------------------


@given(q=class_mixes(2, 4), lambda2=st.floats(0.01, 1.0), seed=st.integers(0, 100))
def test_training_losses_move_the_objective(q, lambda2, seed):
    """``t = lambda2 * z``: the reference moves with the standardized losses, and the draw does not."""
    K = q.size
    base = np.arange(1, K + 1) / np.arange(1, K + 1).sum()
    controller = FeedbackController(K, q, lambda2=lambda2, feedback_to="objective", reference=base)
    plain = FeedbackController(K, q)
    rng, losses = np.random.default_rng(seed), [None] * K
    for _ in range(5):
        z = reference.standardize(losses, q.tolist())
        controller.next_probs()
        np.testing.assert_allclose(controller.objective.tilt, [lambda2 * each for each in z], atol=1e-9)
        expected = reference.tilted(base.tolist(), [lambda2 * each for each in z])
        np.testing.assert_allclose(controller.reference, expected, rtol=1e-9)
        np.testing.assert_allclose(controller.get_probs(), plain.get_probs(), rtol=1e-12)
        y, values = rng.integers(0, K, 6), rng.exponential(size=6)
        controller.step_update(y, values)
        plain.step_update(y)
        losses = reference.follow_losses(losses, y.tolist(), values.tolist(), 0.9)


def test_losses_in_the_objective_need_no_longer_horizon():
    """The check of the gain leaves ``lambda2`` out: the losses are not in the loop of the draw."""
    with pytest.raises(ValueError, match="largest stable alpha"):
        FeedbackController(10, alpha=25.0, lambda2=1.0)
    FeedbackController(10, alpha=25.0, lambda2=1.0, feedback_to="objective")


# -- validations -----------------------------------------------------------------------------------------


def test_validation_moves_the_objective():
    """The tilt of several validations, of which some classes have no part, is that of the reference."""
    controller = validated(reference=[0.2, 0.3, 0.5], feedback_gain=2.0)
    tilt = [0.0] * 3
    for values, counts in (
        (RECALL, None),
        ([0.9, math.nan, 0.1], [5, 5, 5]),
        ([0.2, 0.7, 0.0], [5, 5, 0]),
        (torch.tensor([1.0, 0.0, 0.5]), torch.tensor([1, 1, 1])),
        ([math.nan] * 3, None),
    ):
        train(controller)
        controller.report_validation(values, counts)
        parts = [
            None if math.isnan(value) or not number else float(value)
            for value, number in zip(values, [1] * 3 if counts is None else counts, strict=True)
        ]
        if any(part is not None for part in parts):
            tilt = reference.validation_tilt(tilt, parts, gain=2.0)
        np.testing.assert_allclose(controller.objective.tilt, tilt, atol=1e-12)
        np.testing.assert_allclose(controller.reference, reference.tilted([0.2, 0.3, 0.5], tilt), rtol=1e-12)


def test_class_without_a_sample_takes_no_part():
    """It keeps its tilt and its score, and does not enter the mean; a recall of 0 would."""
    controller, all_counted = validated(), validated()
    for each in (controller, all_counted):
        train(each)
    controller.report_validation([0.8, 0.4, 0.0], [10, 10, 0])
    all_counted.report_validation([0.8, 0.4, 0.0])
    np.testing.assert_allclose(controller.objective.tilt, [-0.18, 0.18, 0.0], atol=1e-12)
    assert controller.objective.scores.tolist()[:2] == [0.8, 0.4]
    assert math.isnan(controller.objective.scores[2])
    np.testing.assert_allclose(all_counted.objective.tilt, [-0.36, 0.0, 0.36], atol=1e-12)


def test_losses_have_the_other_sign_and_no_unit():
    tilts = []
    for unit in (1e-3, 1.0, 1e6):
        controller = validated()
        train(controller)
        controller.report_validation(np.array([1.0, 2.0, 3.0]) * unit, higher_is_better=False)
        tilts.append(controller.objective.tilt)
    expected = reference.validation_tilt([0.0] * 3, [1.0, 2.0, 3.0], higher_is_better=False)
    assert expected[0] < 0 < expected[2]
    for tilt in tilts:
        np.testing.assert_allclose(tilt, expected, atol=1e-12)


@given(
    gain=st.floats(0.0, 10.0),
    validations=st.lists(st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4), min_size=1, max_size=30),
    higher_is_better=st.booleans(),
)
def test_tilt_is_bounded_by_the_gain(gain, validations, higher_is_better):
    """For rates and for losses, of which one class may have nearly all."""
    controller = FeedbackController(4, feedback="validation", feedback_to="objective", feedback_gain=gain)
    controller.step_update([0])
    for values in validations:
        controller.report_validation(
            np.array(values) ** (1 if higher_is_better else 20), higher_is_better=higher_is_better
        )
        assert np.abs(controller.objective.tilt).max() <= gain * (1.0 + 1e-12)
        assert state_is_finite(controller)


def test_tilt_rests_where_validations_stay():
    """The leak: with the same recalls at each validation the tilt ends at ``G * (mean - s)``."""
    controller = validated()
    train(controller)
    distances = []
    for _ in range(60):
        controller.report_validation(RECALL)
        distances.append(np.abs(controller.objective.tilt - 3.0 * (0.6 - np.array(RECALL))).max())
    # What is left shrinks by 0.7 each time.
    np.testing.assert_allclose(distances[:20], 0.9 * 0.7 ** np.arange(1, 21), rtol=1e-9)
    assert distances[-1] < 1e-8
    for _ in range(60):
        controller.report_validation([0.7, 0.7, 0.7])
    np.testing.assert_allclose(controller.reference, 1 / 3, atol=1e-8)


@pytest.mark.parametrize("ahead", [0, 3])
def test_validation_takes_effect_after_the_delay(ahead):
    """At draw (newest reported + delay), in whatever order draws in flight are made: prefetching changes nothing."""
    controller = validated(feedback_delay=5)
    draws = []
    for _ in range(4):
        while len(controller.in_flight) <= ahead:
            draws.append(make_draw(controller, [2, 2, 2]))
        controller.step_update([0, 0, 1, 1, 2, 2])
    controller.report_validation(RECALL)  # the newest reported draw is number 3
    for _ in range(8):
        draws.append(make_draw(controller, [2, 2, 2]))
    moved = [draw.draw_id for draw in draws if draw.reference.tolist() != [1 / 3] * 3]
    assert moved == list(range(8, len(draws)))


def test_validation_before_the_first_batch():
    controller = validated()
    controller.report_validation(RECALL)
    assert make_draw(controller, [2, 2, 2]).reference.tolist() == [1 / 3] * 3
    controller.step_update([0, 1, 2])
    assert make_draw(controller, [2, 2, 2]).reference[2] > 1 / 3


def test_nothing_is_fed_back_before_the_first_validation():
    """Training losses are recorded, and move neither draw nor reference."""
    for feedback_to in ("draw", "objective"):
        controller = validated(feedback_to=feedback_to, lambda2=0.5, horizon=16)
        train(controller, 20, losses=[1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
        assert controller.ema_loss.tolist() == pytest.approx([1.0, 2.0, 3.0])
        np.testing.assert_allclose(controller.get_probs(), 1 / 3, rtol=1e-12)
        np.testing.assert_allclose(controller.get_reference(), 1 / 3, rtol=1e-12)


def test_validation_is_fed_back_to_the_draw():
    """Classes that do badly are drawn more often, at rest as training losses with the same scores make them."""
    controller = validated(feedback_to="draw", lambda2=0.3, horizon=16, alpha=12.0)
    train(controller)
    controller.report_validation(RECALL)
    for _ in range(400):
        controller.report(controller.get_probs() * 1e6)
    z = reference.standardize([-value for value in RECALL], [1 / 3] * 3)
    expected = reference.at_rest([1 / 3] * 3, z, alpha=12.0, lambda2=0.3, max_weight=10.0)
    np.testing.assert_allclose(controller.get_probs(), expected, atol=1e-6)
    np.testing.assert_allclose(controller.get_reference(), 1 / 3, rtol=1e-12)


def test_validation_is_refused_if_losses_are_fed_back():
    with pytest.raises(RuntimeError, match=r"follows training losses.*feedback='validation'"):
        FeedbackController(3, lambda2=0.3, feedback_to="objective").report_validation(RECALL)


def test_class_outside_of_the_objective_takes_no_part():
    """The loss of a class that the loss does not stand for changes nothing, however large it is."""
    outside = validated(target_probs=[0.5, 0.5, 0.0], num_classes=3)
    alone = validated(target_probs=[0.5, 0.5], num_classes=2)
    for controller, values in ((outside, [1.0, 2.0, 50.0]), (alone, [1.0, 2.0])):
        for _ in range(40):
            controller.step_update([0, 1])
            controller.report_validation(values, higher_is_better=False)
        controller.step_update([0, 1])
    np.testing.assert_allclose(outside.reference, [*alone.reference, 0.0])


def test_large_gain_leaves_a_mix():
    """However far feedback moves the classes apart, the reference is a class mix."""
    controller = validated(target_probs=[0.5, 0.5, 0.0], feedback_gain=2000.0)
    for _ in range(40):
        controller.step_update([0, 1])
        controller.report_validation([0.9, 0.5, 0.0])
    np.testing.assert_allclose(controller.reference, [0.0, 1.0, 0.0], atol=1e-12)


def test_rounded_rates_are_accepted():
    """A mean in single precision may exceed 1 by its rounding."""
    scores = validation_scores([1.0000001, -1e-7, 0.5], None, np.ones(3, bool), higher_is_better=True)
    assert scores.tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("values", "counts", "higher_is_better", "message"),
    [
        ([0.5, 0.5], None, True, r"values must have one value per class, shape \(3,\), got shape \(2,\)"),
        (0.5, None, True, r"shape \(3,\), got shape \(\)"),
        ([0.5, 0.5, 0.5], [1, 1, -1], True, r"counts must not be negative, got -1 for class 2"),
        ([0.5, 0.5, 0.5], [1, 1, math.nan], True, r"counts must be finite, got nan for class 2"),
        ([0.5, 0.5, 0.5], [1, 1], True, r"counts must have one entry per class, shape \(3,\), got shape \(2,\)"),
        ([0.5, 0.5, 50.0], None, True, r"values must lie in \[0, 1\], got 0\.5 to 50\. Divide percentages by 100"),
        ([0.5, 0.5, -0.1], None, True, r"values must lie in \[0, 1\], got -0\.1 to 0\.5"),
        ([0.5, 0.5, math.inf], None, True, r"values must lie in \[0, 1\]"),
        ([0.5, 0.5, -0.1], None, False, r"must be finite and at least 0, got -0\.1"),
        ([0.5, 0.5, math.inf], None, False, r"must be finite and at least 0, got 0\.5 to inf"),
    ],
)
def test_invalid_validation_changes_nothing(values, counts, higher_is_better, message):
    controller = validated()
    train(controller)
    before = controller.state_dict()
    with pytest.raises(ValueError, match=message):
        controller.report_validation(values, counts, higher_is_better=higher_is_better)
    assert same(controller.state_dict(), before)


def test_losses_of_zero_are_no_difference():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = validation_scores([0.0, 0.0, math.nan], None, np.ones(3, bool), higher_is_better=False)
    assert scores.tolist()[:2] == [0.0, 0.0]


# -- state -----------------------------------------------------------------------------------------------


def busy(**settings):
    """Return a controller with feedback that has taken effect, some on its way, and a draw in flight."""
    controller = validated(**{"lambda2": 0.3, "horizon": 16, "feedback_delay": 3, "reference": "uniform", **settings})
    for losses, recalls in (([1.0, 1.0, 2.0, 2.0, 4.0, 4.0], RECALL), ([1.0, 2.0, 2.0, 2.0, 4.0, 3.0], LATER)):
        train(controller, 5, losses=losses)
        if settings.get("feedback") != "train":
            controller.report_validation(recalls)
    make_draw(controller, [3, 2, 1])
    return controller


KINDS = {
    "objective from validation": {},
    "draw from validation": {"feedback_to": "draw"},
    "objective from training": {"feedback": "train"},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_loaded_state_continues_exactly(settings):
    controller, file = busy(**settings), io.BytesIO()
    torch.save(controller.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert same(state, controller.state_dict())
    other = validated(**{"lambda2": 0.3, "horizon": 16, "feedback_delay": 3, "reference": "uniform", **settings})
    other.load_state_dict(state)
    assert same(other.state_dict(), controller.state_dict())
    controller.withdraw()
    moved = []
    for number in range(6):
        for each in (controller, other):
            each.step_update([0, 1, 2], [1.0, 2.0, 1.0 + number])
            if number % 2 and settings.get("feedback") != "train":
                each.report_validation([0.5, 0.1 * number, 0.2])
            moved.append((make_draw(each, [2, 2, 2]).reference, each.in_flight[-1].probs))
        assert same(other.state_dict(), controller.state_dict())
    signal = 1 if settings.get("feedback_to") == "draw" else 0
    assert np.ptp([both[signal] for both in moved], axis=0).max() > 1e-4


def test_draw_keeps_its_reference():
    """The reference of a draw in flight stays through a validation, a checkpoint, and a redraw."""
    controller = validated()
    train(controller)
    draw = make_draw(controller, [2, 2, 2])
    controller.report_validation(RECALL)
    assert controller.reference.tolist() != draw.reference.tolist() == controller.get_reference().tolist()
    other = validated()
    other.load_state_dict(controller.state_dict())
    assert make_draw(other, [2, 2, 2]).reference.tolist() == draw.reference.tolist()
    other.next_probs()
    assert other.reference.tolist() == controller.reference.tolist()


def test_state_is_a_snapshot():
    controller = busy()
    state, copy = controller.state_dict(), controller.state_dict()
    train(controller, 5)
    controller.report_validation([0.0, 1.0, 0.0])
    train(controller, 5)
    assert same(state, copy)
    other = validated(horizon=16, reference="uniform")
    other.load_state_dict(state)
    train(other, 5)
    assert same(state, copy)


def test_reset_forgets_feedback():
    controller, fresh = busy(), validated(reference="uniform", feedback_delay=3).state_dict()
    controller.reset()
    assert same(controller.state_dict(), fresh)
    np.testing.assert_allclose(controller.reference, 1 / 3)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ("prior", "uniform", r"checkpoint stands for \[0\.9 .*this run for \[0\.3333.*Resume with the reference"),
        ("uniform", [0.2, 0.2, 0.6], r"checkpoint stands for \[0\.3333 .*this run for \[0\.2 0\.2 0\.6\]"),
        ("target", "prior", r"checkpoint stands for the target, that of this run for \[0\.9"),
        ("prior", "target", r"checkpoint stands for \[0\.9 .*this run for the target"),
    ],
)
def test_state_of_another_reference_is_refused(theirs, ours, message):
    """The error names both, and nothing is changed."""
    state = busy(reference=theirs, class_counts=[900, 90, 10]).state_dict()
    controller = busy(reference=ours, class_counts=[900, 90, 10])
    before = controller.state_dict()
    with pytest.raises(ValueError, match=message):
        controller.load_state_dict(state)
    assert same(controller.state_dict(), before)
    busy(reference=theirs, class_counts=[900, 90, 10]).load_state_dict(state)


@pytest.mark.parametrize("settings", [{"feedback_to": "draw"}, {"feedback": "train", "lambda2": 0.0}])
def test_tilt_ends_with_the_feedback(settings):
    """A run that no longer feeds back to the objective does not keep the moved reference for ever."""
    state = busy().state_dict()
    controller = validated(**{"reference": "uniform", "horizon": 16, **settings})
    controller.load_state_dict(state)
    controller.step_update([0, 1, 2])
    train(controller, 3)
    np.testing.assert_allclose(controller.reference, 1 / 3, rtol=1e-12)


def test_skipped_classes_share_out_their_reference():
    controller = FeedbackController(3, reference=[0.5, 0.3, 0.2])
    controller.skip_classes(np.array([True, False, False]))
    np.testing.assert_allclose(controller.reference, [0.0, 0.6, 0.4])
    assert logit_adjustment(controller.next_probs(), controller.reference)[0] == 0.0
    with pytest.raises(ValueError, match=r"Every class of the reference lacks samples"):
        FeedbackController(3, reference=[1.0, 0.0, 0.0]).skip_classes(np.array([True, False, False]))


def test_tilt_of_other_feedback_is_left_out():
    """A training that goes on with another kind of feedback begins with the reference as it was given."""
    state = busy(feedback="train").state_dict()
    other = validated(horizon=16, reference="uniform")
    other.load_state_dict(state)
    np.testing.assert_allclose(other.reference, 1 / 3, rtol=1e-12)
