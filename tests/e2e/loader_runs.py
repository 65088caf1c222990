"""Loaders of many kinds, loaders made fair without the callback, and collate functions."""

from dataclasses import dataclass

import numpy as np
import torch
from lightning_helpers import BATCH, Indexed, Weighted, loader
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, default_collate

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.dataloaders.fair_loader import make_fair

TARGET = [0.4, 0.3, 0.2, 0.1]


def fair(data=None, steps=6, **settings):
    data = data or loader(**settings)
    sampler = FeedbackBatchSampler(
        Indexed(),
        data.batch_size,
        steps,
        FeedbackController(4, TARGET, horizon=16),  # so that p moves
        seed=int(settings.get("num_workers", 0)),
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


class Bulk(Indexed):
    """A data set that reads a whole batch."""

    def __getitem__(self, indices):
        samples = [Indexed.__getitem__(self, index) for index in indices]
        return default_collate(samples)


def in_bulk(dataset: Dataset | None = None, sampler=RandomSampler, **settings) -> DataLoader:
    """Return a loader in the way that torch's documentation shows for reading in bulk."""
    dataset = Bulk() if dataset is None else dataset
    batches = BatchSampler(sampler(dataset), batch_size=BATCH, drop_last=False)
    return DataLoader(dataset, batch_size=None, sampler=batches, **settings)


class Adjusted(Weighted):
    """Adjusts its logits. The recorded weights are ``exp(-offset)`` of each sample's class: ``reference / p``."""

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = self.net(x)
        adjusted = self.adjusted_logits(logits)
        self.ratios = (logits - adjusted).detach().double().exp().gather(1, y[:, None])[:, 0].numpy()
        return F.cross_entropy(adjusted, y, reduction="none")

    def record(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        loss = super().record(x, y, index)
        assert np.allclose(self.steps[-1].weights, 1.0)
        self.steps[-1].weights = self.ratios
        return loss


class Wrapper:
    """A loader of the user's, with a ``DataLoader`` inside."""

    def __init__(self, data: DataLoader) -> None:
        self.loader, self.num_batches = data, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            self.num_batches += 1
            yield batch


class Prefetcher(Wrapper):
    """Holds one batch back, as prefetchers do that copy it to a device in the meantime."""

    sampler = property(lambda self: self.loader.sampler)
    dataset = property(lambda self: self.loader.dataset)

    def __iter__(self):
        self.batches = iter(self.loader)
        self.ahead = next(self.batches)
        return self

    def __next__(self):
        if self.ahead is None:
            raise StopIteration
        batch, self.ahead = self.ahead, next(self.batches, None)
        return batch


class Chained:
    """Goes through several loaders, one after the other."""

    def __init__(self, loaders: list[DataLoader]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self):
        for each in self.loaders:
            yield from each


class Delegating:
    """Takes on the class of the loader inside, as the loaders of accelerate do."""

    def __init__(self, data: DataLoader) -> None:
        self.base_dataloader = data
        self.__class__ = type(type(self).__name__, (type(self), type(data)), {})

    def __getattr__(self, name):
        return getattr(self.base_dataloader, name)

    def __iter__(self):
        yield from self.base_dataloader


class Repeated:
    """A batch sampler that never ends."""

    def __init__(self, sampler) -> None:
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from self.sampler


class KeepsWorkers(DataLoader):
    """Makes its iterator once, so that its workers stay from epoch to epoch; many projects have such a class."""

    def __init__(self, *args, at_once: bool = True, **settings) -> None:
        super().__init__(*args, **settings)
        object.__setattr__(self, "batch_sampler", Repeated(self.batch_sampler))
        self.iterator = super().__iter__() if at_once else None

    def __len__(self) -> int:
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        if self.iterator is None:
            self.iterator = super().__iter__()
        for _ in range(len(self)):
            yield next(self.iterator)
