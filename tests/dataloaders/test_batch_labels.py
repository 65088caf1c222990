"""The labels of batches whose collate_fn drops or reorders samples."""

import numpy as np
import pytest
import torch
from loader_runs import as_dict, as_object, fair
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_fair import FeedbackBatchSampler
from lightning_fair.dataloaders.fair_loader import make_fair


def test_guess_labels_off():
    """With guess_labels=False no column of the batch is taken for the labels, even if one could be."""
    rng = np.random.default_rng(0)
    y, z = (torch.from_numpy(rng.integers(0, 2, 200)) for _ in range(2))
    data = make_fair(
        DataLoader(TensorDataset(torch.zeros(200), z, y)),
        FeedbackBatchSampler(y, 4, steps_per_epoch=50),
        guess_labels=False,
    )
    for _, _, wanted in data:
        assert data.pending_batches[-1].labels.tolist() == wanted.tolist()


def test_column_in_drawn_order_wins():
    """A column that equals the drawn labels wins over the usual place of labels."""
    rng = np.random.default_rng(0)
    y, z = (torch.from_numpy(rng.integers(0, 2, 200)) for _ in range(2))
    data = make_fair(DataLoader(TensorDataset(torch.zeros(200), z, y)), FeedbackBatchSampler(y, 4, steps_per_epoch=50))
    for _, _, wanted in data:
        assert data.pending_batches[-1].labels.tolist() == wanted.tolist()


def backwards(samples):
    return default_collate(samples[::-1])


def fewer(samples):
    return default_collate(samples[:3])


def fewer_backwards_by_name(samples):
    return as_dict(samples[:-6:-1])


@pytest.mark.parametrize("collate", [default_collate, backwards, fewer, as_dict, fewer_backwards_by_name])
@pytest.mark.parametrize("key", ["label", "labels", "target", "targets", "y"])
def test_labels_of_changed_batches(collate, key):
    """If collate_fn drops or reorders samples, the labels are those of the batch."""

    def by_key(samples):
        batch = collate(samples)
        return (
            {(key if name == "label" else name): v for name, v in batch.items()} if isinstance(batch, dict) else batch
        )

    data = fair(collate_fn=by_key)
    for batch in data:
        y = batch[key] if isinstance(batch, dict) else batch[1]
        assert data.pending_batches[-1].labels.tolist() == y.tolist()


def only_images(samples):
    return default_collate(samples)[0]


def other_numbers_second(samples):
    x, y, _ = default_collate(samples)
    return x, torch.zeros_like(y), y


def numbers_out_of_range_second(samples):
    x, y, index = default_collate(samples)
    return x, index + 100, y


def soft_labels(samples):
    x, y, _ = default_collate(samples)
    return x, torch.nn.functional.one_hot(y, 4).float()


def rough_numbers(samples):
    x, y, _ = default_collate(samples)
    return x, y.float()


@pytest.mark.parametrize(
    "collate",
    [only_images, other_numbers_second, numbers_out_of_range_second, soft_labels, rough_numbers, as_object, list],
)
def test_batches_without_labels(collate):
    """If a batch does not show its labels, they are the drawn ones."""
    data = fair(collate_fn=collate)
    for _ in data:
        assert data.pending_batches[-1].labels.dtype == torch.int64
        assert data.pending_batches[-1].labels.tolist() == data.pending_batches[-1].draw.labels.tolist()
