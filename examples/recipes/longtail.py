"""Any labeled data set, made long-tailed."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from lightning_fair.common.arrays import Ints
from lightning_fair.common.labels import class_names, find_labels

T = TypeVar("T")
Kind: TypeAlias = Literal["exp", "step"]


def long_tail_counts(num_classes: int, largest: int, imbalance_ratio: float, kind: Kind = "exp") -> Ints:
    """Return the number of samples that each class keeps, shape ``(K,)``, int64, at least 1 each.

    ``"exp"``: ``n_c = int(largest * (1 / imbalance_ratio) ** (c / (K - 1)))``.
    ``"step"``: the first half of the classes (rounded up) keeps ``largest``, the others
    ``int(largest / imbalance_ratio)``.

    Args:
        num_classes: Number of classes ``K``, at least 1.
        largest: Samples of class 0, at least 1.
        imbalance_ratio: Size of the largest class over the size of the smallest one, at least 1; 1 keeps the data
            balanced.
        kind: ``"exp"`` or ``"step"``.

    Raises:
        ValueError: If a number is below 1 or not finite, or the kind is unknown.

    Reference:
        K. Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019).

    Example:
        >>> long_tail_counts(5, 100, imbalance_ratio=100)
        array([100,  31,  10,   3,   1])
        >>> long_tail_counts(4, 100, imbalance_ratio=10, kind="step")
        array([100, 100,  10,  10])
    """
    if not (math.isfinite(imbalance_ratio) and imbalance_ratio >= 1):
        raise ValueError(
            f"imbalance_ratio must be at least 1, the largest class over the smallest, got {imbalance_ratio}. "
            "If the smallest class shall have one hundredth of the largest, pass 100."
        )
    for name, value in (("num_classes", num_classes), ("largest", largest)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    index = np.arange(num_classes)
    if kind == "exp":
        exponent = index / max(num_classes - 1, 1)
    elif kind == "step":
        exponent = (index >= (num_classes + 1) // 2).astype(np.float64)
    else:
        raise ValueError(f"kind must be 'exp' or 'step', got {kind!r}.")
    # The published protocol truncates.
    return np.maximum((largest * (1.0 / imbalance_ratio) ** exponent).astype(np.int64), 1)


class LongTail(Subset[T]):
    """A long-tailed subset of a data set, as in the CIFAR-LT protocol.

    Each class keeps the number of samples that :func:`long_tail_counts` returns, but never more than it has. The
    subset is chosen once; samples are not copied.

    Args:
        dataset: A map-style data set whose labels :func:`~lightning_fair.common.labels.find_labels` finds.
        imbalance_ratio: Size of the largest class over the size of the smallest one, at least 1.
        kind: ``"exp"``: exponential decay over the classes; ``"step"``: two sizes, for half of the classes each.
        seed: Seed of a random choice of samples, at least 0; None: the first samples of each class.
        largest: Samples of class 0. Default: the size of the largest class.

    Attributes:
        targets: Label of each sample, integers, shape ``(N,)``.
        class_counts: Samples of each class, int64, shape ``(K,)``.
        classes: Names of the classes, or None if the data set has none.

    Raises:
        ValueError: If a number is out of range or the kind is unknown.
        TypeError: If the labels cannot be found.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(3).repeat(100)
        >>> LongTail(TensorDataset(torch.zeros(300, 2), labels), imbalance_ratio=100).class_counts
        array([100,  10,   1])
    """

    def __init__(
        self,
        dataset: Dataset[T],
        imbalance_ratio: float,
        kind: Kind = "exp",
        seed: int | None = None,
        *,
        largest: int | None = None,
    ) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        labels = find_labels(dataset).numbers
        available = np.bincount(labels)
        head = int(available.max()) if largest is None else largest
        sizes = long_tail_counts(available.size, head, imbalance_ratio, kind)
        order = np.arange(labels.size) if seed is None else np.random.default_rng(seed).permutation(labels.size)
        kept = np.sort(np.concatenate([order[labels[order] == c][:size] for c, size in enumerate(sizes)]))
        super().__init__(dataset, kept)  # type: ignore[arg-type]  # an array is no Sequence, but indexes like one
        self.targets: NDArray[Any] = labels[kept]
        self.class_counts: Ints = np.bincount(self.targets, minlength=available.size)
        self.classes = class_names(dataset)
