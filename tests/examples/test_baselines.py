"""The baselines."""

import math

import lightning as L
import numpy as np
import pytest
import torch
from recipes.baselines import (
    BalancedSoftmax,
    CrossEntropy,
    DeferredReweighting,
    FocalLoss,
    LogitAdjustment,
    weighted_sampler,
)
from recipes.classifier import Classifier
from recipes.data import DigitsDataModule
from recipes.models import mlp
from torch import nn

from lightning_fair import FairSampling

COUNTS = [500, 60, 7, 1]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 4, generator=generator), torch.randint(4, (32,), generator=generator)


@pytest.mark.filterwarnings("ignore:.*validation_step:UserWarning", "ignore:The number of training batches")
def test_plugin_can_be_balanced_softmax():
    """Drawn as the data are, with logits corrected to uniform: the same loss."""

    class Compared(Classifier):
        def training_step(self, batch, batch_idx):
            (x, y), loss = batch, super().training_step(batch, batch_idx)
            self.own.append(float(loss))
            self.baseline.append(float(BalancedSoftmax(data.train_set.class_counts)(self(x), y, 0).mean()))
            return loss

    data, model = DigitsDataModule(), Compared(mlp())
    model.own, model.baseline = [], []
    fair = FairSampling(alpha=0.0, target_probs="prior", reference="uniform", correction="logits")
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=4, callbacks=[fair], limit_val_batches=0, **settings).fit(model, data)
    assert len(set(model.own)) == 4
    assert model.own == pytest.approx(model.baseline, abs=1e-5)


def test_weighted_sampler_is_uniform():
    labels = np.repeat(np.arange(3), [900, 90, 10])
    sampler = weighted_sampler(labels)
    sampler.generator = torch.Generator().manual_seed(0)
    draws = labels[list(sampler)]
    assert draws.size == 1000
    # A class's share of n draws has the standard deviation sqrt(1/3 * 2/3 / n); five of them.
    assert np.bincount(draws) / 1000 == pytest.approx([1 / 3] * 3, abs=5 * math.sqrt(2 / 9 / 1000))


def test_plain_loss(batch):
    logits, labels = batch
    torch.testing.assert_close(CrossEntropy()(logits, labels, 0), nn.CrossEntropyLoss(reduction="none")(logits, labels))


def test_drw_begins_with_plain_loss(batch):
    """From its first epoch on the loss is torch's weighted cross entropy."""
    logits, labels = batch
    beta = 0.99
    loss = DeferredReweighting(COUNTS, begin=3, beta=beta)
    torch.testing.assert_close(loss(logits, labels, 2).mean(), nn.CrossEntropyLoss()(logits, labels))
    # One over the effective number 1 + beta + ... + beta ** (n - 1), scaled to the mean 1.
    inverse = [1 / sum(beta**k for k in range(n)) for n in COUNTS]
    weights = torch.tensor([len(COUNTS) * w / sum(inverse) for w in inverse])
    torch.testing.assert_close(loss.weights, weights)
    torch.testing.assert_close(loss(logits, labels, 3).mean(), nn.CrossEntropyLoss(weights)(logits, labels))
    torch.testing.assert_close(DeferredReweighting(COUNTS, beta=0.0).weights, torch.ones(4))


def test_balanced_softmax_formula(batch):
    logits, labels = batch
    for tau in (1.0, 0.5):
        losses = BalancedSoftmax(COUNTS, tau)(logits, labels, 0)
        for row, label, loss in zip(logits.tolist(), labels.tolist(), losses.tolist(), strict=True):
            parts = [n**tau * math.exp(z) for n, z in zip(COUNTS, row, strict=True)]
            assert loss == pytest.approx(-math.log(parts[label] / sum(parts)), rel=1e-4)
    torch.testing.assert_close(BalancedSoftmax(COUNTS, 0.0)(logits, labels, 0), CrossEntropy()(logits, labels, 0))


def test_logit_adjustment_balances_posterior(batch):
    """The posterior of the prior becomes that of balanced classes."""
    likelihood = batch[0].log_softmax(1)
    posterior = likelihood + torch.tensor(COUNTS).log()  # what a network learns, up to a constant
    torch.testing.assert_close(LogitAdjustment(COUNTS)(posterior).log_softmax(1), likelihood, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(LogitAdjustment(COUNTS, tau=0.0)(posterior), posterior)


def test_data_are_not_in_checkpoint():
    """Weights and offsets follow from the data: they move to the device, but are not saved."""
    for module in (DeferredReweighting(COUNTS), BalancedSoftmax(COUNTS), LogitAdjustment(COUNTS)):
        assert not module.state_dict()
        assert len(list(module.buffers())) == 1  # so that it goes to the device


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeferredReweighting(COUNTS, begin=-1), "begin must be an epoch of at least 0, got -1"),
        (lambda: DeferredReweighting(COUNTS, beta=1.0), r"beta must lie in \[0, 1\), got 1\.0"),
        (lambda: DeferredReweighting([3, 0]), "class 1 has 0"),
        (lambda: BalancedSoftmax([0, 3]), "class 0 has 0"),
        (lambda: BalancedSoftmax(COUNTS, tau=-1.0), r"tau must be finite and at least 0, got -1\.0"),
        (lambda: FocalLoss(COUNTS, gamma=-1.0), r"gamma must be finite and at least 0, got -1\.0"),
        (lambda: LogitAdjustment(COUNTS, tau=math.inf), "tau must be finite and at least 0, got inf"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_focal_loss_formula(batch):
    logits, labels = batch
    right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    for gamma in (2.0, 0.5):
        expected = -((1 - right) ** gamma) * right.log()
        torch.testing.assert_close(FocalLoss(COUNTS, gamma)(logits, labels, 0), expected)
    torch.testing.assert_close(FocalLoss(COUNTS, gamma=0.0)(logits, labels, 0), CrossEntropy()(logits, labels, 0))
