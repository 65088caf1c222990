"""Samples of a stream: their classes, the memory they own, and their importance weights."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from lightning_fair.common.checks import show
from lightning_fair.common.label_columns import is_missing, label_column
from lightning_fair.common.labels import class_names
from lightning_fair.common.sample_labels import LABEL_KEYS, extract_labels

_REMEDY = "Pass FairStream(label_fn=<function from a sample to its class>)"
_MAX_SHOWN = 20  # names in a message


def stream_labels(
    samples: Sequence[Any],
    num_classes: int,
    label_fn: Callable[[Any], Any] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> list[int]:
    """Return the class of each sample of a stream.

    Whole numbers, of any type and in arrays of one value, are class numbers; the class of a row with a single 1 and
    else 0 is its column. Any other label is looked up by its name.

    Args:
        samples: Samples of one kind, at least one.
        num_classes: Number of classes ``K``.
        label_fn: Takes a sample and returns its class; see :class:`~lightning_fair.FairStream` for the default.
        numbers: Class number of each name; None if nothing names the classes.

    Raises:
        TypeError: If a sample has no label, or no label that can be a class or a name.
        ValueError: If a class is not in ``[0, K)``, a name is unknown, or a label is not one class.

    Example:
        >>> stream_labels([("a cat", 1), ("a dog", torch.tensor(0.0))], num_classes=2)
        [1, 0]
        >>> stream_labels([{"text": "meow", "label": "cat"}], num_classes=2, numbers={"cat": 0, "dog": 1})
        [0]
    """
    values = label_values(samples, label_fn)
    try:
        labels = list(map(operator.index, values))
    except TypeError:
        labels = [class_number(value, numbers or {}) for value in values]
    refuse_out_of_range(labels, num_classes)
    return labels


def label_values(samples: Sequence[Any], label_fn: Callable[[Any], Any] | None) -> list[Any]:
    """Return what stands in each sample as its label.

    Raises:
        TypeError: If a sample has none.
    """
    first = samples[0]
    if label_fn:
        return [label_fn(sample) for sample in samples]
    if isinstance(first, (tuple, list)) and len(first) >= 2:
        return [sample[1] for sample in samples]
    values = [extract_labels(sample) for sample in samples]
    if any(value is None for value in values):
        raise TypeError(
            "The class of a stream's sample is its second element, or stands under a key "
            f"{' or '.join(map(repr, LABEL_KEYS))}; got a {type(first).__name__} without it{_keys(first)}. {_REMEDY}."
        )
    return values


def refuse_out_of_range(labels: Sequence[int], num_classes: int) -> None:
    """Raise a ``ValueError`` if one of the class numbers is not in ``[0, num_classes)``."""
    if labels and (min(labels) < 0 or max(labels) >= num_classes):
        label = next(y for y in labels if not 0 <= y < num_classes)
        remedy = f"Set num_classes={max(labels) + 1} or more"
        if label < 0:
            remedy = "A negative number often marks a sample without a class: leave such samples out of the source"
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {label} in the stream. {remedy}, or number the classes with "
            "FairStream(label_fn=<function from a sample to its class>)."
        )


def class_number(value: Any, numbers: Mapping[str, int]) -> int:
    """Return the class number of a label: a whole number of any type, a row with a single 1, or a name.

    Raises:
        TypeError, ValueError: See :func:`stream_labels`.
    """
    with suppress(TypeError):
        return operator.index(value)
    if (
        hasattr(value, "shape")
        or isinstance(value, (list, set, frozenset))
        or (isinstance(value, tuple) and not numbers)
    ):
        value = _one_value(value)
    if is_missing(value):
        raise ValueError(
            "labels must be one class per sample, but a sample of the stream has none (None or NaN). Leave such "
            f"samples out of the source, or give them a class. {_REMEDY}."
        )
    if isinstance(value, (int, float)) and value == np.floor(value) and abs(value) < 2.0**63:
        return int(value)
    if isinstance(value, float) and not numbers:
        raise ValueError(
            f"labels must be whole numbers or names, got {value} in the stream. To balance intervals of a number, pass "
            "FairStream(label_fn=...) with a function such as lambda sample: np.digitize(sample[1], edges)."
        )
    name = value.decode(errors="replace") if isinstance(value, bytes) else value
    name = name if isinstance(name, str) else str(name)
    if name in numbers:
        return numbers[name]
    if numbers:
        known = ", ".join(map(repr, list(numbers)[:_MAX_SHOWN])) + (", ..." if len(numbers) > _MAX_SHOWN else "")
        raise ValueError(
            f"labels must be class numbers or names of classes, got {show(value)} in the stream; the classes are "
            f"{known}. Name it in FairStream(class_names=[...]), or leave such samples out of the source."
        )
    raise TypeError(
        f"labels must be class numbers or names of classes, got {show(value)} in a stream that names no classes. Pass "
        "FairStream(class_names=[...]) with the name of each class, in the order of their numbers, or "
        "FairStream(label_fn=<function from a sample to its class>)."
    )


def _one_value(value: Any) -> Any:
    """Return the only value of an array, or the column of a one-hot row."""
    if getattr(value, "size", None) == 1 or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return value.item()
    column = np.zeros(0)
    with suppress(ValueError):
        column = label_column([value])  # type: ignore[assignment]
    if not isinstance(column, np.ndarray) or column.size != 1:
        raise ValueError(
            f"labels must be one class per sample, got {show(value)} in the stream. If samples have several labels, "
            "set FairStream(several_labels=True). If these are the labels of a batch, let the source yield single "
            f"samples. To choose one label, {_REMEDY[0].lower()}{_REMEDY[1:]}."
        )
    return column.tolist()[0]


def _keys(sample: Any) -> str:
    return f" (keys {', '.join(map(repr, sample))})" if isinstance(sample, Mapping) else ""


def source_classes(source: Any, label_fn: Callable[[Any], Any] | None = None) -> list[str] | None:
    """Return the names of the classes of a source: its ``classes``, or those of the label among its ``features``.

    None if it has none. Hugging Face data sets have ``features``; with a ``label_fn``, the label is not known.
    """
    names = class_names(source)
    features = getattr(source, "features", None)
    if names is None and label_fn is None and isinstance(features, Mapping):
        key = next((key for key in LABEL_KEYS if key in features), None)
        feature = features.get(key)
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return names


def number_names(names: Sequence[str]) -> dict[str, int]:
    """Return the class number of each name; a name of several classes has none."""
    counts = Counter(names)
    return {name: number for number, name in enumerate(names) if counts[name] == 1}


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
