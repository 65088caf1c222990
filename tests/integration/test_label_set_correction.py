"""The correction of one step whose samples have several labels, compiled and in half precision."""

import numpy as np
import pytest
import reference
import torch
from label_set_helpers import ROWS, K, make_sampler

from lightning_fair.integration.label_set_correction import LabelSetCorrection
from lightning_fair.integration.settings import FairSettings

LISTS = [row.nonzero()[0].tolist() for row in ROWS]


def make_step(sampler, **settings):
    return LabelSetCorrection(sampler.controller, torch.device("cpu"), FairSettings(**settings))


def expected(draw, batch):
    sets = reference.set_weights(LISTS, draw.probs.tolist(), draw.reference.tolist(), is_prior=True)
    return torch.tensor(sets)[batch]


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [None, K - 1, K])
def test_compiled_mean_compiles_once(backend, width):
    """The compiled mean is right in every batch, and compiled once."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    sampler = make_sampler(reference="prior", max_weight=100.0)
    step = make_step(sampler)
    compiled = torch.compile(lambda losses: step.mean(2.0 * losses), backend=counting, fullgraph=True)
    for batch in sampler:
        draw = sampler.deliver()
        losses = torch.rand((len(batch), width) if width else (len(batch),))
        step.start(draw, torch.from_numpy(draw.labels))
        of_samples = 2.0 * (losses.mean(1) if width else losses)
        assert compiled(losses).item() == pytest.approx((expected(draw, batch) * of_samples).mean().item(), rel=1e-5)
        sums = step.finish()
        means = reference.set_losses([LISTS[i] for i in batch], (2.0 * losses).double().tolist(), K)
        np.testing.assert_array_equal(sums[0, :-1], draw.counts)
        for k in np.flatnonzero(draw.counts):
            assert (sums[2, k] / sums[1, k]).item() == pytest.approx(means[k], rel=1e-5)
        sampler.report(draw)
    assert len(graphs) == 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_and_losses_that_are_not_finite(kind):
    """A loss that is not finite is left out of the feedback, and counts as a sample."""
    sampler = make_sampler(reference="prior")
    batch = next(iter(sampler))
    draw, step = sampler.deliver(), make_step(sampler)
    losses = torch.ones(len(batch), K - 1, dtype=kind)
    step.start(draw, torch.from_numpy(draw.labels))
    assert step.mean(losses).dtype is torch.promote_types(kind, torch.float32)
    label = int(np.flatnonzero(draw.counts[:-1])[0])
    losses[int(draw.labels[:, label].argmax()), label] = torch.nan
    step.start(draw, torch.from_numpy(draw.labels))
    step.mean(losses)
    sums = step.finish()
    np.testing.assert_array_equal(sums[0, :-1], draw.counts)
    assert sums[1, label] == draw.counts[label] - 1
    assert torch.isfinite(sums).all()


def test_step_without_losses_counts_the_labels():
    sampler = make_sampler()
    next(iter(sampler))
    draw, step = sampler.deliver(), make_step(sampler)
    step.start(draw, torch.from_numpy(draw.labels))
    np.testing.assert_array_equal(step.finish()[0, :-1], draw.counts)
    step.start(draw, torch.from_numpy(draw.labels))
    assert not step.finish(trained=False)[:, :-1].any()


def test_largest_weight_is_that_of_the_records():
    """Those of the step are those that the log has."""
    sampler = make_sampler(target="uniform", reference="prior", max_weight=1.3)
    batch = next(iter(sampler))
    draw, step = sampler.deliver(), make_step(sampler, exponent=0.7, max_weight=1.3)
    step.start(draw, torch.from_numpy(draw.labels))
    losses = torch.ones(len(batch), requires_grad=True)
    (share,) = torch.autograd.grad(step.mean(losses), losses)
    weights, numbers, mass = draw.weigh(1.3, 0.7)
    np.testing.assert_allclose(np.sort(share * len(batch)), np.sort(weights), rtol=1e-5)
    unclipped = sampler.weights_at(draw.probs)[draw.indices] ** 0.7
    assert unclipped.max() > 1.3
    assert mass == pytest.approx(np.mean(np.maximum(unclipped - 1.3, 0.0)))
    assert numbers.tolist() == [1] * len(batch)
