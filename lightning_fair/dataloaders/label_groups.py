"""Groups: labels that divide the classes of a data set, for example by environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.label_sets import LabelSets
from lightning_fair.common.labels import class_names, find_labels

_MAX_SHOWN = 20  # classes or groups


def describe_groups(groups: NDArray[Any], dataset: Any, group_names: Sequence[str] | None = None) -> str | None:
    """Return a sentence on which groups are in which class of a data set.

    Args:
        groups: Group of each sample, integers at least 0, shape ``(N,)``.
        dataset: The data set, whose own labels are the classes.
        group_names: Name of each group; None: its number.

    Returns:
        The sentence; None if the data set shows no classes or several of a sample, if they are no function of the
        groups, or if each class is one group.

    Example:
        >>> from torch import tensor, zeros
        >>> from torch.utils.data import TensorDataset
        >>> describe_groups(np.array([0, 1, 2, 0]), TensorDataset(zeros(4), tensor([0, 0, 1, 0])))
        'FairSampling balances 3 groups. Class 0: groups 0, 1. Class 1: groups 2.'
    """
    try:
        labels = find_labels(dataset)
    except (TypeError, ValueError):
        return None
    classes = labels.numbers
    if isinstance(classes, LabelSets):
        return None
    kinds, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    class_of = classes[first]  # of each group
    present = np.unique(class_of)
    if not np.array_equal(class_of[group_of], classes) or len(present) == len(kinds):
        return None
    names = labels.names or class_names(dataset) or ()
    parts = []
    for number in present[:_MAX_SHOWN].tolist():
        members = kinds[class_of == number].tolist()
        listed = [group_names[group] if group_names else str(group) for group in members[:_MAX_SHOWN]]
        shown = ", ".join(listed) + (", ..." if len(members) > _MAX_SHOWN else "")
        parts.append(f"Class {names[number] if number < len(names) else number}: groups {shown}.")
    return " ".join([f"FairSampling balances {len(kinds)} groups.", *parts])
