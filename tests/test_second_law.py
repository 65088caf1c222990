"""The second law over a whole run: steady weights, bounded weights, and what the corrected loss estimates."""

import math
from itertools import islice

import numpy as np
import pytest
import reference
import torch
from torch.nn import functional as F

from lightning_fair import FeedbackBatchSampler, FeedbackController, importance_weights, logit_adjustment
from lightning_fair.common.class_mix import total_variation
from lightning_fair.control.weights import class_weights, clipped_mass
from lightning_fair.schedules import Linear, Shift


def long_tail(K, ratio=100.0):
    """Return a class mix of which the first class has ``ratio`` times the share of the last one."""
    shares = ratio ** -(np.arange(K) / max(K - 1, 1))
    return shares / shares.sum()


def randomness_of(sampler):
    """Return the random numbers of a sampler's draws, for ``reference.simulate``."""

    def of_draw(draw_id):
        order, start, _ = sampler._randomness(draw_id)
        return order.tolist(), start

    return of_draw


def run(sampler):
    """Yield the record of each draw, and report it as drawn."""
    for _ in sampler:
        draw = sampler.controller.oldest
        yield draw
        sampler.report(draw)


def start_from(controller, mix):
    """Set the trained mix."""
    state = controller.state_dict()
    controller.load_state_dict({**state, "trained_mix": torch.from_numpy(np.array(mix))})


# -- at rest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "size", "expected"), [(50, 4, 0.97), (10, 2, 0.98), (100, 8, 0.97), (100, 64, 0.99), (10, 32, 1.0)]
)
def test_weights_are_steady_at_rest(K, size, expected):
    """Over a run at rest nearly every sample counts fully, however small its batches are."""
    sampler = FeedbackBatchSampler(np.repeat(np.arange(K), 40), size, 4000)
    draws = list(run(sampler))
    counts = np.array([draw.counts for draw in draws])
    weights = np.array([class_weights(draw.reference, draw.probs) for draw in draws])
    effective = (counts * weights).sum() ** 2 / (counts * weights**2).sum() / counts.sum()
    assert effective >= 0.95
    assert effective == pytest.approx(expected, abs=0.01)
    assert weights[counts > 0].max() < 3.0
    assert sampler.controller.horizon == reference.horizon(size, [1 / K] * K)


@pytest.mark.parametrize(("K", "size"), [(10, 2), (7, 5)])
@pytest.mark.parametrize("max_weight", [2.0, 10.0, math.inf])
def test_run_follows_reference(K, size, max_weight):
    """From the draws of a long tail on, class mix and class counts of each batch are those of the reference."""
    q, history = long_tail(K, 5.0), long_tail(K)[::-1].copy()
    controller = FeedbackController(K, q, max_weight=max_weight)
    sampler = FeedbackBatchSampler(np.repeat(np.arange(K), 40), size, 300, controller)
    start_from(controller, history)
    H = reference.horizon(size, q.tolist())
    slow = reference.simulate(
        q.tolist(), history.tolist(), randomness_of(sampler), batch_size=size, horizon=H, max_weight=max_weight
    )
    for draw, (p, counts) in zip(run(sampler), slow, strict=False):
        np.testing.assert_allclose(draw.probs, p, rtol=1e-6)
        assert draw.counts.tolist() == counts


# -- turns ---------------------------------------------------------------------------------------------


def recover(controller, size, history, limit):
    """Draw until the trained mix is within 2 % of the target; return the draws."""
    K = controller.num_classes
    sampler = FeedbackBatchSampler(np.repeat(np.arange(K), 200), size, limit, controller)
    start_from(controller, history)
    draws = []
    for draw in run(sampler):
        if total_variation(draw.trained_mix, controller.q) <= 0.02:
            return draws
        draws.append(draw)
    pytest.fail(f"After {limit} batches the trained mix is {controller.trained_mix}.")


@pytest.mark.parametrize(
    ("max_weight", "measured"), [(math.inf, 12), (50.0, 12), (10.0, 13), (5.0, 14), (3.0, 16), (2.0, 19)]
)
def test_turn_of_two_classes(max_weight, measured):
    """After 99:1 the target is reached soon, with weights up to the bound, none of which is clipped."""
    controller = FeedbackController(2, max_weight=max_weight)
    draws = recover(controller, 32, [0.99, 0.01], 100)
    assert controller.horizon == 16
    assert abs(len(draws) - measured) <= 2
    assert max_weight > 10.0 or max_weight < 5.0 or len(draws) <= 15
    largest = max(class_weights(draw.reference, draw.probs).max() for draw in draws)
    if max_weight < math.inf:
        assert largest == pytest.approx(max_weight, rel=1e-3)
        assert largest <= max_weight * (1.0 + 1e-12)
        assert max(clipped_mass(draw.reference, draw.probs, max_weight) for draw in draws) < 1e-12
    else:
        assert largest > 1e5


@pytest.mark.parametrize(("K", "size", "measured"), [(10, 32, 41), (100, 128, 98), (50, 4, 1585)])
def test_turn_of_a_long_tail(K, size, measured):
    """A long tail of 100 that is reversed: the time to the target grows with the horizon, and no weight is above 10."""
    controller = FeedbackController(K)
    draws = recover(controller, size, long_tail(K), 2 * measured)
    assert len(draws) == pytest.approx(measured, rel=0.05)
    assert max(class_weights(draw.reference, draw.probs).max() for draw in draws) <= 10.0 * (1.0 + 1e-12)


# -- the loss estimates the risk at the reference --------------------------------------------------------

SIZES = [600, 250, 100, 40, 10]
MIX = [0.3, 0.1, 0.3, 0.1, 0.2]
REFERENCES = {"target": "target", "uniform": "uniform", "prior": "prior", "mix": MIX}
TARGETS = {"moving target": Shift(Linear(0.0, 1.0, 800))}  # from the prior to uniform; the loss follows it


def moving_draws(reference_mix, target="sqrt", batches=1000, **options):
    """Yield the indices and the draw of each batch of a run whose class mix swings with its losses."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), SIZES))
    options = {"lambda2": 0.5, "horizon": 16, "alpha": 11.5, **options}
    controller = FeedbackController(5, target, reference=reference_mix, class_counts=SIZES, **options)
    rng = np.random.default_rng(1)
    sampler = FeedbackBatchSampler(labels, 20, batches, controller, seed=2)
    for number, batch in enumerate(sampler):
        if number % 25 == 0:
            scale = rng.permutation([0.1, 0.3, 1.0, 3.0, 10.0])
        yield labels, batch, controller.oldest
        controller.step_update(labels[batch], scale[labels[batch]] * rng.exponential(size=20))


@pytest.mark.parametrize("max_weight", [3.0, math.inf])
@pytest.mark.parametrize("feedback_to", ["draw", "objective"])
@pytest.mark.parametrize("name", [*REFERENCES, *TARGETS])
def test_weighted_mean_is_the_risk(name, feedback_to, max_weight):
    """While class mix or reference move, the mean of ``w * f`` is the risk at the reference of each draw."""
    f = 3.0 * np.random.default_rng(3).permutation(5).repeat(SIZES) + np.random.default_rng(4).normal(size=sum(SIZES))
    errors, plain, seen = [], [], []
    options = {"target": TARGETS.get(name, "sqrt"), "feedback_to": feedback_to, "max_weight": max_weight}
    for labels, batch, draw in moving_draws(REFERENCES.get(name, "target"), **options):
        f_of = f[labels.argsort(kind="stable").argsort()]  # a fixed function of the items
        risk = sum(draw.reference[c] * f_of[labels == c].mean() for c in range(5))
        weights = importance_weights(labels[batch], draw.reference, draw.probs).double().numpy()
        errors.append((weights * f_of[batch]).mean() - risk)
        plain.append(f_of[batch].mean() - risk)
        seen.append(draw.reference if feedback_to == "objective" else draw.probs)
    assert (np.max(seen, axis=0) > 1.3 * np.min(seen, axis=0)).all()
    # Given the past each batch is right on average: the standard error of the mean is deviation / sqrt(batches).
    error = np.std(errors) / math.sqrt(len(errors))
    assert abs(np.mean(errors)) <= 4.0 * error
    if name in ("uniform", "prior"):
        assert abs(np.mean(plain)) > 5.0 * error  # without weights the mean is biased


def posterior(given_class, mix):
    """Return ``P(y | x)`` under a class mix, shape ``(M, K)``, from ``P(x | y)``, shape ``(M, K)``."""
    joint = given_class * mix
    return joint / joint.sum(axis=1, keepdims=True)


def minimize(loss, shape):
    """Return the free logits with the smallest loss."""
    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach()


@pytest.mark.parametrize("name", REFERENCES)
def test_logits_estimate_the_posterior(name):
    """With the offsets of each draw, the best free logits are the posterior at the reference, without an offset."""
    given_class = np.random.default_rng(5).dirichlet(np.ones(7), size=5).T  # P(x | y) for seven values of x
    draws = [draw for *_, draw in islice(moving_draws(REFERENCES[name]), 0, None, 10)]
    probs = np.array([draw.probs for draw in draws])
    assert (np.max(probs, axis=0) > 1.3 * np.min(probs, axis=0)).all()
    assert all((draw.reference == draws[0].reference).all() for draw in draws)
    offsets = torch.stack([logit_adjustment(draw.probs, draw.reference) for draw in draws]).double()
    joint = torch.from_numpy(given_class * probs[:, None, :])  # of each draw, shape (draws, M, K)

    def expected(logits):
        return -(joint * F.log_softmax(logits + offsets[:, None, :], dim=-1)).sum() / len(draws)

    best = minimize(expected, given_class.shape).softmax(dim=1)
    np.testing.assert_allclose(best, posterior(given_class, draws[0].reference), atol=1e-3)
    without = minimize(lambda logits: -(joint * F.log_softmax(logits, dim=-1)).sum() / len(draws), given_class.shape)
    assert np.abs(without.softmax(dim=1).numpy() - best.numpy()).max() > 0.01


@pytest.mark.parametrize("name", ["target", "uniform", "prior", "mix"])
def test_one_logit_estimates_the_posterior(name):
    """Two classes with one logit: the offset is that of class 1 minus that of class 0."""
    counts = [900, 100]
    reference_mix = {"mix": [0.3, 0.7]}.get(name, name)
    controller = FeedbackController(
        2, "sqrt", reference=reference_mix, class_counts=counts, alpha=12.0, lambda1=0.0, lambda2=0.4, horizon=16
    )
    given_class = np.array([[0.6, 0.1], [0.3, 0.3], [0.1, 0.6]])
    rng, probs, offsets = np.random.default_rng(6), [], []
    for number in range(100):
        p = controller.next_probs()
        probs.append(p)
        adjustment = logit_adjustment(p, controller.reference)
        offsets.append((adjustment[1] - adjustment[0]).double())
        controller.step_update(rng.permutation([0, 1, 1, 0]), [1.0, 1.0, 1.0, 1.0 + number % 3])
    assert np.ptp(probs, axis=0).max() > 0.1
    joint, shift = torch.from_numpy(given_class * np.array(probs)[:, None, :]), torch.stack(offsets)[:, None]

    def expected(logit):
        z = logit + shift
        return -(joint[..., 1] * F.logsigmoid(z) + joint[..., 0] * F.logsigmoid(-z)).sum() / len(probs)

    best = torch.sigmoid(minimize(expected, (3,)))
    np.testing.assert_allclose(best, posterior(given_class, controller.reference)[:, 1], atol=1e-3)


def test_absent_class_leaves_the_softmax():
    """Draws without a class, as a stream has them, leave the best logits as they are."""
    given_class = np.random.default_rng(7).dirichlet(np.ones(5), size=3).T
    controller = FeedbackController(3, "uniform")
    everything = controller.next_probs()
    without = controller.next_probs(available=np.array([True, True, False]))
    assert without[2] == 0.0
    probs = np.array([everything, without])
    offsets = torch.stack([logit_adjustment(p, controller.reference) for p in probs]).double()
    joint = torch.from_numpy(given_class * probs[:, None, :])
    best = minimize(
        lambda logits: -(joint * F.log_softmax(logits + offsets[:, None, :], dim=-1)).sum(), given_class.shape
    )
    np.testing.assert_allclose(best.softmax(dim=1), posterior(given_class, controller.reference), atol=1e-3)
