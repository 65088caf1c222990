"""The labels of a data set, without loading its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from lightning_fair.common.checks import check, show
from lightning_fair.common.label_columns import has_repeats, label_column
from lightning_fair.common.label_set_values import Column, SetColumn, is_frame, join_columns, take_samples
from lightning_fair.common.label_sets import LabelSets, name_unlabeled
from lightning_fair.common.label_values import ClassLabels, number_labels
from lightning_fair.common.sample_labels import LABEL_KEYS, LabelColumns, choose_tensor, label_row, sample_place

# In this order for parsers of configurations.
Labels: TypeAlias = Literal["scan"] | Callable[[Any], Any] | int | str | ArrayLike | Sequence[Any] | None

_ATTRIBUTES = ("targets", "labels", "y", "Y", "_labels")
_REMEDY = (
    "Pass labels=<one class per sample>, the name of an attribute, column or key, a function of the data set, or "
    "labels='scan' to read every sample once."
)


class _Column(NamedTuple):
    """The labels of a data set as they are stored, their place, and the names of the classes if any."""

    values: Column
    place: str
    names: tuple[str, ...] | None = None


# A place in a data set that may hold its labels: name of the place, labels, and names of the classes.
_Place: TypeAlias = tuple[str, Any, "tuple[str, ...] | None"]
_Places: TypeAlias = Callable[[Any], Iterator[_Place]]  # of a data set


def find_labels(dataset: Any, labels: Labels = None, num_classes: int | None = None) -> ClassLabels:
    """Return the class, or the classes, of every sample of a data set; no sample is loaded.

    The labels are those in the first of these places that has one class per sample, or else several of each sample: an
    attribute ``targets``, ``labels``, ``y``, ``Y`` or ``_labels``; the method ``get_labels``; the pairs of path and
    class in ``samples`` or ``_samples``; a column ``label``, ``labels``, ``target``, ``targets`` or ``y`` of a Hugging
    Face data set or a ``DataFrame``; the only tensor of a ``TensorDataset`` that can hold classes; the samples of a
    list. The labels of the data sets in a ``Subset``, a ``ConcatDataset``, or a wrapper with a ``dataset`` of the same
    length are combined, at any depth. At each depth there must be labels for each sample.

    Args:
        dataset: A map-style data set.
        labels: Labels to use instead: those of each sample; the name of an attribute or column, also of an inner data
            set; the position of a tensor in a ``TensorDataset``; or a function that takes the data set, which may be a
            ``Subset``, and returns one of these.
        num_classes: Number of classes, if it is known; see
            :func:`~lightning_fair.common.label_values.number_labels`, which describes the labels that are accepted.

    Raises:
        TypeError: If the data set is a stream, or has no labels in the places above.
        ValueError: If the labels are no classes of the samples, or the data set is empty.

    Example:
        >>> import torch
        >>> dataset = TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> find_labels(Subset(dataset, [2, 3])).numbers
        array([1, 0])
        >>> find_labels(dataset, labels=["cat", "dog", "dog", "cat"]).names
        ('cat', 'dog')
        >>> find_labels(Subset(dataset, [2, 3]), labels=lambda data: data.dataset.tensors[1][data.indices]).numbers
        array([1, 0])
        >>> find_labels(TensorDataset(torch.rand(3, 2), torch.tensor([[1, 1], [0, 1], [0, 0]]))).numbers.counts
        array([1, 2, 1])
    """
    result = look_up_labels(dataset, labels, num_classes)
    if result is None:
        what = "labels in the usual places" if labels in (None, "scan") else f"labels at {show(labels)}"
        raise TypeError(f"{_kind(_innermost(dataset))} has no {what}. {_offers(_innermost(dataset))}{_REMEDY}")
    return result


def look_up_labels(dataset: Any, labels: Labels = None, num_classes: int | None = None) -> ClassLabels | None:
    """Return what :func:`find_labels` returns; None if the samples have to be read.

    This is the case for ``labels="scan"``, and for a name or a position that the data set does not have.
    """
    num_classes = check("num_classes", num_classes, optional=True)
    if isinstance(dataset, (str, bytes)) or not (hasattr(dataset, "__iter__") or hasattr(dataset, "__getitem__")):
        raise TypeError(f"dataset must be a map-style data set (__getitem__ and __len__), got {show(dataset)}.")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"{_kind(dataset)} is a stream: its samples cannot be drawn by index. "
            "FeedbackBatchSampler needs a map-style data set (__getitem__ and __len__)."
        )
    if len(dataset) == 0:
        raise ValueError("The data set is empty: there is nothing to draw from.")
    labels = call_labels(labels, dataset)
    if labels is None:
        column = _look_up(dataset, _usual_places)
        if column is None:
            raise TypeError(_without_labels(dataset))
        values = column.values.values if isinstance(column.values, SetColumn) else column.values
        if values.dtype.kind == "O" and len(column.values) > 1 and not has_repeats(values):
            raise ValueError(
                f"labels must be classes, but no two samples of {_kind(dataset)} have the same label, such as "
                f"{values[0]!r}. {_REMEDY}"
            )
    elif isinstance(labels, str):
        column = None if labels == "scan" else _look_up(dataset, _places_called(labels))
    elif type(labels) is int or isinstance(labels, np.integer):
        # Not in a wrapper, whose samples may have other elements.
        column = _look_up(dataset, _tensor_at(int(labels)), in_wrappers=False)
    else:
        column = _Column(_one_per_sample(labels, dataset), "labels=")
    if column is None:
        return None
    num_named = len(column.names or (class_names(dataset) if labels is None else None) or ())
    numbered = number_labels(column.values, num_classes, num_named)
    names, sets = numbered.names or column.names, numbered.numbers
    if names and isinstance(sets, LabelSets) and sets.has_unlabeled and len(names) == sets.num_classes - 1:
        names = name_unlabeled(names)
    return replace(numbered, names=names, place=column.place)


def call_labels(labels: Labels, dataset: Any) -> Any:
    """Return labels that are a function of the data set as the values, name or position that it returns."""
    if not callable(labels) or hasattr(labels, "__array__"):
        return labels
    try:
        return labels(dataset)
    except Exception as error:  # of the user's function
        if not isinstance(dataset, Subset):
            raise
        raise TypeError(
            f"labels=<function> got the loader's data set, a {_kind(dataset)}, and raised {error!r}. Use data.dataset "
            "and data.indices, for example labels=lambda data: [data.dataset.y[i] for i in data.indices]."
        ) from error


def class_names(dataset: Any) -> list[str] | None:
    """Return the attribute ``classes`` of a data set, or of the one inside a ``Subset``; None if it has none."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str):
            return [str(name) for name in names]
        dataset = getattr(dataset, "dataset", None)
    return None


def to_class_labels(source: Any, num_classes: int | None = None) -> ClassLabels:
    """Return the labels of a data set, or labels of any accepted form, as class numbers and names.

    Raises:
        TypeError, ValueError: See :func:`find_labels`.
    """
    if _is_dataset(source):
        return find_labels(source, num_classes=num_classes)
    labels = number_labels(source, num_classes)
    if not labels.numbers.size:
        raise ValueError("The data set is empty: there is nothing to draw from.")
    return labels


def _is_dataset(source: Any) -> bool:
    """Return whether ``source`` is a map-style data set, and not labels: a list, an array, a tensor or a column."""
    if isinstance(source, Dataset) or is_frame(source):
        return True
    if isinstance(source, (list, tuple, range, Mapping, str, bytes)) or hasattr(source, "__array__"):
        return False
    is_column = hasattr(source, "column_name")  # of Hugging Face
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not is_column


def _look_up(dataset: Any, places: _Places, in_wrappers: bool = True) -> _Column | None:
    """Return the labels in the first place that has them for each sample, at the outermost data set that has one.

    A place with one class per sample goes before a place with several.
    """
    refusals: list[ValueError] = []
    several: _Column | None = None
    index: _Column | None = None
    for place, values, names in places(dataset):
        try:
            column = _Column(_one_per_sample(values, dataset, f", in its {place}"), place, names)
            if not has_repeats(column.values):
                index = index or column
            elif isinstance(column.values, SetColumn):
                several = several or column  # if no place has single labels
            else:
                return column
        except ValueError as error:
            refusals.append(error)
    if several is not None:
        return several
    inner = _look_up_inner(dataset, places, in_wrappers)
    if inner is None and index is None and refusals:
        raise refusals[0]
    return inner or index


def _look_up_inner(dataset: Any, places: _Places, in_wrappers: bool) -> _Column | None:
    if isinstance(dataset, ConcatDataset):
        parts = [_look_up(part, places, in_wrappers) for part in dataset.datasets]
        return _concatenate([part for part in parts if part]) if all(parts) else None
    inner = getattr(dataset, "dataset", None)
    if not isinstance(inner, Sized) or not (isinstance(dataset, Subset) or in_wrappers):
        return None
    indices = getattr(dataset, "indices", None)
    if isinstance(dataset, Subset) or (isinstance(indices, Sized) and len(indices) == len(dataset)):
        column = _look_up(inner, places, in_wrappers)
        return column and column._replace(values=take_samples(column.values, indices))
    return _look_up(inner, places) if len(inner) == len(dataset) else None


def _concatenate(parts: Sequence[_Column]) -> _Column:
    values = join_columns([part.values for part in parts])
    names = {part.names for part in parts}
    place = " and ".join(dict.fromkeys(part.place for part in parts))
    return _Column(values, place, names.pop() if len(names) == 1 else None)


def _one_per_sample(values: Any, dataset: Any, place: str = "") -> Column:
    y = label_column(values)
    if len(y) != len(dataset):
        raise ValueError(
            f"labels must be one per sample: got {len(y)} for the {len(dataset)} samples of {_kind(dataset)}{place}. "
            "Pass labels=<one class per sample>, or labels='scan' to read every sample once."
        )
    return y


def _usual_places(dataset: Any) -> Iterator[_Place]:
    for name in _ATTRIBUTES:
        if (values := _attribute(dataset, name)) is not None:
            yield f"attribute {name!r}", values, None
    if callable(method := getattr(dataset, "get_labels", None)):
        with suppress(TypeError):  # if it takes arguments, it returns something else
            yield "method 'get_labels'", method(), None
    for name in ("samples", "_samples"):
        pairs = _attribute(dataset, name)
        if isinstance(pairs, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
        ):
            yield f"attribute {name!r}", [pair[1] for pair in pairs], None
    for name in LABEL_KEYS:
        yield from _column_called(dataset, name)
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        position, values = choose_tensor(dataset.tensors)
        yield f"tensor {position}", values, None
    elif isinstance(dataset, (list, tuple)):
        yield from _labels_in_list(dataset)


def _places_called(name: str) -> _Places:
    def places(dataset: Any) -> Iterator[_Place]:
        yield from _column_called(dataset, name)
        if (values := _attribute(dataset, name)) is not None:
            yield f"attribute {name!r}", values, None

    return places


def _tensor_at(position: int) -> _Places:
    def places(dataset: Any) -> Iterator[_Place]:
        if isinstance(dataset, TensorDataset) and -len(dataset.tensors) <= position < len(dataset.tensors):
            yield f"tensor {position}", dataset.tensors[position], None

    return places


def _attribute(dataset: Any, name: str) -> Any:
    """Return an attribute that may hold labels; None for a method, a text, or a number."""
    try:
        values = None if is_frame(dataset) else getattr(dataset, name, None)
    except Exception:  # of a property, which can raise anything
        return None
    return None if callable(values) or isinstance(values, str) or not hasattr(values, "__len__") else values


def _column_called(dataset: Any, name: str) -> Iterator[_Place]:
    """Yield a column of a Hugging Face data set, in the order of its samples, or of a ``DataFrame``."""
    if is_frame(dataset):
        if name in dataset.columns:
            yield f"column {name!r}", dataset[name], None
    elif hasattr(getattr(dataset, "data", None), "column") and name in getattr(dataset, "features", ()):
        values = dataset.data.column(name)  # the rows would be decoded one by one
        if (order := getattr(dataset, "_indices", None)) is not None:
            values = values.take(order.column(0))
        feature, place = dataset.features[name], f"column {name!r}"
        names = getattr(feature, "names", None)
        if inner := getattr(getattr(feature, "feature", None), "names", None):  # lists of classes, of any length
            rows = values.to_numpy(zero_copy_only=False)
            names, values = inner, [None if row is None else set(row.tolist()) for row in rows]
        yield place, values, tuple(names) if names else None


def _labels_in_list(samples: Sequence[Any]) -> Iterator[_Place]:
    with suppress(TypeError):  # if the elements are ids, texts or arrays
        try:
            row = label_row(samples[0])
        except ValueError as error:
            raise ValueError(f"labels must be one class per sample, but sample 0 {error}. {_REMEDY}") from error
        key = next(iter(row)) if len(row) == 1 else None
        columns = LabelColumns()
        columns.extend(label_row(sample, key) for sample in samples)
        key, values = columns.choose()
        yield sample_place(key), values, None


def _without_labels(dataset: Any) -> str:
    inner = _innermost(dataset)
    if _is_dataset(inner):
        return f"{_kind(inner)} has no labels in the usual places (targets, labels, y, ...). {_offers(inner)}{_REMEDY}"
    return (
        f"The data set is of type {_kind(inner)}: its elements are samples and not labels. Pass labels=<one class per "
        "sample>; if the elements are ids, labels=[label_of[id] for id in ids]."
    )


def _offers(dataset: Any) -> str:
    """Return a sentence that names the columns or attributes that may be meant."""
    columns: list[Any] = list(getattr(dataset, "columns" if is_frame(dataset) else "column_names", []))
    fits = [name for name in columns or getattr(dataset, "__dict__", []) if _may_be_labels(dataset, name)]
    listed = ", ".join(map(repr, (columns or fits)[:20]))
    example = f"; for example labels={fits[-1]!r}" if fits else ""
    return f"{'Its columns are' if columns else 'It has'} {listed}{example}. " if listed else ""


def _may_be_labels(dataset: Any, name: str) -> bool:
    with suppress(Exception):  # of what is no sequence, or of labels that are refused
        ((_, values, _),) = _places_called(name)(dataset)
        return len(values) == len(dataset) and has_repeats(label_column(values[:1000]))
    return False


def _innermost(dataset: Any) -> Any:
    while getattr(dataset, "dataset", None) is not None:
        dataset = dataset.dataset
    return dataset


def _kind(dataset: Any) -> str:
    name = type(dataset).__name__
    return f"{type(dataset).__module__.partition('.')[0]}.{name}" if name == "Dataset" else name
