"""Samples with several labels: the weighted mean of a value stands for the reference, however p moves."""

import numpy as np
import pytest
from label_set_helpers import ROWS, SETS, K, make_sampler

from lightning_fair import FeedbackBatchSampler
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.control.label_draws import label_prior
from lightning_fair.schedules import Linear, Shift

SIZE, BATCHES, SEEDS = len(ROWS), 30, 60
PER_SAMPLE = ROWS / SETS.counts  # times a class mix: the probability of each sample
NOISE = np.random.default_rng(1).normal(size=SIZE)
# Each label, the number of labels, its square, and a value that follows labels and sample.
VALUES = np.column_stack([ROWS, ROWS.sum(1), ROWS.sum(1) ** 2, ROWS @ [1.0, -2.0, 3.0, 5.0, -4.0, 2.0] + NOISE])

CASES = {
    "prior": {"reference": "prior"},
    "target": {"reference": "target"},
    "uniform": {"reference": "uniform"},
    "mix": {"reference": [0.05, 0.3, 0.05, 0.2, 0.3, 0.1]},
    "prior that losses move": {"reference": "prior", "feedback_to": "objective"},
}


def own(sampler, batch, draw):
    return draw.sample_weights.weigh(SETS.take(batch), draw.probs, draw.reference)


def by_likeliest_label(sampler, batch, draw):
    return 1.0 / (SIZE * (PER_SAMPLE[batch] * draw.probs).max(axis=1))


def by_rarest_label(sampler, batch, draw):
    rarest = np.where(ROWS[batch], SETS.counts, SIZE).argmin(axis=1)
    return 1.0 / (SIZE * (PER_SAMPLE[batch] * draw.probs)[np.arange(len(batch)), rarest])


def share_of_reference(reference, *, is_prior):
    """Return what each sample stands for, from the definition of the reference."""
    if not is_prior:
        return PER_SAMPLE @ reference
    return ROWS @ (reference / label_prior(SETS)) / ROWS.sum(axis=1) / SIZE


def deviations(weigh, **settings):
    """Train with many seeds. Return the error of each value's weighted mean in standard errors, and how far p moved."""
    moving = {"target": Shift(Linear(0.0, 1.0, BATCHES), start="prior"), "alpha": Linear(1.0, 4.0, BATCHES)}
    controller = make_sampler(lambda2=0.3, horizon=16.0, loss_ema_decay=0.5, **moving, **settings).controller
    errors, probs = [], []
    for seed in range(SEEDS):
        controller.reset()
        sampler = FeedbackBatchSampler(SETS, 8, BATCHES, controller, seed=seed)
        for batch in sampler:
            draw = controller.oldest
            weights = weigh(sampler, batch, draw)
            expected = share_of_reference(draw.reference, is_prior=controller.objective.is_prior) @ VALUES
            errors.append((weights[:, None] * VALUES[batch]).mean(axis=0) - expected)
            probs.append(draw.probs)
            controller.step_update(ROWS[batch], (1.0 + np.arange(K)) * (1.0 + NOISE[batch, None] ** 2))
    by_seed = np.reshape(errors, (SEEDS, BATCHES, -1)).mean(axis=1)
    return by_seed.mean(axis=0) / (by_seed.std(axis=0, ddof=1) / np.sqrt(SEEDS)), np.ptp(probs, axis=0).max()


@pytest.mark.slow
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_weighted_mean_is_the_mean_of_the_reference(settings):
    """Gain, target and losses move p, and values follow the labels and their number.

    ``p`` follows the samples of a pass a little, which biases the means by less than a percent: not to be seen here.
    """
    deviation, movement = deviations(own, **settings)
    assert movement > 0.4
    assert np.abs(deviation).max() < 4.0


@pytest.mark.slow
@pytest.mark.parametrize("weigh", [by_likeliest_label, by_rarest_label])
def test_wrong_weights_are_noticed(weigh):
    assert np.abs(deviations(weigh, reference="prior")[0]).max() > 8.0


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_weights_of_a_draw_are_exact(settings):
    """Over all samples, the weight times the probability of each is its share of the reference."""
    sampler = make_sampler(lambda2=0.3, **settings)
    for _ in range(5):
        for batch in sampler:
            draw = sampler.controller.oldest
            share = share_of_reference(draw.reference, is_prior=sampler.controller.objective.is_prior)
            weights = draw.sample_weights.weigh(SETS, draw.probs, draw.reference)
            np.testing.assert_allclose(PER_SAMPLE @ draw.probs * weights, share, rtol=1e-9)
            np.testing.assert_allclose(sampler.weights_at(draw.probs), weights, rtol=1e-9)
            assert share.sum() == pytest.approx(1.0)
            sampler.controller.step_update(ROWS[batch], (1.0 + np.arange(K)) * (1.0 + NOISE[batch, None] ** 2))


def test_weights_of_the_target_keep_their_bound():
    """Without clipping, because of the floor of p: a sample is drawn with at least a part of its share at rest."""
    sampler = make_sampler(target="uniform", alpha=30.0, lambda2=0.5, max_weight=3.0, horizon=100.0)
    for batch in sampler:
        weights = sampler.weights_at(sampler.controller.oldest.probs)
        assert weights.max() <= 3.0 * (1.0 + 1e-9)
        sampler.controller.step_update(ROWS[batch], (1.0 + np.arange(K)) * np.ones((len(batch), 1)))
    assert weights.max() > 1.5


def test_weights_of_label_sets_that_hold_single_labels():
    """They are those of single labels: the reference divided by p."""
    sets = LabelSets.from_matrix(np.eye(3, dtype=bool)[np.repeat([0, 1, 2], [30, 8, 2])])
    sampler = make_sampler(sets, target="uniform", reference="prior")
    probs = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(
        sampler.weights_at(probs), (np.array([0.75, 0.2, 0.05]) / probs)[sets.classes], rtol=1e-9
    )
