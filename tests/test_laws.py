"""The laws that the design promises, held end to end: controller, sampler, weights and loaders together."""

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from lightning_fair import FeedbackBatchSampler, FeedbackController, importance_weights
from lightning_fair.common.class_mix import total_variation
from lightning_fair.control import law
from lightning_fair.schedules import Constant


def long_tailed(sizes, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(seed).shuffle(labels)
    return labels


def ahead(sampler, num_prefetched, deliver, report):
    """Deliver batches from a loader that draws ``num_prefetched`` batches ahead, and report each to the controller.

    ``report(batch)`` returns the arguments of ``step_update``. Return p and the indices of each batch, in order.
    """
    drawn, delivered, batches = [], [], iter(sampler)
    while len(delivered) < deliver:
        while len(drawn) < num_prefetched + 1 and (batch := next(batches, None)) is not None:
            drawn.append(batch)
        batch = drawn.pop(0)
        delivered.append((sampler.controller.get_probs().tolist(), batch))
        sampler.controller.step_update(*report(batch))
    return delivered


# -- law 1: mix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_prefetched", [0, 3])
def test_counts_are_floor_or_ceiling(num_prefetched):
    """Each count of each batch is the floor or the ceiling of batch * p."""
    labels = long_tailed([300, 100, 30, 10, 3])
    controller = FeedbackController(5, "sqrt", alpha=11.5, lambda2=0.5, class_counts=np.bincount(labels))
    sampler = FeedbackBatchSampler(labels, 33, 200, controller)
    rng = np.random.default_rng(0)
    mixes = []
    for p, batch in ahead(sampler, num_prefetched, 200, lambda batch: (labels[batch], rng.exponential(size=33))):
        counts = np.bincount(labels[batch], minlength=5)
        assert (counts >= np.floor(33 * np.array(p) - 1e-9)).all()
        assert (counts <= np.ceil(33 * np.array(p) + 1e-9)).all()
        mixes.append(p)
    assert np.ptp(mixes, axis=0).min() > 0.02  # p did move


# -- law 2: unbiased -----------------------------------------------------------------------------------

SIZES = [600, 250, 100, 40, 10]


def swinging_losses(rng):
    """Losses that have nothing to do with the samples, of a class order that changes every 25 batches."""
    scale, batches = np.ones(5), 0

    def losses(y):
        nonlocal scale, batches
        if batches % 25 == 0:
            scale = rng.permutation([0.1, 0.3, 1.0, 3.0, 10.0])
        batches += 1
        return scale[y] * rng.exponential(size=len(y))

    return losses


@pytest.mark.parametrize("reference_mix", ["target", "prior"])
@pytest.mark.parametrize("target", ["uniform", [0.1, 0.1, 0.2, 0.2, 0.4]], ids=["uniform", "rising"])
def test_weighted_mean_is_unbiased(reference_mix, target):
    """The mean weighted loss is the risk under the reference, while p swings."""
    labels = long_tailed(SIZES)
    rng = np.random.default_rng(1)
    f = 3.0 * rng.permutation(5)[labels] + rng.normal(size=labels.size)  # any fixed function of the items
    controller = FeedbackController(5, target, alpha=11.5, lambda2=0.5)
    mix = controller.q if reference_mix == "target" else np.bincount(labels) / labels.size
    risk = sum(mix[c] * f[labels == c].mean() for c in range(5))
    sampler = FeedbackBatchSampler(labels, 20, 1000, controller, seed=2)
    losses = swinging_losses(rng)
    weighted, plain, probs = [], [], []
    for batch in sampler:
        y, p = labels[batch], controller.get_probs()
        weighted.append((importance_weights(y, mix, p).double().numpy() * f[batch]).mean())
        plain.append(f[batch].mean())
        probs.append(p)
        controller.step_update(y, losses(y))
    assert (np.max(probs, axis=0) > 1.8 * np.min(probs, axis=0)).all()
    # Given the past, each batch is right on average, so the errors are uncorrelated and the standard error of
    # their mean is at most deviation / sqrt(batches): within a class items come without replacement, which
    # only takes noise away. Four of them are passed by chance once in 16,000 seeds.
    error = np.std(weighted) / math.sqrt(len(weighted))
    assert abs(np.mean(weighted) - risk) <= 4.0 * error
    if reference_mix == "prior":
        assert abs(np.mean(plain) - risk) > 5.0 * error  # without weights the mean is biased


class Indexed(Dataset):
    def __init__(self, labels):
        self.targets = labels

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return index, self.targets[index]


@pytest.mark.slow
def test_weighted_mean_is_unbiased_with_workers():
    labels = long_tailed(SIZES)
    rng = np.random.default_rng(3)
    f = 3.0 * rng.permutation(5)[labels] + rng.normal(size=labels.size)
    controller = FeedbackController(5, alpha=11.5, lambda2=0.5)
    prior = np.bincount(labels) / labels.size
    sampler = FeedbackBatchSampler(Indexed(labels), 20, 500, controller, seed=4)
    loader = DataLoader(Indexed(labels), batch_sampler=sampler, num_workers=2)
    losses = swinging_losses(rng)
    weighted, leads, moved = [], [], 0
    for index, y in loader:
        leads.append(len(controller.in_flight))
        p = controller.get_probs()
        moved += not np.allclose(p, controller.next_probs(), rtol=0.05)
        # The p of the batch's own draw: its counts are the floor or the ceiling of 20 * p.
        counts = np.bincount(y, minlength=5)
        assert (np.abs(counts - 20 * p) < 1.0).all()
        weighted.append((importance_weights(y, prior, p).double().numpy() * f[index]).mean())
        controller.step_update(y, losses(y.numpy()))
    assert max(leads) >= 4  # two workers draw two batches ahead each
    assert moved > 100  # another batch's p would not do
    error = np.std(weighted) / math.sqrt(len(weighted))
    assert abs(np.mean(weighted) - prior @ [f[labels == c].mean() for c in range(5)]) <= 4.0 * error


def test_systematic_draws_reduce_noise():
    """The weighted loss of a batch varies less than with independent draws, whose deviation is known."""
    labels = np.repeat(np.arange(10), 400)
    f = labels + 0.1 * np.random.default_rng(5).normal(size=labels.size)  # differs between classes, little within them
    controller, means = FeedbackController(10), []
    for batch in FeedbackBatchSampler(labels, 128, 400, controller):
        w = importance_weights(labels[batch], controller.q, controller.get_probs())
        means.append((w.numpy() * f[batch]).mean())
        controller.step_update(labels[batch])
    assert np.std(means) <= 0.3 * f.std() / math.sqrt(128)


# -- law 3: fair items ---------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    target=st.sampled_from(["uniform", "prior", "sqrt", "random"]),
    batch_size=st.integers(1, 40),
    alpha=st.floats(0.0, 12.0),
    num_prefetched=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_items_are_used_equally_often(sizes, target, batch_size, alpha, num_prefetched, seed):
    """After every batch the uses of two items of a class differ by at most one."""
    labels, K = long_tailed(sizes, seed), len(sizes)
    rng = np.random.default_rng(seed)
    mix = rng.dirichlet(np.ones(K)) * 0.9 + 0.1 / K if target == "random" else target
    controller = FeedbackController(K, mix, alpha, class_counts=sizes, lambda2=0.3, horizon=16)
    sampler = FeedbackBatchSampler(labels, batch_size, 20, controller, seed=seed)
    uses = np.zeros(labels.size, dtype=int)
    for _, batch in ahead(sampler, num_prefetched, 15, lambda b: (labels[b], rng.exponential(size=len(b)))):
        uses += np.bincount(batch, minlength=labels.size)
        for label in range(K):
            assert np.ptp(uses[labels == label]) <= 1


def test_items_are_used_equally_with_many_classes():
    sizes = np.random.default_rng(6).integers(1, 5, size=200)
    labels = long_tailed(sizes)
    sampler = FeedbackBatchSampler(labels, 8, 600, FeedbackController(200))
    uses = np.zeros(labels.size, dtype=int)
    for batch in sampler:
        uses += np.bincount(batch, minlength=labels.size)
        sampler.controller.step_update(labels[batch])
    for label in range(200):
        assert np.ptp(uses[labels == label]) <= 1
    assert sampler.drawn.min() > 0


# -- law 4: stable -------------------------------------------------------------------------------------

targets = st.lists(st.floats(0.02, 1.0), min_size=2, max_size=6).map(lambda q: np.array(q) / sum(q))
horizons = st.floats(2.0, 64.0)
bounds = st.sampled_from([1.5, 3.0, 10.0, math.inf])


def without_noise(controller):
    """One batch with exactly the counts that are expected."""
    controller.report(controller.get_probs() * 1e6)


def displace(controller, size):
    """Move the trained mix off the target by the share ``size``: into class 0, out of the others."""
    q = controller.q
    state = controller.state_dict()
    moved = (1.0 - size) * q
    moved[0] += size
    state["trained_mix"] = torch.from_numpy(moved)
    controller.load_state_dict(state)


@pytest.mark.slow
@given(q=targets, horizon=horizons, share=st.floats(0.0, 0.97), start=st.integers(0, 5), max_weight=bounds)
def test_accepted_gain_converges(q, horizon, share, start, max_weight):
    """From any state, for every gain that the controller accepts."""
    gain = share * (2.0 * horizon - 1.0)
    controller = FeedbackController(q.size, q, alpha=gain, horizon=horizon, max_weight=max_weight)
    only = np.zeros(q.size)
    only[start % q.size] = 1.0
    for _ in range(int(3 * horizon)):
        controller.report(only)
    assert np.abs(controller.trained_mix - q).max() > 0.001
    # The slowest error left shrinks by 1 - 1/64 a batch at worst, so by e^-18 in 1200 batches.
    for _ in range(1200):
        without_noise(controller)
    np.testing.assert_allclose(controller.trained_mix, q, atol=1e-6)


@given(q=targets, horizon=horizons, share=st.floats(0.0, 1.2), max_weight=bounds)
def test_deficit_shrinks_by_its_factor(q, horizon, share, max_weight):
    """By 1 - (1 + R * alpha * lambda1) / horizon per batch, for every target; R is what the floors leave."""
    gain = share * (2.0 * horizon - 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(law, "check_gain", lambda *settings: None)
        controller = FeedbackController(q.size, q, alpha=gain, horizon=horizon, max_weight=max_weight)
    displace(controller, 1e-8)
    factor = 1.0 - (1.0 + (1.0 - sum(reference.floor(q.tolist(), max_weight))) * gain) / horizon
    before = controller.deficits
    without_noise(controller)
    # What is neglected is of the second order: (gain * deficit)^2 / horizon, below 1e-3 of the deficit here.
    np.testing.assert_allclose(controller.deficits, factor * before, atol=1e-3 * np.abs(before).max())


@pytest.mark.parametrize("horizon", [2.0, 16.0, 50.0])
@pytest.mark.parametrize(("share", "overshoots"), [(0.5, False), (1.0, False), (1.05, True)])
def test_no_overshoot_up_to_horizon_minus_one(horizon, share, overshoots):
    settings = {"horizon": horizon, "max_weight": math.inf}
    controller = FeedbackController(3, [0.5, 0.3, 0.2], alpha=share * (horizon - 1.0), **settings)
    displace(controller, 1e-6)
    sign = np.sign(controller.deficits)
    without_noise(controller)
    # One batch more would bring a deficit over, if at all. At the limit itself it is all but gone.
    gone = np.abs(controller.deficits) < 1e-9
    over = (np.sign(controller.deficits) == -sign) & ~gone
    assert over.all() if overshoots else not over.any()


@pytest.mark.parametrize("horizon", [2.0, 16.0, 50.0])
@pytest.mark.parametrize(("share", "converges"), [(0.99, True), (1.01, False)])
def test_limit_of_the_gain_is_sharp(monkeypatch, horizon, share, converges):
    monkeypatch.setattr(law, "check_gain", lambda *settings: None)
    settings = {"horizon": horizon, "max_weight": math.inf}
    controller = FeedbackController(3, [0.5, 0.3, 0.2], alpha=share * (2.0 * horizon - 1.0), **settings)
    displace(controller, 1e-6)
    before = np.abs(controller.deficits).max()
    for _ in range(300):
        without_noise(controller)
    after = np.abs(controller.deficits).max()
    # |1 - (1 + gain) / horizon|^300 is 0.011 to 0.0027 below the bound and 85 to 360 above it.
    assert after < 0.02 * before if converges else after > 50.0 * before


@pytest.mark.parametrize(("horizon", "lambda1", "largest"), [(16.0, 1.0, "31"), (16.0, 2.0, "15.5"), (8.5, 1.0, "16")])
def test_gain_at_the_limit_is_refused(horizon, lambda1, largest):
    """The message names the largest stable gain and the horizon that the gain would need."""
    bound = float(largest)
    for alpha in (bound, 1.5 * bound, Constant(bound)):
        with pytest.raises(ValueError, match=rf"largest stable alpha is just below {largest} \(no overshoot up to"):
            FeedbackController(3, alpha=alpha, lambda1=lambda1, horizon=horizon)
    assert FeedbackController(3, alpha=np.nextafter(bound, 0.0), lambda1=lambda1, horizon=horizon).horizon == horizon
    with pytest.raises(ValueError, match=rf"set horizon above {(bound * lambda1 + 1) / 2:g} batches"):
        FeedbackController(3, alpha=bound, lambda1=lambda1, horizon=horizon)


def test_drawing_ahead_changes_no_batch():
    labels = long_tailed(SIZES)

    def run(num_prefetched):
        sampler = FeedbackBatchSampler(labels, 24, 200, FeedbackController(5, alpha=15.0))
        return ahead(sampler, num_prefetched, 200, lambda batch: (labels[batch],))

    alone = run(0)
    assert run(8) == alone
    assert run(16) == alone


def test_delay_beyond_prefetching_changes_no_batch():
    """With a feedback delay beyond the number of prefetched batches, that number changes nothing."""
    labels = long_tailed(SIZES)

    def run(num_prefetched, feedback_delay=6):
        controller = FeedbackController(5, alpha=11.5, lambda2=0.5, feedback_delay=feedback_delay)
        sampler = FeedbackBatchSampler(labels, 24, 150, controller)

        def report(batch):
            kept = np.array(batch)[np.array(batch) % 7 > 0]  # some samples are lost
            return labels[kept], (1.0 + labels[kept]) * (1.0 + np.sin(kept.sum() + kept))

        return ahead(sampler, num_prefetched, 150, report)

    alone = run(0)
    assert np.ptp([p for p, _ in alone], axis=0).min() > 0.02
    assert run(2) == alone
    assert run(5) == alone
    assert run(0, feedback_delay=1) != alone  # the delay matters


def test_every_prefetched_batch_has_the_target():
    labels = np.repeat([0, 1], [9900, 100])
    sampler = FeedbackBatchSampler(labels, 256, 400, FeedbackController(2))
    for _, batch in ahead(sampler, 8, 400, lambda batch: (labels[batch],)):
        assert abs(labels[batch].mean() - 0.5) <= 1 / 256


# -- measured behavior of the law ----------------------------------------------------------------------


@pytest.mark.parametrize(("horizon", "measured"), [(16, 11), (32, 24)])
def test_imbalanced_history_is_compensated(horizon, measured):
    labels = np.repeat([0, 1], [9900, 100])
    controller = FeedbackController(2, horizon=horizon)
    for _ in range(20 * horizon):
        controller.step_update(np.repeat([0, 1], [253, 3]))
    sampler = FeedbackBatchSampler(labels, 256, 100, controller)
    batches = 0
    for batch in sampler:
        if np.abs(controller.trained_mix - 0.5).max() <= 0.01:
            break
        controller.step_update(labels[batch])
        batches += 1
    _, expected = reference.settle(
        [0.5, 0.5], [253 / 256, 3 / 256], alpha=8.0, horizon=horizon, until=0.01, batches=100
    )
    # Each batch is within one sample of its expectation. Near the end that is worth at most one batch.
    assert abs(batches - expected) <= 1
    assert abs(batches - measured) <= 2


@pytest.mark.parametrize(("alpha", "measured"), [(0.0, 0.143), (2.0, 0.206), (8.0, 0.235), (16.0, 0.242)])
def test_lost_samples_are_compensated(alpha, measured):
    """Half of the samples of one class are lost before training."""
    labels = np.repeat(np.arange(4), 1000)
    controller = FeedbackController(4, alpha=alpha)
    sampler = FeedbackBatchSampler(labels, 256, 600, controller)
    rng = np.random.default_rng(7)
    trained = np.zeros(4)
    for draw_id, batch in enumerate(sampler):
        y = labels[batch]
        kept = y[(y != 0) | (rng.random(256) < 0.5)]
        controller.step_update(kept)
        if draw_id >= 200:
            trained += np.bincount(kept, minlength=4) / kept.size
    mix, _ = reference.settle([0.25] * 4, [0.25] * 4, alpha=alpha, horizon=16.0, kept=[0.5, 1.0, 1.0, 1.0])
    assert mix[0] == pytest.approx(measured, abs=0.002)  # that was a simulation with noise, too
    # About 64 of class 0 are drawn and halved: a deviation of at most sqrt(122 / 4) / 224 = 0.025 in the share,
    # and without feedback 0.025 / sqrt(400) = 0.0012 in the mean over 400 batches; four times that.
    assert trained[0] / 400 == pytest.approx(mix[0], abs=0.005)


@pytest.mark.slow
@settings(max_examples=20)
@given(
    q=targets,
    losses=st.lists(st.floats(0.1, 10.0), min_size=6, max_size=6),
    gain=st.floats(2.0, 16.0),
    lambda1=st.floats(0.5, 1.5),
    lambda2=st.floats(0.0, 0.4),
    max_weight=bounds,
)
def test_loss_feedback_rests_at_its_closed_form(q, losses, gain, lambda1, lambda2, max_weight):
    losses = np.array(losses[: q.size])
    settings = {"alpha": gain / lambda1, "lambda1": lambda1, "lambda2": lambda2, "max_weight": max_weight}
    controller = FeedbackController(q.size, q, horizon=64.0, **settings)
    for _ in range(1200):
        counts = controller.get_probs() * 1e6
        controller.report(counts, counts * losses, counts)
    z = reference.standardize(losses.tolist(), q.tolist())
    # A start weighs at most (1 - 1/64)^1200 = 6e-9 at the end, in e and in r alike.
    np.testing.assert_allclose(controller.get_probs(), reference.at_rest(q.tolist(), z, **settings), atol=1e-6)


@pytest.mark.parametrize("K", [2, 10, 30, 100])
@pytest.mark.parametrize("lambda2", [0.1, 0.5])
def test_loss_feedback_rests_at_default_gain(K, lambda2):
    controller = FeedbackController(K, lambda2=lambda2)
    losses = np.ones(K)
    losses[0] = 2.0  # one hard class: the largest z there is, sqrt(K - 1)
    for _ in range(1000):
        counts = controller.get_probs() * 1e6
        controller.report(counts, counts * losses, counts)
    at_rest = controller.get_probs()
    assert at_rest[0] * K > 1.0 + 0.5 * lambda2
    without_noise(controller)
    np.testing.assert_allclose(controller.get_probs(), at_rest, rtol=1e-6)


@pytest.mark.parametrize(("K", "lambda2"), [(2, 1.0), (10, 0.3), (20, 0.5), (60, 0.3), (100, 1.0)])
def test_loss_feedback_is_stable_below_the_limit(K, lambda2):
    largest = min(3.0 + 1.0 / 3.0, math.sqrt(K - 1))
    limit = (2 * 40 - 1) / (1 + lambda2 * largest)
    with pytest.raises(ValueError, match=r"largest stable alpha is just below"):
        FeedbackController(K, alpha=1.001 * limit, lambda2=lambda2, horizon=40.0)
    controller = FeedbackController(K, alpha=0.95 * limit, lambda2=lambda2, horizon=40.0)
    losses = np.ones(K)
    losses[0] = 2.0
    probs = []
    for _ in range(3000):
        probs.append(controller.get_probs())
        counts = probs[-1] * 1e6
        controller.report(counts, counts * losses, counts)
    assert np.ptp(probs[-50:], axis=0).max() * K < 1e-4
    assert probs[-1].argmax() == 0


def test_harder_class_is_drawn_lambda2_more_often():
    """One standard deviation of the loss gives about lambda2 more draws."""
    controller = FeedbackController(4, alpha=16.0, lambda2=0.25)
    for _ in range(500):
        counts = controller.get_probs() * 1e6
        controller.report(counts, counts * [1.0, 2.0, 3.0, 4.0], counts)
    x = controller.get_probs() * 4
    z = np.array(reference.standardize([1.0, 2.0, 3.0, 4.0], [0.25] * 4))
    # x = 1 + lambda2 * z + (mean of log x - log x) / alpha, and |log x| < 0.45: off by less than 2 * 0.45 / 16.
    np.testing.assert_allclose(x, 1.0 + 0.25 * z, atol=0.056)


@pytest.mark.parametrize("K", [2, 10])
def test_batches_recover_from_imbalanced_history(K):
    """After ten batches of 99:1 the batches are back at the target, unlike those of a count deficit."""
    labels = np.repeat(np.arange(K), 1000)
    controller = FeedbackController(K)
    for _ in range(10):
        controller.step_update(np.repeat(np.arange(K), [256 - 3 * (K - 1)] + [3] * (K - 1)))
    distances = []
    for batch in FeedbackBatchSampler(labels, 256, 100, controller):
        distances.append(total_variation(np.bincount(labels[batch], minlength=K) / 256, controller.q))
        controller.step_update(labels[batch])
    assert max(distances[50:]) <= 0.02


def test_no_batch_has_one_class_only():
    labels = np.repeat([0, 1], [9900, 100])
    controller = FeedbackController(2)
    for batch in FeedbackBatchSampler(labels, 256, 200, controller):
        p = controller.get_probs()
        assert 0.45 < p[0] < 0.55
        controller.step_update(labels[batch])


# -- law 7: nothing poisons ----------------------------------------------------------------------------


def test_faulty_run_ends_at_the_target():
    """Skipped steps, missing classes, and losses that are NaN, infinite or huge."""
    labels = long_tailed(SIZES)
    controller = FeedbackController(5, lambda2=0.3)
    sampler = FeedbackBatchSampler(labels, 40, 300, controller)
    rng = np.random.default_rng(8)

    def train_badly():
        for batch in sampler:
            y = labels[batch]
            losses = rng.choice([1.0, math.nan, math.inf, -math.inf, 1e30], size=40, p=[0.6, 0.1, 0.1, 0.1, 0.1])
            fate = rng.integers(0, 4)
            if fate == 0:
                controller.step_update([])  # the step was skipped
            elif fate == 1:
                controller.step_update(y[y > 0], losses[y > 0])  # a class never arrives
            else:
                controller.step_update(y, losses)
            p = controller.get_probs()
            assert np.isfinite(p).all()
            assert p.sum() == pytest.approx(1.0)
            assert np.isfinite(controller.trained_mix).all()

    with pytest.warns(UserWarning, match="NaN or infinite") as warned:
        train_badly()
    assert sum("NaN or infinite" in str(warning.message) for warning in warned) == 1
    # After 600 good batches a loss of 1e30, which shrinks by 0.9 per batch, still is 1e30 * 0.9^600 = 3e2. But loss
    # scores are of the order of one for all losses, and move a class by at most about lambda2 * 2 of its share.
    for batch in (batch for _ in range(2) for batch in sampler):
        controller.step_update(labels[batch], np.ones(40))
    assert (np.abs(controller.trained_mix / controller.q - 1.0) <= 0.3 * 2.0).all()
    # From here on the losses are equal, and the trained mix reaches the target.
    for batch in (batch for _ in range(2) for batch in sampler):
        controller.step_update(labels[batch], np.ones(40))
    np.testing.assert_allclose(controller.trained_mix, 0.2, atol=0.01)
