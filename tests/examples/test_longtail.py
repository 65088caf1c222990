"""Long-tailed subsets."""

import numpy as np
import pytest
import torch
from recipes.images import Images
from recipes.longtail import LongTail, long_tail_counts
from torch.utils.data import Subset, TensorDataset

from lightning_fair.common.labels import find_labels


def labeled(*sizes):
    """A data set of the given class sizes, in shuffled order."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return TensorDataset(torch.arange(labels.size), torch.from_numpy(labels))


@pytest.mark.parametrize(
    ("num_classes", "largest", "ratio", "total"),
    [
        (10, 5000, 100, 12_406),
        (10, 5000, 50, 13_996),
        (10, 5000, 10, 20_431),
        (100, 500, 100, 10_847),
        (100, 500, 50, 12_608),
        (100, 500, 10, 19_573),
    ],
)
def test_totals_of_cifar_lt(num_classes, largest, ratio, total):
    """The numbers of images are the published ones."""
    tail = LongTail(labeled(*[largest] * num_classes), imbalance_ratio=ratio)
    assert len(tail) == total
    assert tail.class_counts[0] == largest
    assert tail.class_counts[-1] == largest // ratio
    assert (np.diff(tail.class_counts) <= 0).all()


def test_counts_follow_formula():
    K, n, ratio = 7, 321, 37.0
    expected = [max(int(n * (1 / ratio) ** (c / (K - 1))), 1) for c in range(K)]
    assert long_tail_counts(K, n, ratio).tolist() == expected


def test_step_cuts_second_half():
    assert LongTail(labeled(50, 50, 50, 50), 10, "step").class_counts.tolist() == [50, 50, 5, 5]
    assert long_tail_counts(5, 50, 10, "step").tolist() == [50, 50, 50, 5, 5]


def test_sizes_are_bounded():
    """A class keeps at most what it has and at least one sample."""
    tail = LongTail(labeled(20, 100, 3, 100), imbalance_ratio=1000)
    assert tail.class_counts.tolist() == [20, 10, 1, 1]
    assert LongTail(labeled(5, 5), imbalance_ratio=1).class_counts.tolist() == [5, 5]
    assert LongTail(labeled(5), imbalance_ratio=9).class_counts.tolist() == [5]


def test_largest_sets_first_class():
    assert LongTail(labeled(110, 120, 118), 100, largest=100).class_counts.tolist() == [100, 10, 1]


def test_no_seed_keeps_first_samples():
    dataset = labeled(40, 40)
    labels = find_labels(dataset).numbers
    tail = LongTail(dataset, imbalance_ratio=4)
    expected = np.sort(np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:10]]))
    assert list(tail.indices) == expected.tolist()


def test_seed_repeats_random_choice():
    dataset = labeled(40, 40)
    first, second, other = (LongTail(dataset, 4, seed=s).indices for s in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, LongTail(dataset, 4).indices)


def test_targets_are_labels():
    """Also of a subset of a subset."""
    dataset = labeled(30, 30, 30)
    tail = LongTail(Subset(dataset, range(10, 90)), 5, seed=0)
    assert tail.targets.tolist() == [int(tail[i][1]) for i in range(len(tail))]
    assert np.array_equal(find_labels(tail).numbers, tail.targets)


def test_class_names_are_found():
    images = Images(np.zeros((4, 2, 2), np.uint8), np.array([0, 0, 1, 1]), ["cat", "dog"], white=255.0)
    assert LongTail(Subset(images, [0, 1, 2]), 2).classes == ["cat", "dog"]
    assert LongTail(labeled(3, 3), 2).classes is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"imbalance_ratio": 0.01}, r"at least 1, .*got 0\.01.*pass 100"),
        ({"imbalance_ratio": float("nan")}, "at least 1, .*got nan"),
        ({"imbalance_ratio": 10, "kind": "linear"}, "kind must be 'exp' or 'step', got 'linear'"),
        ({"imbalance_ratio": 10, "largest": 0}, "largest must be at least 1, got 0"),
        ({"imbalance_ratio": 10, "seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LongTail(labeled(10, 10), **kwargs)


PUBLISHED = {
    "cifar10": (5000, {100: 12_406, 50: 13_996, 10: 20_431}),
    "cifar100": (500, {100: 10_847, 50: 12_608, 10: 19_573}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_long_tail_of_long_tail(name):
    """A long-tailed set can be made more long-tailed: the same as directly."""
    largest, totals = PUBLISHED[name]
    num_classes = int(name.removeprefix("cifar"))
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes), largest)))
    whole = TensorDataset(torch.arange(labels.numel()), labels)
    cut = LongTail(whole, 10)
    for ratio, total in totals.items():
        direct, further = LongTail(whole, ratio), LongTail(cut, ratio)
        assert len(further) == total
        assert np.array_equal(np.asarray(cut.indices)[further.indices], direct.indices)
