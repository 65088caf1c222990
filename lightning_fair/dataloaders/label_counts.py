"""How many samples of each class a validation reads, without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from lightning_fair.common.arrays import Ints, to_numpy
from lightning_fair.common.label_sets import UNLABELED, LabelSets
from lightning_fair.common.label_values import ClassLabels
from lightning_fair.common.labels import Labels, look_up_labels
from lightning_fair.dataloaders.samplers import draws_as
from lightning_fair.dataloaders.wrappers import loader_inside


def count_labels(loader: Any, num_batches: float, labels: Labels, class_numbers: Mapping[str, int]) -> Ints | None:
    """Return the samples of each class in the first batches of a loader; None if that is not known without reading.

    Args:
        loader: A loader of any kind.
        num_batches: Number of batches that are read on each rank.
        labels: Where the labels of the training data are, see :func:`~lightning_fair.common.labels.find_labels`. If
            they are one value per sample, those of other data are not known.
        class_numbers: Number of each class, by its label as a string; ``"none"`` for samples without a label.

    Returns:
        int64, shape ``(len(class_numbers),)``. A sample counts for each of its labels. Other classes do not count.

    Example:
        >>> dataset = [(0.1, "cat"), (0.2, "dog"), (0.3, "cat")]
        >>> count_labels(DataLoader(dataset, batch_size=1), 2, None, {"cat": 0, "cow": 1, "dog": 2})
        array([1, 0, 1])
    """
    if not (labels is None or isinstance(labels, (str, int)) or callable(labels)):
        return None
    with suppress(Exception):  # loader, data set and function are the user's
        inner = loader_inside(loader)
        classes, part = look_up_labels(inner.dataset, labels), _part_read(inner, num_batches)
        if classes is None or part is None:
            return None
        labels_of_all = classes.numbers
        is_set = isinstance(labels_of_all, LabelSets)
        read = labels_of_all.take(np.arange(labels_of_all.size)[part]).classes if is_set else labels_of_all[part]
        numbers, counts = np.unique(read, return_counts=True)
        result: Ints = np.zeros(len(class_numbers), np.int64)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if (word := _word(classes, number)) in class_numbers:
                result[class_numbers[word]] += count
        return result if result.any() else None  # labels of another kind
    return None


def _word(classes: ClassLabels, number: int) -> str:
    """Return the label of a class in the data as a string."""
    if classes.values is not None and classes.names is not None:
        return classes.names[number]
    sets = classes.numbers
    is_unlabeled = isinstance(sets, LabelSets) and sets.has_unlabeled and number == sets.num_classes - 1
    return UNLABELED if is_unlabeled else str(number)


def _part_read(loader: DataLoader[Any], num_batches: float) -> Any:
    """Return the indices of the samples in the first batches of all ranks; None if they are not known."""
    batches: Any = loader.batch_sampler
    if not draws_as(batches, "BatchSampler"):
        return None
    sampler, part = batches.sampler, np.s_[:]
    size = len(loader.dataset)  # type: ignore[arg-type]
    if draws_as(sampler, "SubsetRandomSampler"):
        part, size = to_numpy(sampler.indices), len(sampler.indices)
    elif draws_as(sampler, "RandomSampler"):
        if sampler.replacement or sampler.num_samples < size:
            return None
    elif draws_as(sampler, "DistributedSampler"):
        if sampler.dataset is not loader.dataset:  # a sampler of the user's is inside
            return None
    elif not draws_as(sampler, "SequentialSampler"):
        return None
    num_samples = num_batches * batches.batch_size * getattr(sampler, "num_replicas", 1)
    if num_samples >= size:
        return part
    in_order = not getattr(sampler, "shuffle", draws_as(sampler, "RandomSampler", "SubsetRandomSampler"))
    return slice(int(num_samples)) if in_order else None
