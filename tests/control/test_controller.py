"""The controller: the state it keeps, and the order in which draws and reports change it."""

import io
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from control_helpers import class_mixes, labels_from_counts, make_draw, same, state_is_finite
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.schedules import Linear, Shift, Step

# -- the law -------------------------------------------------------------------------------------------


@given(
    q=class_mixes(),
    alpha=st.floats(0.0, 30.0),
    lambda1=st.floats(0.0, 1.0),
    lambda2=st.floats(0.0, 0.5),
    beta=st.floats(0.0, 0.99),
    max_weight=st.one_of(st.floats(1.5, 20.0), st.just(math.inf)),
    floor=st.floats(0.0, 0.3),
    horizon=st.floats(41.0, 100.0),
    seed=st.integers(0, 1000),
)
@pytest.mark.filterwarnings("ignore:min_prob=.* has no effect")
def test_controller_follows_reference(q, alpha, lambda1, lambda2, beta, max_weight, floor, horizon, seed):
    K = q.size
    settings = {"alpha": alpha, "lambda1": lambda1, "lambda2": lambda2, "max_weight": max_weight, "min_prob": floor / K}
    controller = FeedbackController(K, q, horizon=horizon, loss_ema_decay=beta, **settings)
    rng = np.random.default_rng(seed)
    trained_mix, losses, loss_score = q.tolist(), [None] * K, [0.0] * K
    for _ in range(8):
        expected = reference.law(q.tolist(), trained_mix, loss_score, **settings)
        np.testing.assert_allclose(controller.get_probs(), expected, rtol=1e-6, atol=1e-12)
        y, values = rng.integers(0, K, 5), rng.exponential(size=5)
        values[rng.random(5) < 0.1] = math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller.step_update(y, values)
        trained_mix = reference.follow(trained_mix, np.bincount(y, minlength=K).tolist(), horizon)
        loss_score = reference.follow_score(loss_score, reference.standardize(losses, q.tolist()), horizon)
        losses = reference.follow_losses(losses, y.tolist(), values.tolist(), beta)
        np.testing.assert_allclose(controller.trained_mix, trained_mix, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(
            controller.ema_loss, [math.nan if loss is None else loss for loss in losses], rtol=1e-9
        )


@given(q=class_mixes(), seed=st.integers(0, 1000), floor=st.floats(0.0, 0.49), max_weight=st.floats(2.0, 20.0))
@pytest.mark.filterwarnings("ignore:min_prob=.* has no effect")
def test_sums_to_one_and_keeps_floor(q, seed, floor, max_weight):
    settings = {"max_weight": max_weight, "min_prob": floor / q.size}
    controller = FeedbackController(q.size, q, alpha=30.0, lambda2=0.5, horizon=64.0, **settings)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        y = rng.integers(0, q.size, 3)
        controller.step_update(y, rng.exponential(size=3))
        p = controller.get_probs()
        assert p.sum() == pytest.approx(1.0)
        assert (p >= floor / q.size * (1.0 - 1e-12)).all()
        assert (q <= max_weight * p * (1.0 + 1e-12)).all()


def test_first_batch_has_the_target():
    q = [0.6, 0.3, 0.1]
    np.testing.assert_allclose(FeedbackController(3, q).get_probs(), q, rtol=1e-12)


def test_gain_of_zero_ignores_feedback():
    controller = FeedbackController(2, [0.7, 0.3], alpha=0.0, lambda2=1.0)
    controller.step_update([0, 0, 0], [1.0, 2.0, 3.0])
    np.testing.assert_allclose(controller.get_probs(), [0.7, 0.3], rtol=1e-12)


@given(q=class_mixes(2), seed=st.integers(0, 1000))
def test_more_deficit_gives_more_probability(q, seed):
    controller = FeedbackController(q.size, alpha=8.0)  # uniform
    controller.step_update(np.random.default_rng(seed).integers(0, q.size, 7))
    order = np.argsort(controller.deficits)
    assert (np.diff(controller.get_probs()[order]) >= -1e-15).all()
    assert controller.get_probs().argmax() in np.flatnonzero(controller.deficits == controller.deficits.max())


@given(q=class_mixes(), seed=st.integers(0, 1000))
def test_permuted_classes_permute_the_mix(q, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(q.size)  # old class order[i] is new class i
    new_label = np.argsort(order)
    old = FeedbackController(q.size, q, lambda2=0.5, horizon=20.0)
    new = FeedbackController(q.size, q[order], lambda2=0.5, horizon=20.0)
    for _ in range(4):
        y, losses = rng.integers(0, q.size, 6), rng.exponential(size=6)
        old.step_update(y, losses)
        new.step_update(new_label[y], losses)
    np.testing.assert_allclose(new.get_probs(), old.get_probs()[order], rtol=1e-9)


def test_class_with_target_zero_is_never_drawn():
    controller = FeedbackController(3, [0.5, 0.0, 0.5], lambda2=0.5)
    for _ in range(20):
        controller.step_update([0, 1], [1.0, 5.0])  # batches from elsewhere may have it
        assert controller.get_probs()[1] == 0.0
        assert controller.get_probs().min() == 0.0
        assert controller.get_probs().sum() == pytest.approx(1.0)
    assert controller.deficits[1] == 0.0


def test_harder_class_is_drawn_more_often():
    controller = FeedbackController(3, lambda2=0.3)
    for _ in range(3):
        controller.step_update([0, 1, 2], [1.0, 2.0, 3.0])
    p = controller.get_probs()
    assert p[0] < p[1] < p[2]


def test_losses_have_no_unit():
    small, large = FeedbackController(3, lambda2=0.3), FeedbackController(3, lambda2=0.3)
    for losses in ([1.0, 2.0, 5.0], [3.0, 1.0, 2.0], [2.0, 2.0, 2.0]):
        small.step_update([0, 1, 2], np.array(losses) * 1e-6)
        large.step_update([0, 1, 2], np.array(losses) * 1e6 + 1e6)
    np.testing.assert_allclose(small.get_probs(), large.get_probs(), rtol=1e-6)
    assert np.ptp(small.get_probs()) > 0.001


def test_gain_follows_its_schedule():
    by_step = FeedbackController(2, alpha=Linear(0.0, 8.0, 4), horizon=16.0)
    trained_mix = [0.5, 0.5]
    for step in range(8):
        expected = reference.law([0.5, 0.5], trained_mix, alpha=min(2.0 * step, 8.0), max_weight=10.0)
        np.testing.assert_allclose(by_step.get_probs(), expected, rtol=1e-12)
        by_step.step_update([0])
        trained_mix = reference.follow(trained_mix, [1, 0], 16.0)
    by_epoch = FeedbackController(2, alpha=Linear(0.0, 8.0, 4, unit="epoch"))
    by_epoch.step_update([0])
    assert by_epoch.get_probs()[1] == pytest.approx(0.5)
    by_epoch.epoch = 4
    assert by_epoch.get_probs()[1] > 0.6


def test_tiny_target_gives_a_mix():
    p = FeedbackController(2, [1.0 - 1e-320, 1e-320]).get_probs()
    assert p.sum() == pytest.approx(1.0)


def test_returned_arrays_cannot_change_the_state():
    controller = FeedbackController(2)
    with pytest.raises(ValueError, match="read-only"):
        controller.q[0] = 1.0
    controller.get_probs()[:] = 0.0
    draw = make_draw(controller, [2, 2])
    controller.get_probs()[:] = 0.0
    assert draw.probs.tolist() == controller.get_probs().tolist() == [0.5, 0.5]


def test_reset_restores_the_first_state():
    controller = FeedbackController(3, [0.5, 0.3, 0.2], lambda2=0.5)
    fresh = controller.state_dict()
    make_draw(controller, [1, 1, 1])
    controller.step_update([0, 0, 1], [1.0, 2.0, 3.0])
    make_draw(controller, [3, 0, 0])
    assert not same(controller.state_dict(), fresh)
    controller.reset()
    assert same(controller.state_dict(), fresh)


# -- horizon -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "target", "size", "expected"),
    [(2, None, 64, 16), (10, None, 64, 16), (1000, None, 64, 1563), (2, [0.99, 0.01], 64, 157), (50, None, 4, 1250)],
)
def test_default_horizon_follows_batch_and_target(K, target, size, expected):
    """The rarest class is expected 100 times within the horizon."""
    assert FeedbackController(K, target, batch_size=size).horizon == expected
    bound = FeedbackController(K, target)
    bound.bind_batch(size)
    assert bound.horizon == expected == reference.horizon(size, bound.q.tolist())


def test_given_horizon_stays():
    controller = FeedbackController(50, horizon=20)
    controller.bind_batch(4)
    assert controller.horizon == 20


def test_sampler_binds_the_batch_of_all_ranks():
    labels = np.arange(10).repeat(8)
    sampler = FeedbackBatchSampler(labels, 2, world_size=4)
    assert sampler.controller.batch_size == 8
    assert sampler.controller.horizon == 125


def test_default_horizon_follows_a_moving_target():
    """The horizon of each draw is that of its target, and the trained mix has it as its memory."""
    controller = FeedbackController(3, Shift(Linear(0.0, 1.0, 4), start=PRIOR), batch_size=10)
    trained_mix, horizons = PRIOR, []
    for _ in range(6):
        before = controller.q
        controller.next_probs()
        horizons.append(controller.horizon)
        assert horizons[-1] == reference.horizon(10, controller.q.tolist())
        rescaled = [r * new / old for r, new, old in zip(trained_mix, controller.q, before, strict=True)]
        controller.step_update([0, 0, 1])
        trained_mix = reference.follow([r / sum(rescaled) for r in rescaled], [2, 1, 0], horizons[-1])
        np.testing.assert_allclose(controller.trained_mix, trained_mix, rtol=1e-9)
    assert horizons == pytest.approx([500, 102, 57, 40, 30, 30], abs=1)


def test_gain_is_checked_again_for_the_batch():
    """A gain that is stable for small batches is refused for large ones, whose horizon is shorter."""
    controller = FeedbackController(10, alpha=40.0, batch_size=8)
    assert controller.horizon == 125
    match = (
        r"must be below 2 \* horizon - 1 = 31.*largest stable alpha is just below 31.*set horizon above 20\.5 batches"
    )
    with pytest.raises(ValueError, match=match):
        controller.bind_batch(64)
    with pytest.raises(ValueError, match=match):
        FeedbackBatchSampler(np.arange(10).repeat(8), 64, controller=FeedbackController(10, alpha=40.0, batch_size=8))
    FeedbackController(10, alpha=40.0, horizon=20.6).bind_batch(64)
    FeedbackController(10, alpha=30.9, batch_size=8).bind_batch(64)


def test_gain_is_checked_for_the_shortest_horizon_on_the_way():
    """A target that moves has its shortest horizon where its rarest class has most, at an end or in between."""
    across = Shift(Linear(0.0, 1.0, 10), start=[0.98, 0.02], end=[0.02, 0.98])
    with pytest.raises(ValueError, match=r"must be below 2 \* horizon - 1 = 31"):
        FeedbackController(2, across, alpha=40.0)  # 79 batches at both ends, 16 where the classes are equal
    FeedbackController(2, [0.98, 0.02], alpha=40.0)
    for ends in ({"start": PRIOR}, {"start": "uniform", "end": PRIOR}):
        with pytest.raises(ValueError, match=r"must be below 2 \* horizon - 1 = 31"):
            FeedbackController(3, Shift(Linear(0.0, 1.0, 10), **ends), alpha=40.0)
    with pytest.raises(ValueError, match=r"must be below 2 \* horizon - 1 = 39"):
        FeedbackController(3, Shift(Linear(0.0, 1.0, 10), start=PRIOR), alpha=40.0, horizon=20)


def test_losses_with_a_long_horizon_are_told_once():
    """Losses fed back to the draw with a horizon beyond the epoch act slowly; the remedies end the warning."""
    labels = np.arange(10).repeat(16)
    with pytest.warns(UserWarning, match=r"horizon of 125 batches, longer than an epoch of 20.*feedback_to") as caught:
        FeedbackBatchSampler(labels, 8, controller=FeedbackController(10, lambda2=0.3))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeedbackBatchSampler(labels, 8, controller=FeedbackController(10, lambda2=0.3, horizon=20))
        FeedbackBatchSampler(labels, 8, controller=FeedbackController(10, lambda2=0.3, feedback_to="objective"))
        FeedbackBatchSampler(labels, 8, controller=FeedbackController(10))


# -- bounds --------------------------------------------------------------------------------------------


def test_min_prob_without_effect_is_told_once():
    with pytest.warns(
        UserWarning, match=r"min_prob=0\.01 has no effect: max_weight=10 keeps every class at 0\.02"
    ) as c:
        controller = FeedbackController(3, [0.5, 0.3, 0.2], min_prob=0.01)
    assert len(c) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller.bind_batch(8)
        controller.reset()
        FeedbackController(3, [0.5, 0.3, 0.2])  # the remedies
        FeedbackController(3, [0.5, 0.3, 0.2], max_weight=5.0)
        FeedbackController(3, [0.5, 0.3, 0.2], min_prob=0.03)  # this one acts on two classes


def test_floors_beyond_one_are_refused():
    match = r"min_prob=0\.3 and max_weight=1\.25 give the classes more than all samples: .* sums to 1\.24\. Lower"
    with pytest.raises(ValueError, match=match):
        FeedbackController(3, [0.8, 0.1, 0.1], min_prob=0.3, max_weight=1.25)
    FeedbackController(3, [0.8, 0.1, 0.1], min_prob=0.1, max_weight=1.25)
    FeedbackController(3, [0.8, 0.1, 0.1], min_prob=0.3, max_weight=10.0)


def test_bound_of_one_turns_feedback_off():
    with pytest.warns(
        UserWarning, match=r"The feedback is off: with max_weight=1.*A larger max_weight, for example 10"
    ):
        controller = FeedbackController(2, max_weight=1.0)
    for _ in range(5):
        controller.step_update([0, 0, 0])
    np.testing.assert_allclose(controller.get_probs(), 0.5, rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeedbackController(2, max_weight=1.01)


# -- draws in flight -----------------------------------------------------------------------------------


def test_get_probs_is_that_of_the_oldest_draw():
    """Between a draw and its step_update, get_probs() is exactly the p of that draw."""
    controller = FeedbackController(2)
    draws = [make_draw(controller, counts) for counts in ([4, 0], [1, 3], [2, 2])]
    for draw in draws:
        assert controller.get_probs().tolist() == draw.probs.tolist()
        controller.step_update(labels_from_counts(draw.counts))
    assert controller.in_flight == ()
    assert controller.get_probs().tolist() == controller.next_probs().tolist()


def test_draw_counts_as_trained_at_once():
    controller, seen = FeedbackController(2), FeedbackController(2)
    make_draw(controller, [3, 1])
    seen.step_update([0, 0, 0, 1])
    assert controller.next_probs().tolist() == seen.next_probs().tolist()


def test_report_of_the_drawn_counts_changes_nothing():
    controller = FeedbackController(2)
    draw = make_draw(controller, [3, 1])
    before = controller.trained_mix
    controller.step_update(labels_from_counts(draw.counts))
    assert controller.trained_mix.tolist() == before.tolist()


def test_reported_counts_replace_drawn_counts():
    controller, seen = FeedbackController(3), FeedbackController(3)
    for drawn, kept in (([2, 2, 4], [2, 2, 0]), ([3, 3, 2], [0, 3, 1]), ([2, 3, 3], [2, 3, 3])):
        make_draw(controller, drawn)
        controller.step_update(labels_from_counts(kept))
        seen.step_update(labels_from_counts(kept))
        np.testing.assert_allclose(controller.trained_mix, seen.trained_mix, rtol=1e-12)
        np.testing.assert_allclose(controller.get_probs(), seen.get_probs(), rtol=1e-9)


def test_late_report_corrects_the_trained_mix():
    """The mix is linear in its batches, so it ends as if the first batch had had the reported counts."""
    controller = FeedbackController(3, horizon=16.0)
    for drawn in ([2, 2, 4], [3, 3, 2], [2, 3, 3]):
        make_draw(controller, drawn)
    controller.step_update(labels_from_counts([2, 0, 0]))
    trained_mix = [1 / 3] * 3
    for seen in ([2, 0, 0], [3, 3, 2], [2, 3, 3]):
        trained_mix = reference.follow(trained_mix, seen, 16.0)
    np.testing.assert_allclose(controller.trained_mix, trained_mix, rtol=1e-12)


@pytest.mark.parametrize("later", [[], [[3, 1]], [[3, 1], [0, 4]]])
def test_skipped_step_removes_its_draw(later):
    """The trained mix is as if the batch had never been drawn."""
    controller = FeedbackController(2, horizon=16.0)
    for drawn in ([1, 3], *later):
        make_draw(controller, drawn)
    controller.step_update([])
    trained_mix = [0.5, 0.5]
    for drawn in later:
        trained_mix = reference.follow(trained_mix, drawn, 16.0)
    np.testing.assert_allclose(controller.trained_mix, trained_mix, rtol=1e-12)


def test_feedback_takes_effect_after_its_delay():
    controller = FeedbackController(2, lambda2=0.5, feedback_delay=3)
    make_draw(controller, [2, 2])
    controller.step_update([0, 0, 1, 1], [1.0, 1.0, 3.0, 3.0])
    for _ in range(2):
        controller.next_probs()
        assert np.isnan(controller.ema_loss).all()
        make_draw(controller, [2, 2])
    controller.next_probs()
    assert controller.ema_loss.tolist() == [1.0, 3.0]


def test_withdrawn_draw_can_be_redrawn():
    """After a withdrawal, draws are made again; one that was overtaken stays in the trained mix, and is redrawn."""
    controller = FeedbackController(2)
    overtaken, reported = make_draw(controller, [3, 1]), make_draw(controller, [2, 2])
    before = controller.trained_mix.tolist()
    ahead = [make_draw(controller, [1, 3]), make_draw(controller, [1, 3])]
    controller.report(reported.counts, draw=reported)
    assert controller.in_flight == (overtaken, *ahead)
    assert controller.withdraw() == [overtaken, *ahead]
    assert controller.in_flight == ()
    assert (controller.draws, controller.trained_mix.tolist()) == (2, before)
    controller.record_draw(overtaken, redrawn=True)
    assert controller.in_flight == (overtaken,)
    assert (controller.draws, controller.trained_mix.tolist()) == (2, before)
    assert make_draw(controller, [1, 3]).probs.tolist() == ahead[0].probs.tolist()


def test_report_of_a_newer_draw():
    controller = FeedbackController(2)
    first, second = make_draw(controller, [4, 0]), make_draw(controller, [0, 4])
    controller.report(second.counts, draw=second)
    assert controller.in_flight == (first,)


@pytest.mark.parametrize("num_classes", [3, 3000, 100_000])
def test_forgotten_draws_are_an_error(num_classes):
    """If the batch of a report may have been forgotten, an error names the settings that draw so far ahead."""
    controller, counts = FeedbackController(num_classes), np.bincount([0, 1], minlength=num_classes)
    draw = replace(controller.plan_draw(), counts=counts)

    def draw_ahead(number):
        for draw_id in range(controller.draws, controller.draws + number):
            controller.record_draw(replace(draw, draw_id=draw_id))

    limit = {3: 4096, 3000: 699, 100_000: 512}[num_classes]
    draw_ahead(limit)
    controller.step_update([0, 1])
    draw_ahead(2)
    for question in (controller.get_probs, controller.get_reference, lambda: controller.step_update([0, 1])):
        with pytest.raises(
            RuntimeError, match=rf"More than {limit} batches .* lower its prefetch_factor or num_workers"
        ):
            question()
    assert controller.draws == limit + 2  # a loop that never reports goes on
    controller.forget_in_flight()
    draw_ahead(1)
    controller.step_update([0, 1])
    controller.remember(limit + 9)
    draw_ahead(limit + 9)
    assert controller.oldest.draw_id == limit + 3


# -- nothing poisons (law 7) ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_infinite_loss_is_left_out_with_one_warning(bad):
    controller = FeedbackController(3, alpha=1.0, lambda2=0.5)
    controller.step_update([0, 1, 2], [1.0, 2.0, 3.0])
    with pytest.warns(UserWarning, match=r"Some losses are NaN or infinite\. They are left out") as warned:
        controller.step_update([0, 0, 1], [bad, 5.0, bad])
    assert len(warned) == 1
    np.testing.assert_allclose(controller.ema_loss, [0.9 * 1.0 + 0.1 * 5.0, 2.0, 3.0])
    assert state_is_finite(controller)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller.step_update([0, 1, 2], [bad, bad, bad])
    assert state_is_finite(controller)


@pytest.mark.parametrize("sums", [[math.nan, 2.0], [math.inf, 2.0]])
def test_infinite_loss_sum_is_left_out(sums):
    controller = FeedbackController(2, lambda2=0.5)
    with pytest.warns(UserWarning, match="NaN or infinite"):
        controller.report(np.array([2, 2]), np.array(sums), np.array([2, 2]))
    np.testing.assert_array_equal(controller.ema_loss, [math.nan, 1.0])
    assert state_is_finite(controller)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("size", [1e-300, 1e38, 1e200, 1.5e308])
def test_huge_losses_leave_the_state_finite(size):
    controller = FeedbackController(3, lambda2=0.5)
    for _ in range(3):
        controller.step_update([0, 1, 2], [size, 1.1 * size, 0.5 * size])
        assert state_is_finite(controller)


@pytest.mark.parametrize("losses", [None, [], torch.zeros(0)])
def test_empty_batch_changes_nothing(losses):
    controller = FeedbackController(2, lambda2=0.5)
    controller.step_update([0, 0, 1], [1.0, 2.0, 3.0])
    trained_mix, ema_loss = controller.trained_mix, controller.ema_loss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller.step_update([], losses)
        controller.step_update(torch.zeros(0, dtype=torch.int64), losses)
    assert controller.trained_mix.tolist() == trained_mix.tolist()
    assert controller.ema_loss.tolist() == ema_loss.tolist()
    assert state_is_finite(controller)


def test_class_without_loss_counts_as_average():
    controller = FeedbackController(3, alpha=4.0, lambda2=0.5, max_weight=math.inf)
    for _ in range(5):
        controller.step_update([0, 2], [1.0, 3.0])
        controller.step_update([1])
    assert math.isnan(controller.ema_loss[1])
    assert state_is_finite(controller)
    # Classes 0 and 2 have the same deficit and the loss scores -e and +e. The class without a loss has the score 0, so
    # losses do not change its ratio to their geometric mean.
    plain = FeedbackController(3, alpha=4.0, max_weight=math.inf)
    for _ in range(5):
        plain.step_update([0, 2])
        plain.step_update([1])
    p, without = controller.get_probs(), plain.get_probs()
    assert p[0] < p[2]
    assert p[1] / math.sqrt(p[0] * p[2]) == pytest.approx(without[1] / math.sqrt(without[0] * without[2]))


def test_equal_losses_change_nothing():
    with_losses, without = (FeedbackController(3, lambda2=x, horizon=64.0) for x in (5.0, 0.0))
    for _ in range(3):
        with_losses.step_update([0, 1, 2, 2], [0.1 + 0.2, 0.3, 0.3, 0.3])
        without.step_update([0, 1, 2, 2])
    np.testing.assert_allclose(with_losses.get_probs(), without.get_probs(), rtol=1e-9)


def test_long_absence_does_not_wind_up():
    """The deficit is at most 1, and after 10,000 batches the same as after ten horizons."""
    long, short = FeedbackController(2, horizon=16.0), FeedbackController(2, horizon=16.0)
    for batch in range(10_000):
        long.step_update([0])
        if batch < 160:
            short.step_update([0])
    assert long.deficits.max() <= 1.0
    # What the start still weighs after 160 batches: (1 - 1/16)^160 / 2 = 1.6e-5 of the mix.
    np.testing.assert_allclose(long.deficits, short.deficits, atol=1e-4)


# -- a target that moves -------------------------------------------------------------------------------

PRIOR = [0.9, 0.08, 0.02]


def shifting(progress, **settings):
    return FeedbackController(3, Shift(progress, start=PRIOR), horizon=40, **settings)


def drawn(controller, size=4000):
    """Draw and train on a batch whose counts are those expected, and return its class mix."""
    probs = controller.next_probs()
    make_draw(controller, np.rint(size * probs).astype(np.int64))
    controller.step_update(labels_from_counts(controller.in_flight[0].counts))
    return probs


def test_moving_target_leaves_no_deficit():
    controller = shifting(Step(0.0, 1.0, at=50))
    probs = [drawn(controller) for _ in range(100)]
    np.testing.assert_allclose(probs[:50], np.tile(PRIOR, (50, 1)), atol=2e-3)
    # Batches of 4000 are rounded to whole samples, so a class is at most 1/2 sample off.
    np.testing.assert_allclose(probs[50:], np.full((50, 3), 1 / 3), atol=2e-3)
    assert controller.q.tolist() == [1 / 3] * 3


@given(
    start=class_mixes(4, 4),
    end=class_mixes(4, 4),
    counts=st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any),
    before=st.floats(0.0, 1.0),
    after=st.floats(0.0, 1.0),
)
def test_moving_target_keeps_deficits_in_proportion(start, end, counts, before, after):
    controller = FeedbackController(4, Shift(Step(before, after, at=1), start, end), horizon=1e6, alpha=2.0)
    controller.next_probs()
    controller.report(np.array(counts))
    served = controller.trained_mix / controller.q
    controller.next_probs()
    np.testing.assert_allclose(controller.q, (1 - after) * np.array(start) + after * np.array(end))
    assert controller.trained_mix.sum() == pytest.approx(1.0)
    moved = controller.trained_mix / controller.q
    np.testing.assert_allclose(moved / moved.mean(), served / served.mean(), rtol=1e-9)


def test_new_class_begins_without_a_deficit():
    controller = FeedbackController(2, Shift(Step(0.0, 1.0, at=3), start=[1.0, 0.0]), horizon=20)
    assert controller.next_probs().tolist() == [1.0, 0.0]
    for _ in range(3):
        controller.step_update([0] * 8)
    np.testing.assert_allclose(controller.next_probs(), [0.5, 0.5])
    assert controller.deficits.tolist() == [0.0, 0.0]


def test_get_reference_is_that_of_the_oldest_draw():
    controller = shifting(Linear(0.0, 1.0, 4))
    targets = []
    for _ in range(3):
        make_draw(controller, np.rint(100 * controller.next_probs()).astype(np.int64))
        targets.append(controller.q.tolist())
    assert targets[0] == PRIOR
    assert targets[0] != targets[1] != targets[2]
    for target in targets:
        assert controller.get_reference().tolist() == target
        controller.step_update(labels_from_counts(controller.in_flight[0].counts))
    assert controller.get_reference().tolist() == controller.q.tolist()


def test_state_of_another_target_is_refused():
    state = shifting(Step(0.0, 1.0, at=5)).state_dict()
    with pytest.raises(ValueError, match="The state steers to"):
        FeedbackController(3, horizon=40).load_state_dict(state)
    shifting(Linear(0.0, 1.0, 7)).load_state_dict(state)  # the way between the ends is a setting, and may differ


# -- checkpoints ---------------------------------------------------------------------------------------


def busy_controller(**settings):
    controller = FeedbackController(
        3, **{"target_probs": [0.5, 0.3, 0.2], "lambda2": 0.5, "feedback_delay": 4, **settings}
    )
    rng = np.random.default_rng(0)
    for _ in range(7):
        draw = make_draw(controller, rng.multinomial(8, controller.next_probs()))
        if len(controller.in_flight) > 2:
            y = labels_from_counts(controller.in_flight[0].counts)[1:]
            controller.step_update(y, rng.exponential(size=y.size))
    assert len(controller.in_flight) == 2
    assert controller.state_dict()["reports"]
    assert draw.draw_id == 6
    return controller


MOVING = {"target_probs": Shift(Linear(0.0, 1.0, 12), start=[0.5, 0.3, 0.2])}


@pytest.mark.parametrize("settings", [{}, MOVING])
def test_loaded_state_continues_exactly(settings):
    controller = busy_controller(**settings)
    file = io.BytesIO()
    torch.save(controller.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert same(state, controller.state_dict())
    law = {
        "target_probs": [0.5, 0.3, 0.2],
        "lambda2": 0.5,
        "feedback_delay": 4,
        "horizon": controller.horizon,
        **settings,
    }
    other = FeedbackController(3, **law)
    other.load_state_dict(state)
    assert same(other.state_dict(), controller.state_dict())
    controller.withdraw()
    rng = np.random.default_rng(1)
    for _ in range(10):
        counts = rng.multinomial(8, controller.next_probs())
        losses = rng.exponential(size=8)
        for each in (controller, other):
            make_draw(each, counts)
            y = labels_from_counts(each.in_flight[0].counts)
            each.step_update(y, losses)
        assert other.get_probs().tolist() == controller.get_probs().tolist()
        assert same(other.state_dict(), controller.state_dict())


def test_state_is_a_snapshot():
    controller = busy_controller()
    state, copy = controller.state_dict(), controller.state_dict()
    controller.step_update([0, 1], [5.0, 6.0])
    make_draw(controller, [8, 0, 0])
    assert same(state, copy)
    loaded = FeedbackController(3, [0.5, 0.3, 0.2], lambda2=0.5, feedback_delay=4, horizon=controller.horizon)
    loaded.load_state_dict(state)
    for _ in range(5):
        loaded.step_update([0, 1], [5.0, 6.0])
        make_draw(loaded, [8, 0, 0])
    assert same(state, copy)


def test_refused_state_changes_nothing():
    controller = busy_controller()
    before = controller.state_dict()
    with pytest.raises(ValueError, match=r"reads state version \d+, got 99\. Resume with the version"):
        controller.load_state_dict({**before, "version": 99})
    with pytest.raises(ValueError, match=r"got None"):
        controller.load_state_dict({})
    with pytest.raises(ValueError, match=r"made with num_classes = 2, this run has 3\. Resume with the same data set"):
        controller.load_state_dict(FeedbackController(2).state_dict())
    with pytest.raises(
        ValueError, match=r"steers to \[0\.3333 .*this controller to \[0\.5.*Resume with the target_probs"
    ):
        controller.load_state_dict(FeedbackController(3).state_dict())
    assert same(controller.state_dict(), before)


# -- target --------------------------------------------------------------------------------------------


def test_skipped_classes_share_out_their_target():
    controller = FeedbackController(4, [0.4, 0.3, 0.2, 0.1])
    controller.skip_classes(np.array([True, False, False, True]))
    np.testing.assert_allclose(controller.q, [0.0, 0.6, 0.4, 0.0])
    np.testing.assert_allclose(controller.get_probs(), [0.0, 0.6, 0.4, 0.0], atol=1e-5)
    with pytest.raises(ValueError, match=r"Every class with a target lacks samples"):
        controller.skip_classes(np.array([False, True, True, False]))


# -- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_probs": [0.5, 0.5]}, r"one entry per class, shape \(3,\), got shape \(2,\)"),
        ({"target_probs": [1.5, -0.5, 0.0]}, r"must not be negative, got -0\.5 for class 1"),
        ({"target_probs": [math.nan, 0.5, 0.5]}, r"must be finite, got nan for class 0"),
        ({"target_probs": [0.5, 0.5, 0.5]}, r"must sum to one, got a sum of 1\.5\. Divide it by its sum"),
        ({"target_probs": "prior"}, r"pass class_counts=np\.bincount\(labels, minlength=num_classes\)"),
        ({"target_probs": "flat"}, r"must be 'uniform', 'prior', 'sqrt'"),
        ({"min_prob": 1 / 3}, r"min_prob must lie in \[0, 0\.333\d+\) \(1/K for 3 classes\), got 0\.333"),
        ({"alpha": Linear(4.0, -1.0, 5)}, r"extremes of alpha \(Linear\) must lie in \[0, inf\), got -1\.0"),
    ],
)
def test_invalid_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeedbackController(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize(
    ("labels", "losses", "message"),
    [
        ([0, 1], [1.0], r"one value per label, shape \(2,\), got shape \(1,\)\. Compute them with reduction=\"none\""),
        ([0, 1], 0.7, r"one value per label, shape \(2,\), got shape \(\)"),
        ([0, 1], [[1.0], [2.0]], r"got shape \(2, 1\)"),
        ([[0, 1]], None, r"labels must have shape \(N,\), one class per sample, got shape \(1, 2\)"),
        ([0.0, 1.0], None, r"labels must be integers, got float64"),
        ([0, 3], None, r"labels must lie in \[0, 3\), got 3"),
        ([-1, 0], None, r"labels must be at least 0, got -1"),
    ],
)
def test_refused_report_changes_nothing(labels, losses, message):
    controller = FeedbackController(3)
    make_draw(controller, [1, 1, 0])
    before = controller.state_dict()
    with pytest.raises(ValueError, match=message):
        controller.step_update(labels, losses)
    assert same(controller.state_dict(), before)


def test_tensors_are_accepted_as_losses():
    controller = FeedbackController(2)
    controller.step_update(torch.tensor([0, 1]), torch.tensor([1.0, 2.0], requires_grad=True))
    controller.step_update(torch.tensor([0, 1]), torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    controller.step_update(torch.tensor([0, 1]), torch.tensor([1.0, 2.0], dtype=torch.float16))
    assert controller.ema_loss.tolist() == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("counts", [[np.nan, 1, 1], [-1, 1, 1], [1, 1], "abc", None])
def test_wrong_counts_are_refused(counts):
    controller = FeedbackController(3)
    with pytest.raises((TypeError, ValueError), match="counts must"):
        controller.report(counts)
    assert np.isfinite(controller.get_probs()).all()


def test_draw_is_reported_once():
    controller = FeedbackController(3)
    draw = make_draw(controller, [1, 1, 1])
    controller.report(draw.counts, draw=draw)
    with pytest.raises(RuntimeError, match="Draw 0 is not in flight"):
        controller.report(draw.counts, draw=draw)
