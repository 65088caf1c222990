"""Loaders that can be made fair, and loaders that cannot."""

import pytest
import torch
from lightning_helpers import Indexed, in_any_order, loader
from stream_runs import Shards
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

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
