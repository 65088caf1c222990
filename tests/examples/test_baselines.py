"""The baselines, the learning rates, and the parts of the report that compare them."""

import math

import numpy as np
import pytest
import torch
from recipes.baselines import (
    BalancedSoftmax,
    CrossEntropy,
    DeferredReweighting,
    LogitAdjustment,
    weighted_sampler,
)
from recipes.data import DigitsDataModule
from recipes.rates import warm_up_and_drop
from recipes.report import Best, make_report
from rich.console import Console
from torch import nn

COUNTS = [500, 60, 7, 1]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 4, generator=generator), torch.randint(4, (32,), generator=generator)


def test_weighted_sampler_draws_every_class_equally_often():
    labels = np.repeat(np.arange(3), [900, 90, 10])
    sampler = weighted_sampler(labels)
    sampler.generator = torch.Generator().manual_seed(0)
    draws = labels[list(sampler)]
    assert draws.size == 1000
    # A class's share of n draws has the standard deviation sqrt(1/3 * 2/3 / n); five of them.
    assert np.bincount(draws) / 1000 == pytest.approx([1 / 3] * 3, abs=5 * math.sqrt(2 / 9 / 1000))


def test_the_loader_takes_the_sampler_and_else_shuffles():
    data = DigitsDataModule()
    data.setup()
    data.make_sampler = weighted_sampler
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, torch.utils.data.WeightedRandomSampler)
    assert loader.sampler.num_samples == 242
    weights = loader.sampler.weights.numpy()
    assert np.bincount(data.train_set.targets, weights) == pytest.approx([1.0] * 10)
    data.make_sampler = None
    assert isinstance(data.train_dataloader().sampler, torch.utils.data.RandomSampler)
    assert isinstance(data.val_dataloader().sampler, torch.utils.data.SequentialSampler)


def test_plain_loss_is_cross_entropy_of_each_sample(batch):
    logits, labels = batch
    torch.testing.assert_close(CrossEntropy()(logits, labels, 0), nn.CrossEntropyLoss(reduction="none")(logits, labels))


def test_drw_is_plain_at_first_and_then_torchs_weighted_loss(batch):
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


def test_balanced_softmax_weighs_every_class_by_its_images(batch):
    logits, labels = batch
    for tau in (1.0, 0.5):
        got = BalancedSoftmax(COUNTS, tau)(logits, labels, 0)
        for row, label, loss in zip(logits.tolist(), labels.tolist(), got.tolist(), strict=True):
            parts = [n**tau * math.exp(z) for n, z in zip(COUNTS, row, strict=True)]
            assert loss == pytest.approx(-math.log(parts[label] / sum(parts)), rel=1e-4)
    torch.testing.assert_close(BalancedSoftmax(COUNTS, 0.0)(logits, labels, 0), CrossEntropy()(logits, labels, 0))


def test_logit_adjustment_turns_the_posterior_of_the_prior_into_that_of_balanced_classes(batch):
    likelihood = batch[0].log_softmax(1)
    posterior = likelihood + torch.tensor(COUNTS).log()  # what a network learns, up to a constant
    torch.testing.assert_close(LogitAdjustment(COUNTS)(posterior).log_softmax(1), likelihood, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(LogitAdjustment(COUNTS, tau=0.0)(posterior), posterior)


def test_what_follows_from_the_data_is_not_in_the_checkpoint():
    for module in (DeferredReweighting(COUNTS), BalancedSoftmax(COUNTS), LogitAdjustment(COUNTS)):
        assert not module.state_dict()
        assert len(list(module.buffers())) == 1  # so that it goes to the device


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeferredReweighting(COUNTS, begin=-1), "begin is an epoch, at least 0, got -1"),
        (lambda: DeferredReweighting(COUNTS, beta=1.0), r"beta must lie in \[0, 1\), got 1\.0"),
        (lambda: DeferredReweighting([3, 0]), "class 1 has 0"),
        (lambda: BalancedSoftmax([0, 3]), "class 0 has 0"),
        (lambda: BalancedSoftmax(COUNTS, tau=-1.0), r"tau must be finite and at least 0, got -1\.0"),
        (lambda: LogitAdjustment(COUNTS, tau=math.inf), "tau must be finite and at least 0, got inf"),
    ],
)
def test_baselines_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- learning rates --------------------------------------------------------------------------------------------


def rates(epochs, **settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warm_up_and_drop(optimizer, **settings)
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_the_rate_rises_stays_and_drops():
    assert rates(8, warm_up=4, drops=[6, 7], factor=0.1) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 0.2, 0.02])
    assert rates(3, warm_up=0, drops=[]) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"warm_up": -1}, "warm_up must be at least 0 epochs, got -1"),
        ({"drops": [0, 3]}, r"drops must be epochs of at least 1, got \[0, 3\]"),
        ({"factor": 0.0}, r"factor must be positive, got 0\.0"),
    ],
)
def test_rates_refuse(kwargs, message):
    with pytest.raises(ValueError, match=message):
        rates(1, **kwargs)


# -- the report ------------------------------------------------------------------------------------------------


def report(images, recall, best=None):
    K = len(images)
    return make_report([str(c) for c in range(K)], images, [1] * K, recall, 0.5, 1.0, 32.0, best=best)


def shown(report):
    console = Console(width=120)
    with console.capture() as text:
        console.print(report.summary())
    return text.get()


def test_shots_are_told_apart_at_100_and_20_images():
    shots = report([500, 101, 100, 20, 19, 1], [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]).shots
    assert shots == pytest.approx({"many": 0.9, "medium": 0.5, "few": 0.1})


def test_a_group_without_a_class_is_a_dash():
    cut = report([500, 50], [1.0, 0.5])
    assert math.isnan(cut.shots["few"])
    text = shown(cut)
    for line in (
        "many-shot            1.000  1 class with 101 or more training images",
        "medium-shot          0.500  1 class with 20 to 100 training images",
        "few-shot             -      0 classes with 19 or fewer training images",
    ):
        assert line in text


def test_the_last_epoch_is_the_result_and_the_best_is_labelled():
    plain, test = (report([9, 9], [0.5, 0.7], Best(12, 0.8125, on_test)) for on_test in (False, True))
    for text in map(shown, (plain, test)):
        assert "0.600  mean of the recalls, after the last epoch" in text
        assert "best epoch             0.812  balanced accuracy of epoch 12" in text
    assert "on the validation data; not the result" in shown(plain)
    assert "chosen on the test set itself; not the result" in shown(test)
    assert "best epoch" not in shown(report([9, 9], [0.5, 0.7]))
