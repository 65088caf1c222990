"""Loaders that can be made fair, and loaders that cannot."""

import re

import numpy as np
import pytest
import torch
from lightning_helpers import Indexed, in_any_order, loader
from stream_runs import Shards
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_fair import FeedbackBatchSampler
from lightning_fair.dataloaders.checks import batch_size, check_loader
from lightning_fair.dataloaders.fair_loader import make_fair


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(10)


class SizelessBatches:
    def __iter__(self):
        yield [0, 1]

    def __len__(self):
        return 1


class OwnOrder(DataLoader):
    def __iter__(self):
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ([1, 2], TypeError, "got list"),
        (DataLoader(Stream()), TypeError, "Stream is a stream"),
        (DataLoader(Indexed(), batch_size=None), ValueError, "batch_size=None"),
        (DataLoader(Indexed(), batch_sampler=SizelessBatches()), ValueError, "SizelessBatches has no attribute"),
    ],
)
def test_unusable_loader_raises(data, error, match):
    with pytest.raises(error, match=match):
        check_loader(data)
    with pytest.raises(error, match=match):
        make_fair(data, FeedbackBatchSampler(Indexed(), 8))


@in_any_order
def test_own_iterator_without_order_raises():
    with pytest.raises(ValueError, match="in_order=True"):
        check_loader(OwnOrder(Indexed(), batch_size=8, num_workers=2, in_order=False))


@in_any_order
def test_order_is_kept_without_workers():
    check_loader(loader(in_order=False))


def test_batch_size_of_loader_or_sampler():
    dataset = TensorDataset(torch.zeros(10))
    batches = torch.utils.data.BatchSampler(range(10), batch_size=5, drop_last=False)
    assert batch_size(DataLoader(dataset, batch_size=3)) == 3
    assert batch_size(DataLoader(dataset, batch_sampler=batches)) == 5


def test_bare_stream_raises():
    with pytest.raises(TypeError, match=r"is a stream: .*Use FairStream\(dataset, batch_size=...\)"):
        check_loader(DataLoader(Shards(8), batch_size=8))


SIZE = 10
DATASET = TensorDataset(torch.zeros(SIZE), torch.arange(SIZE) % 2)
KEPT = [0, 1, 2, 3, 4, 5]
ZEROS = [1.0] * len(KEPT) + [0.0] * 4


class Indices(Sampler):
    """Draws with replacement from some samples, as often as the data set has samples."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter([self.indices[0]] * SIZE)

    def __len__(self):
        return SIZE


class Weights(Sampler):
    def __init__(self, weights):
        self.weights = weights

    def __iter__(self):
        return iter(torch.multinomial(torch.tensor(self.weights), SIZE, replacement=True).tolist())


class Sharded(DistributedSampler):
    """Splits another sampler over the ranks, as wrappers in several libraries do."""

    def __init__(self, sampler):
        super().__init__(Drawn(sampler), num_replicas=2, rank=0)


class Drawn:
    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return len(self.sampler)


class Batches:
    """A batch sampler of one's own."""

    batch_size = 2

    def __init__(self, sampler=None, **attributes):
        vars(self).update({"sampler": sampler, **attributes} if sampler is not None else attributes)

    def __iter__(self):
        yield [0, 1]

    def __len__(self):
        return 3


PARTS = {
    "zero weights": (WeightedRandomSampler(ZEROS, SIZE), "weight 0 for 4 of 10 samples"),
    "too few weights": (WeightedRandomSampler(ZEROS[:6], SIZE), "weights for 6 of 10 samples"),
    "weights of an own sampler": (Weights(ZEROS), "weight 0 for 4 of 10 samples"),
    "array of weights": (Weights(np.array(ZEROS)), "weight 0 for 4 of 10 samples"),
    "subset": (SubsetRandomSampler(KEPT), "indices of 6 of 10 samples"),
    "indices with replacement": (Indices(KEPT), "indices of 6 of 10 samples"),
    "tensor of indices": (Indices(torch.tensor(KEPT)), "indices of 6 of 10 samples"),
    "repeated indices": (Indices([0, 1] * 5), "indices of 2 of 10 samples"),
    "another data set": (RandomSampler(range(6), replacement=True, num_samples=SIZE), "6 of 10 samples"),
    "list of indices": ([0, 1] * 5, "indices of 2 of 10 samples"),
    "tensor": (torch.tensor(KEPT * 2), "indices of 6 of 10 samples"),
    "another data set over ranks": (DistributedSampler(range(6), num_replicas=2, rank=0), "6 of 10 samples"),
    "split over ranks": (Sharded(WeightedRandomSampler(ZEROS, SIZE)), "weight 0 for 4 of 10 samples"),
    "subset over ranks": (Sharded(SubsetRandomSampler(KEPT)), "indices of 6 of 10 samples"),
}


@pytest.mark.parametrize("place", ["sampler", "batch sampler", "own batch sampler"])
@pytest.mark.parametrize(("sampler", "reason"), PARTS.values(), ids=PARTS)
def test_sampler_of_a_part_raises(sampler, reason, place):
    """A sampler that leaves samples out is refused, wherever it is: they may be held out for the test."""
    data = {
        "sampler": lambda: DataLoader(DATASET, 2, sampler=sampler),
        "batch sampler": lambda: DataLoader(DATASET, batch_sampler=BatchSampler(sampler, 2, drop_last=False)),
        "own batch sampler": lambda: DataLoader(DATASET, batch_sampler=Batches(sampler)),
    }[place]()
    with pytest.raises(ValueError, match=rf"\({re.escape(reason)}\).*Subset\(dataset, indices\)"):
        check_loader(data)
    check_loader(DataLoader(Subset(DATASET, KEPT), 2, shuffle=True))


@pytest.mark.parametrize("attributes", [{"indices": KEPT}, {"weights": ZEROS}])
def test_batch_sampler_of_a_part_raises(attributes):
    with pytest.raises(ValueError, match=r"with Batches \(.* of 10 samples\)"):
        check_loader(DataLoader(DATASET, batch_sampler=Batches(**attributes)))


@pytest.mark.parametrize(
    "sampler",
    [
        WeightedRandomSampler([0.1] * 9 + [5.0], 4),
        Weights([0.1] * 9 + [5.0]),
        Weights([0.0, 1.0]),  # of the classes
        Indices(list(range(SIZE))[::-1]),
        RandomSampler(DATASET, replacement=True, num_samples=3),
        DistributedSampler(DATASET, num_replicas=3, rank=1, drop_last=True),
        Sharded(WeightedRandomSampler([1.0] * SIZE, 4)),
        Weights({"a": 0.0}),
        list(range(SIZE)),
        range(SIZE),
        Weights([[0], [0, 1]]),
    ],
)
def test_sampler_of_all_samples(sampler):
    """Samplers that may draw every sample are accepted, and so are weights that are not those of the samples."""
    check_loader(DataLoader(DATASET, 2, sampler=sampler))
    check_loader(DataLoader(DATASET, batch_sampler=Batches(sampler)))


def test_share_of_a_rank():
    """A sampler that knows its rank's share of the data set leaves nothing out."""
    sampler = Indices([0, 3, 6])
    sampler.num_replicas = 3
    check_loader(DataLoader(DATASET, 2, sampler=sampler))
    sampler.num_replicas = 2
    with pytest.raises(ValueError, match="indices of 3 of 10"):
        check_loader(DataLoader(DATASET, 2, sampler=sampler))
