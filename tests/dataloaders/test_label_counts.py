"""The samples of each class that a validation reads."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_fair.dataloaders.label_counts import count_labels

NUMBERS = {"0": 0, "1": 1, "2": 2}
Y = torch.tensor([0, 0, 0, 0, 1, 1])
DATA = TensorDataset(torch.zeros(6, 2), Y)
ALL, FIRST_FOUR = [4, 2, 0], [4, 0, 0]


class Named(Dataset):
    """Samples with names of classes, and a second label."""

    targets = ("dog", "dog", "cat")
    place = (2, 2, 1)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        raise AssertionError("No sample is read.")


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("No sample is read.")


def count(data, num_batches=3, labels=None, numbers=NUMBERS, **settings):
    loader = data if isinstance(data, DataLoader) else DataLoader(data, **{"batch_size": 2, **settings})
    counts = count_labels(loader, num_batches, labels, numbers)
    return None if counts is None else counts.tolist()


@pytest.mark.parametrize(
    ("settings", "num_batches", "expected"),
    [
        ({}, 3, ALL),
        ({}, float("inf"), ALL),
        ({}, 2, FIRST_FOUR),
        ({"shuffle": True}, 3, ALL),
        ({"shuffle": True}, 2, None),
        ({"batch_size": 4, "drop_last": True}, 1, FIRST_FOUR),
        ({"sampler": SubsetRandomSampler([0, 4, 5])}, 2, [1, 2, 0]),
        ({"sampler": SubsetRandomSampler([0, 4, 5])}, 1, None),
        ({"sampler": DistributedSampler(DATA, 2, 0, shuffle=False)}, 1, FIRST_FOUR),
        ({"sampler": DistributedSampler(DATA, 2, 0, shuffle=True)}, 2, ALL),
        ({"sampler": DistributedSampler(DATA, 2, 0, shuffle=True)}, 1, None),
        ({"sampler": WeightedRandomSampler([1.0] * 6, 6)}, 3, None),
        ({"sampler": RandomSampler(DATA, replacement=True)}, 3, None),
        ({"sampler": RandomSampler(DATA, num_samples=4)}, 3, None),
        ({"batch_size": 1, "batch_sampler": BatchSampler(SequentialSampler(DATA), 2, False)}, 2, FIRST_FOUR),
        ({"batch_size": 1, "batch_sampler": BatchSampler(SubsetRandomSampler([0, 4]), 2, False)}, 1, [1, 1, 0]),
        ({"batch_size": 1, "batch_sampler": [[0, 1], [4, 5]]}, 2, None),
        ({"batch_size": None}, 3, None),
    ],
)
def test_part_that_is_read(settings, num_batches, expected):
    """The samples of the first batches count, of all of them if there are enough; else nothing is known."""
    assert count(DATA, num_batches, **settings) == expected


def test_data_sets():
    """The labels of nested data sets are looked up; those of a stream, and of unlabeled data, are not known."""
    assert count(Subset(DATA, [5, 0, 4])) == [1, 2, 0]
    assert count(ConcatDataset([DATA, Subset(DATA, [5])]), 4) == [4, 3, 0]
    assert count(Stream()) is None
    assert count(TensorDataset(torch.zeros(4, 2))) is None
    assert count_labels([DATA], 3, None, NUMBERS) is None


def test_labels_are_those_of_the_training():
    """The labels come from the place of the training labels, and their numbers from the training classes."""
    names = {"cat": 0, "cow": 1, "dog": 2}
    assert count(Named(), numbers=names) == [1, 0, 2]
    assert count(Named(), labels="place") == [0, 1, 2]
    assert count(Named(), labels=lambda data: [str(y) for y in data.place]) == [0, 1, 2]
    assert count(Named(), labels="scan") is None
    assert count(Named(), labels="missing") is None
    assert count(Named(), labels=lambda data: data.missing) is None
    assert count(Named(), labels=np.array([0, 1, 2])) is None
    assert count(Named()) is None  # none of the classes of the training


TAGS = TensorDataset(torch.zeros(6, 2), torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1], [1, 1], [0, 1]]))


@pytest.mark.parametrize(
    ("settings", "num_batches", "expected"),
    [
        ({}, 3, [3, 4, 1]),
        ({}, 2, [2, 2, 1]),
        ({"sampler": SubsetRandomSampler([1, 2])}, 1, [1, 1, 1]),
        ({"shuffle": True}, 2, None),
    ],
)
def test_several_labels(settings, num_batches, expected):
    """A sample counts for each of its labels; those without one have the word "none"."""
    assert count(TAGS, num_batches, numbers={"0": 0, "1": 1, "none": 2}, **settings) == expected
    assert count(TAGS, num_batches, numbers={"0": 0, "1": 1}, **settings) == (expected and expected[:2])


def test_names_of_several_labels():
    """The class without a label has the name that the labels give it."""
    data = Named()
    data.tags, data.kinds = [{"b"}, {"a", "b"}, set()], [{"b"}, {"none", "b"}, set()]
    assert count(data, labels="tags", numbers={"a": 0, "b": 1, "none": 2}) == [1, 2, 1]
    assert count(data, labels="kinds", numbers={"b": 0, "none": 1, "(none)": 2}) == [2, 1, 1]
