"""The labels of a data set, without loading its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from lightning_fair.common.arrays import to_numpy

Labels: TypeAlias = Literal["scan"] | ArrayLike | Sequence[int] | None  # in this order for parsers of configurations

LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_REMEDY = "Pass labels=<one class per sample>, or labels='scan' to read every sample once (slow for images on disk)."


def extract_labels(sample: Any) -> Any:
    """Return what stands in a sample or a batch where labels usually stand; None where nothing does."""
    if isinstance(sample, Mapping):
        return next((sample[key] for key in LABEL_KEYS if key in sample), None)
    return sample[1] if isinstance(sample, (tuple, list)) and len(sample) >= 2 else None


def check_labels(labels: Any, num_classes: int | None = None) -> NDArray[Any]:
    """Return ``labels`` as an integer array of shape ``(N,)``, each in ``[0, num_classes)``.

    An integer array is not copied, so a ``numpy.memmap`` stays one.

    Args:
        labels: List, array or tensor.
        num_classes: Number of classes ``K``; None: any label of at least 0.

    Raises:
        ValueError: If they are not integers, not one-dimensional, or out of range.

    Example:
        >>> check_labels([0, 2, 1], num_classes=3)
        array([0, 2, 1])
    """
    try:
        # A tensor's memory moves when torch shares it with a spawned worker: a view of it would dangle.
        y: NDArray[Any] = np.array(to_numpy(labels)) if isinstance(labels, Tensor) else np.asanyarray(labels)
    except ValueError as error:
        raise ValueError("labels must be one class per sample; these are lists of different lengths.") from error
    if y.ndim != 1:
        raise ValueError(
            f"labels must have shape (N,), one class per sample, got shape {y.shape}. Multi-label targets are "
            "not supported; for one-hot rows pass labels.argmax(1)."
        )
    if y.size == 0:
        return y.astype(np.int64)
    if y.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be integers, got {y.dtype}. np.unique(labels, return_inverse=True)[1] numbers any labels."
        )
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise ValueError(
            f"labels must be at least 0, got {low}. Leave such samples out with torch.utils.data.Subset, "
            "or number the labels with np.unique(labels, return_inverse=True)[1]."
        )
    if num_classes is not None and high >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {high}. State num_classes={high + 1} or more, "
            "or number the labels with np.unique(labels, return_inverse=True)[1]."
        )
    return y.view(np.int64) if y.dtype == np.uint64 else y  # NumPy 1 counts no uint64


def find_labels(source: Any, labels: Labels = None) -> NDArray[Any]:
    """Return the label of every sample of a data set, shape ``(N,)``, integers.

    Looked up in this order, and never by loading the samples unless asked: the ``labels`` given; the data
    set's ``targets`` or ``labels`` (torchvision's data sets, ``ImageFolder``); the second tensor of a
    ``TensorDataset``; and through ``Subset`` and ``ConcatDataset`` at any depth.

    Args:
        source: A map-style data set, or the labels themselves (list, array or tensor).
        labels: Labels to use instead of the data set's; ``"scan"`` loads every sample once, with a progress
            bar, and takes its second element (of a mapping, what it has under ``"label"``, ``"target"``, ``"y"``).

    Raises:
        TypeError: If the data set is a stream, or has no labels that can be found.
        ValueError: If the labels are not one integer class per sample, or there are none.

    Example:
        >>> import torch
        >>> dataset = TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> find_labels(Subset(dataset, [2, 3]))
        array([1, 0])
    """
    if isinstance(labels, str):
        if labels != "scan":
            raise ValueError(f"labels must be one class per sample, 'scan' or None, got {labels!r}.")
        found = _scan(source)
    elif labels is not None:
        found = check_labels(labels)
        if hasattr(source, "__getitem__") and hasattr(source, "__len__") and len(source) != len(found):
            raise ValueError(f"labels must be one per sample: got {len(found)} for {len(source)} samples.")
    else:
        found = check_labels(_look_up(source))
        if not _is_array(source) and len(source) != len(found):
            raise ValueError(
                f"{type(source).__name__} shows {len(found)} labels for {len(source)} samples. "
                "Pass labels=<one class per sample>."
            )
    if found.size == 0:
        raise ValueError("The data set is empty: there is nothing to draw from.")
    return found


def class_names(dataset: Any) -> list[str] | None:
    """Return the names a data set, or the one inside a ``Subset``, has for its classes; None where it has none.

    Example:
        >>> dataset = TensorDataset()
        >>> dataset.classes = ["cat", "dog"]
        >>> class_names(dataset)
        ['cat', 'dog']
    """
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str):
            return [str(name) for name in names]
        dataset = getattr(dataset, "dataset", None)
    return None


def _look_up(source: Any) -> Any:
    for name in ("targets", "labels"):
        found = getattr(source, name, None)
        if found is not None and not callable(found):
            return found
    if isinstance(source, Subset):
        return _look_up_array(source.dataset)[np.asarray(source.indices, dtype=np.int64)]
    if isinstance(source, ConcatDataset):
        return np.concatenate([_look_up_array(part) for part in source.datasets])
    if isinstance(source, TensorDataset):
        if len(source.tensors) < 2:
            raise TypeError(f"A TensorDataset of one tensor has no labels. {_REMEDY}")
        return source.tensors[1]
    if isinstance(source, IterableDataset):
        raise TypeError(
            f"{type(source).__name__} is a stream: its samples cannot be drawn by index. "
            "FeedbackBatchSampler needs a map-style data set (__getitem__ and __len__)."
        )
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not _is_array(source):
        raise TypeError(f"{type(source).__name__} has neither 'targets' nor 'labels'. {_REMEDY}")
    return source


def _look_up_array(source: Any) -> NDArray[Any]:
    return check_labels(_look_up(source))


def _is_array(source: Any) -> bool:
    return isinstance(source, (list, tuple, range)) or hasattr(source, "__array__")


def _scan(source: Any) -> NDArray[Any]:
    from tqdm.auto import tqdm

    found = np.empty(len(source), dtype=np.int64)
    for index in tqdm(range(len(source)), desc="Reading labels", unit="sample"):
        sample = source[index]
        shown = extract_labels(sample)
        if shown is None:
            raise TypeError(
                f"labels='scan' takes the second element of each sample, but sample {index} is a "
                f"{type(sample).__name__} without one, or without a key {' or '.join(map(repr, LABEL_KEYS))}. "
                "Pass labels=<one class per sample>."
            )
        label = check_labels(np.asarray(to_numpy(shown)).reshape(-1))
        if label.size != 1:
            raise ValueError(f"labels must be one class per sample, but sample {index} has {label.size}.")
        found[index] = label[0]
    return found
