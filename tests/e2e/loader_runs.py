"""Loaders made fair without the callback, and collate functions."""

from dataclasses import dataclass

import torch
from lightning_helpers import Indexed, loader
from torch.utils.data import default_collate

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.dataloaders.fair_loader import make_fair

TARGET = [0.4, 0.3, 0.2, 0.1]


def fair(data=None, steps=6, **settings):
    data = data or loader(**settings)
    sampler = FeedbackBatchSampler(
        Indexed(), data.batch_size, steps, FeedbackController(4, TARGET), seed=int(settings.get("num_workers", 0))
    )
    return make_fair(data, sampler)


@dataclass
class Images:
    pixels: torch.Tensor
    classes: torch.Tensor


def as_dict(samples):
    x, y, index = default_collate(samples)
    return {"image": x, "label": y, "index": index}


def as_object(samples):
    x, y, _ = default_collate(samples)
    return Images(x, y)
