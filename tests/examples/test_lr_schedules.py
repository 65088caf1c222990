"""The learning rate schedule of the CIFAR protocols."""

import math

import pytest
import torch
from recipes.lr_schedules import cosine, warm_up_and_drop
from torch import nn


def learning_rates(epochs, **settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warm_up_and_drop(optimizer, **settings)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_rate_rises_stays_and_drops():
    rates = learning_rates(8, warm_up=4, drops=[6, 7], factor=0.1)
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 0.2, 0.02])
    assert learning_rates(3, warm_up=1, drops=[2], factor=0.5) == pytest.approx([2.0, 2.0, 1.0])
    assert learning_rates(3, warm_up=4, drops=[1], factor=0.5) == pytest.approx([0.5, 0.5, 0.75])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"warm_up": 0}, "warm_up must be at least 1 epoch, got 0"),
        ({"drops": [0, 5]}, r"drops must be epochs of at least 1, got \[0, 5\]"),
        ({"factor": 0.0}, r"factor must be positive, got 0\.0"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        learning_rates(1, **kwargs)


def test_cosine_ends_at_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = cosine(optimizer, epochs=4)
    rates = []
    for _ in range(5):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1 + math.cos(math.pi * k / 4) for k in range(5)])
