"""Any labelled data set, made long-tailed."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from lightning_fair.common.arrays import Ints
from lightning_fair.common.labels import Labels, find_labels

T = TypeVar("T")
Kind: TypeAlias = Literal["exp", "step"]


def long_tail_counts(num_classes: int, largest: int, imbalance_ratio: float, kind: Kind = "exp") -> Ints:
    """Return how many samples each class keeps, shape ``(C,)``, int64, at least 1 each.

    ``"exp"``: ``n_c = int(largest * (1 / imbalance_ratio) ** (c / (C - 1)))``, from class 0, the head, to
    class ``C - 1``, the tail. ``"step"``: the first half of the classes (the larger one, where ``C`` is odd)
    keeps ``largest``, the others ``int(largest / imbalance_ratio)``.

    Args:
        num_classes: Number of classes ``C``, at least 1.
        largest: Samples of the head class, at least 1.
        imbalance_ratio: Size of the head over the size of the tail, at least 1; 1 leaves the data balanced.
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
            f"imbalance_ratio is the head's size over the tail's, at least 1, got {imbalance_ratio}. "
            "For a tail of one hundredth of the head, pass 100."
        )
    for name, value in (("num_classes", num_classes), ("largest", largest)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    place = np.arange(num_classes)
    if kind == "exp":
        exponent = place / max(num_classes - 1, 1)
    elif kind == "step":
        exponent = (place >= (num_classes + 1) // 2).astype(np.float64)
    else:
        raise ValueError(f"kind must be 'exp' or 'step', got {kind!r}.")
    # The field's protocol truncates; so does this, or the totals would not be the published ones.
    sizes = (largest * (1.0 / imbalance_ratio) ** exponent).astype(np.int64)
    return np.maximum(sizes, 1)


class LongTail(Subset[T]):
    """A long-tailed subset of a data set, as in the CIFAR-LT protocol.

    Each class keeps the number of samples that :func:`long_tail_counts` says, but never more than it has. The
    subset is fixed when it is made; samples are not copied.

    Args:
        dataset: A map-style data set with labels.
        imbalance_ratio: Size of the head class over the size of the tail class, at least 1.
        kind: ``"exp"``: exponential decay over the classes; ``"step"``: two sizes, half of the classes each.
        seed: None keeps the first samples of each class, so everybody gets the same subset; an integer of at
            least 0 keeps a random choice.
        largest: Samples of class 0. Default: the size of the largest class.
        labels: The labels, where the data set does not show them; see
            :func:`~lightning_fair.common.labels.find_labels`.

    Attributes:
        targets: Label of each sample that is kept, integers, shape ``(N,)``.
        class_counts: Samples kept of each class, int64, shape ``(C,)``.
        classes: Names of the classes, where the data set has them, else None.

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
        labels: Labels = None,
    ) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        found = find_labels(dataset, labels)
        available = np.bincount(found)
        head = int(available.max()) if largest is None else largest
        wanted = long_tail_counts(available.size, head, imbalance_ratio, kind)
        rng = None if seed is None else np.random.default_rng(seed)
        kept = np.sort(np.concatenate([_choose(np.flatnonzero(found == c), n, rng) for c, n in enumerate(wanted)]))
        super().__init__(dataset, kept)  # type: ignore[arg-type]  # an array is no Sequence, but indexes like one
        self.targets: NDArray[Any] = found[kept]
        self.class_counts: Ints = np.bincount(self.targets, minlength=available.size)
        self.classes: list[str] | None = _class_names(dataset)


def _choose(items: NDArray[Any], count: int, rng: np.random.Generator | None) -> NDArray[Any]:
    return (items if rng is None else rng.permutation(items))[:count]


def _class_names(dataset: Any) -> list[str] | None:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return None if names is None else [str(name) for name in names]
