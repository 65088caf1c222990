"""The labels of the data set of a loader, which are read from its samples if the data set does not show them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from lightning_fair.common.label_set_values import Column, take_samples
from lightning_fair.common.label_values import ClassLabels, number_labels
from lightning_fair.common.labels import Labels, call_labels, class_names, look_up_labels
from lightning_fair.common.sample_labels import Key, LabelColumns, label_row, sample_place
from lightning_fair.dataloaders.label_cache import LabelCache

_NUM_PROBES = 16  # samples that are read first: they show how long the others take, and whether a cached result holds
_ANNOUNCED = 5.0  # seconds; a scan that takes longer is announced
_log = logging.getLogger("lightning_fair")


def find_loader_labels(loader: DataLoader[Any], labels: Labels = None, num_classes: int | None = None) -> ClassLabels:
    """Return the class, or the classes, of every sample of the data set of ``loader``.

    The arguments are those of :func:`~lightning_fair.common.labels.find_labels`. With ``labels="scan"``, or a key, an
    attribute or a position that only the samples have, every sample is read once, with the workers of the loader and
    without its ``collate_fn``. The random state stays as it was. The labels are kept in a cache folder for later runs
    (see :class:`~lightning_fair.dataloaders.label_cache.LabelCache`).

    Raises:
        TypeError: If the data set is a stream, or a sample does not have a label.
        ValueError: If the labels are no classes of the samples, or can be several elements of the samples.

    Example:
        >>> loader = DataLoader([("a", "cat"), ("b", "dog"), ("c", "dog")])
        >>> labels = find_loader_labels(loader)  # with labels="scan", the same after a scan
        >>> labels.numbers, labels.names, labels.place
        (array([0, 1, 1]), ('cat', 'dog'), 'element 1 of the samples')
    """
    labels = call_labels(labels, loader.dataset)
    result = look_up_labels(loader.dataset, labels, num_classes)
    if result is not None:
        return result
    assert isinstance(labels, (str, int))
    key, values = _scan(loader, None if labels == "scan" else labels)
    num_named = len(class_names(loader.dataset) or ()) if labels == "scan" else 0
    return replace(number_labels(values, num_classes, num_named), place=sample_place(key))


def _scan(loader: DataLoader[Any], key: Key) -> tuple[str | int, Column]:
    """Return where the labels are, and those of all samples, from the cache if they are there."""
    size = len(loader.dataset)  # type: ignore[arg-type]
    probes = np.unique(np.linspace(0, size - 1, _NUM_PROBES).astype(np.int64))
    rest = np.setdiff1d(np.arange(size), probes)
    cache = LabelCache(loader.dataset, key)  # before a sample is read, which may change the data set
    with same_random_state():
        columns, arrivals = LabelColumns(), []
        for rows in _read(loader, key, probes, num_workers=min(loader.num_workers, 1), batch_size=1):
            columns.extend(rows)
            arrivals.append(time.perf_counter())
        # From the first sample on, so that the start of the worker does not count.
        seconds = (arrivals[-1] - arrivals[0]) / probes.size * rest.size / max(loader.num_workers, 1)
        cached = cache.load(size)
        if cached is not None and columns.agree(cached[0], take_samples(cached[1], probes)):
            _log.info("The labels of %s are those of an earlier scan (%s).", type(loader.dataset).__name__, cache.path)
            return cached
        _announce(loader, seconds, cache.reason)
        for rows in _read_with_progress(loader, key, rest):
            columns.extend(rows)
    name, values = columns.choose()
    labels = take_samples(values, np.argsort(np.concatenate([probes, rest])))
    cache.save(name, labels)
    return name, labels


def _announce(loader: DataLoader[Any], seconds: float, reason: str | None) -> None:
    if seconds < _ANNOUNCED:
        return
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    later = "Later runs use the result." if reason is None else f"Later runs will read them again: {reason}."
    # A warning, because other messages of the logger are not visible by default.
    _log.warning(
        "Reading the label of each of the %d samples of %s takes about %s with %d workers. %s",
        len(loader.dataset),  # type: ignore[arg-type]
        type(loader.dataset).__name__,
        minutes,
        loader.num_workers,
        later,
    )


def _read_with_progress(loader: DataLoader[Any], key: Key, indices: NDArray[Any]) -> Iterator[Sequence[Any]]:
    from tqdm.auto import tqdm

    with tqdm(total=indices.size, desc="Reading labels", unit="sample", disable=not indices.size) as bar:
        for rows in _read(loader, key, indices, num_workers=loader.num_workers, batch_size=loader.batch_size or 32):
            yield rows
            bar.update(len(rows))


def _read(
    loader: DataLoader[Any], key: Key, indices: NDArray[Any], *, num_workers: int, batch_size: int
) -> Iterator[Sequence[Any]]:
    """Yield what may be the labels of the samples at ``indices``, batch by batch, in order."""
    reader: DataLoader[Any] = DataLoader(
        Subset(loader.dataset, indices.tolist()),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_label_rows, key),
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if num_workers else None,
        timeout=loader.timeout if num_workers else 0,
    )
    first = 0
    for rows in reader:
        if rows and isinstance(rows[-1], Exception):
            place = "the second element, or a usual key," if key is None else f"{key!r}"
            raise type(rows[-1])(
                f"labels={'scan' if key is None else key!r} reads {place} of each sample, but sample "
                f"{indices[first + len(rows) - 1]} {rows[-1]}. Pass labels=<one class per sample>, or the key, "
                "attribute or position of the label in a sample."
            )
        first += len(rows)
        yield rows


def _label_rows(key: Key, samples: Sequence[Any]) -> list[Any]:
    """Return what may be the label of each sample, up to the first that has none, whose error is the last element.

    An error that a worker raises would lose its message, so it is returned.
    """
    rows: list[Any] = []
    for sample in samples:
        try:
            rows.append(label_row(sample, key))
        except (TypeError, ValueError) as error:
            return [*rows, error]
    return rows


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch, which a data set in this process may use."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
