"""Labels: of a data set without loading its samples, and of a sample or batch."""

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
    """Return the second element, or the value of a usual key, of a sample or batch; None if it has neither."""
    if isinstance(sample, Mapping):
        return next((sample[key] for key in LABEL_KEYS if key in sample), None)
    return sample[1] if isinstance(sample, (tuple, list)) and len(sample) >= 2 else None


def check_labels(labels: Any, num_classes: int | None = None) -> NDArray[Any]:
    """Return a list, array or tensor as an integer array of shape ``(N,)``, each label in ``[0, num_classes)``.

    An integer array is not copied, so a ``numpy.memmap`` stays one. Without ``num_classes`` labels have no upper bound.

    Raises:
        ValueError: If the labels are not integers, not one-dimensional, or out of range.

    Example:
        >>> check_labels([0, 2, 1], num_classes=3)
        array([0, 2, 1])
    """
    try:
        # A tensor's memory moves when torch shares it with a spawned worker: a view of it would dangle.
        y: NDArray[Any] = np.array(to_numpy(labels)) if isinstance(labels, Tensor) else np.asanyarray(labels)
    except ValueError as error:
        raise ValueError("labels must be one class per sample, got lists of different lengths.") from error
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
            f"labels must be at least 0, got {low}. Remove such samples with torch.utils.data.Subset, "
            "or number the labels with np.unique(labels, return_inverse=True)[1]."
        )
    if num_classes is not None and high >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {high}. State num_classes={high + 1} or more, "
            "or number the labels with np.unique(labels, return_inverse=True)[1]."
        )
    return y.view(np.int64) if y.dtype == np.uint64 else y  # np.bincount of NumPy 1 does not accept uint64


def find_labels(source: Any, labels: Labels = None) -> NDArray[Any]:
    """Return the label of every sample of a data set, integers, shape ``(N,)``.

    No sample is loaded, except with ``labels="scan"``. The labels are the first of: the argument ``labels``; the data
    set's attribute ``targets`` or ``labels`` (torchvision's data sets have it); the second tensor of a
    ``TensorDataset``. Labels of the data sets in a ``Subset`` or ``ConcatDataset`` are combined, at any depth.

    Args:
        source: A map-style data set, or the labels themselves (list, array or tensor).
        labels: Labels to use instead of the data set's. ``"scan"`` loads every sample once, with a progress bar, and
            reads its second element, or the value of a key such as ``"label"``, ``"target"`` or ``"y"``.

    Raises:
        TypeError: If the data set is a stream, or has no labels in the places above.
        ValueError: If the labels are not one integer class per sample, or the data set is empty.

    Example:
        >>> import torch
        >>> dataset = TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> find_labels(Subset(dataset, [2, 3]))
        array([1, 0])
    """
    if isinstance(labels, str):
        if labels != "scan":
            raise ValueError(f"labels must be one class per sample, 'scan' or None, got {labels!r}.")
        y = _scan(source)
    else:
        y = check_labels(_look_up(source) if labels is None else labels)
    if _is_map_style(source) and len(source) != y.size:
        raise ValueError(
            f"labels must be one per sample: got {y.size} for the {len(source)} samples of {type(source).__name__}. "
            "Pass labels=<one class per sample>."
        )
    if y.size == 0:
        raise ValueError("The data set is empty: there is nothing to draw from.")
    return y


def class_names(dataset: Any) -> list[str] | None:
    """Return the attribute ``classes`` of a data set, or of the one inside a ``Subset``; None if it has none."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str):
            return [str(name) for name in names]
        dataset = getattr(dataset, "dataset", None)
    return None


def _look_up(source: Any) -> Any:
    for name in ("targets", "labels"):
        labels = getattr(source, name, None)
        if labels is not None and not callable(labels):
            return labels
    if isinstance(source, Subset):
        return check_labels(_look_up(source.dataset))[np.asarray(source.indices, dtype=np.int64)]
    if isinstance(source, ConcatDataset):
        return np.concatenate([check_labels(_look_up(part)) for part in source.datasets])
    if isinstance(source, TensorDataset):
        if len(source.tensors) < 2:
            raise TypeError(f"A TensorDataset of one tensor has no labels. {_REMEDY}")
        return source.tensors[1]
    if isinstance(source, IterableDataset):
        raise TypeError(
            f"{type(source).__name__} is a stream: its samples cannot be drawn by index. "
            "FeedbackBatchSampler needs a map-style data set (__getitem__ and __len__)."
        )
    is_array = isinstance(source, (list, tuple, range)) or hasattr(source, "__array__")
    if _is_map_style(source) and not is_array:
        raise TypeError(f"{type(source).__name__} has neither 'targets' nor 'labels'. {_REMEDY}")
    return source


def _is_map_style(source: Any) -> bool:
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _scan(source: Any) -> NDArray[Any]:
    from tqdm.auto import tqdm

    labels = np.empty(len(source), dtype=np.int64)
    for index in tqdm(range(len(source)), desc="Reading labels", unit="sample"):
        sample = source[index]
        value = extract_labels(sample)
        if value is None:
            raise TypeError(
                f"labels='scan' reads the second element of each sample, but sample {index} is a "
                f"{type(sample).__name__} without one, or without a key {' or '.join(map(repr, LABEL_KEYS))}. "
                "Pass labels=<one class per sample>."
            )
        label = check_labels(np.asarray(to_numpy(value)).reshape(-1))
        if label.size != 1:
            raise ValueError(f"labels must be one class per sample, but sample {index} has {label.size}.")
        labels[index] = label[0]
    return labels
