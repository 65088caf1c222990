"""Samples of a stream: their classes, the memory they own, and their importance weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_fair.common.sample_labels import LABEL_KEYS, extract_labels


def stream_labels(samples: Sequence[Any], num_classes: int, label_fn: Callable[[Any], Any] | None = None) -> list[int]:
    """Return the class of each sample of a stream.

    Args:
        samples: Samples of one kind, at least one.
        num_classes: Number of classes ``K``.
        label_fn: Takes a sample and returns its class; see :class:`~lightning_fair.FairStream` for the default.

    Raises:
        TypeError: If a class is not one integer.
        ValueError: If a class is not in ``[0, K)``.

    Example:
        >>> stream_labels([("a cat", 1), ("a dog", torch.tensor(0))], num_classes=2)
        [1, 0]
    """
    first = samples[0]
    if label_fn:
        values = [label_fn(sample) for sample in samples]
    elif isinstance(first, (tuple, list)) and len(first) >= 2:
        values = [sample[1] for sample in samples]
    else:
        values = [extract_labels(sample) for sample in samples]
    labels: list[int] = []
    try:
        for value in values:
            labels.append(operator.index(value))
    except TypeError as error:
        raise TypeError(
            "The class of a stream's sample is its second element, or stands under a key "
            f"{' or '.join(map(repr, LABEL_KEYS))}, and is one integer; got {value!r} in a {type(first).__name__}. "
            "Pass FairStream(label_fn=<function from a sample to its class>)."
        ) from error
    if min(labels) < 0 or max(labels) >= num_classes:
        label = next(y for y in labels if not 0 <= y < num_classes)
        remedy = f"Set num_classes={max(labels) + 1} or more"
        if label < 0:
            remedy = "A negative number often marks a sample without a class: leave such samples out of the source"
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {label} in the stream. {remedy}, or number the classes with "
            "FairStream(label_fn=<function from a sample to its class>)."
        )
    return labels


def owns_memory(sample: Any) -> bool:
    """Return whether a sample keeps only its own data alive. A slice of a block of images keeps the block alive."""
    if isinstance(sample, torch.Tensor):
        return sample.untyped_storage().nbytes() <= sample.numel() * sample.element_size()
    if isinstance(sample, np.ndarray):
        return sample.base is None
    if isinstance(sample, dict):
        return all(map(owns_memory, sample.values()))
    return all(map(owns_memory, sample)) if isinstance(sample, (tuple, list)) else True


def copy_data(sample: Any) -> Any:
    """Return a sample with copies of its tensors and arrays, so that it owns its memory."""
    if isinstance(sample, torch.Tensor):
        return sample.clone()
    if isinstance(sample, np.ndarray):
        return sample.copy()
    if type(sample) in (tuple, list):
        return type(sample)(map(copy_data, sample))
    if type(sample) is dict:
        return {key: copy_data(part) for key, part in sample.items()}
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return type(sample)(*map(copy_data, sample))
    return sample


def add_weight(sample: Any, weight: np.float32) -> Any:
    """Return ``(x, y)`` as ``(x, y, weight)``, or a mapping with the weight under ``"weight"``.

    Raises:
        TypeError: If the sample is neither a tuple, a list nor a mapping.
    """
    if isinstance(sample, Mapping):
        return {**sample, "weight": weight}
    if not isinstance(sample, (tuple, list)):
        raise TypeError(
            "return_weights=True adds the weight to a tuple, a list or a mapping, but a sample is a "
            f"{type(sample).__name__}. Let the source yield (x, y)."
        )
    return (*sample, weight)
