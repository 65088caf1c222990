"""Objects around a ``DataLoader`` that pass on its batches: prefetchers, chains, and classes of the user."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from torch.utils.data import DataLoader

_MAX_DEPTH = 2  # of wrappers inside a wrapper
_MAX_PARTS = 64  # a longer list holds data


def unchain(loader: Any) -> Any:
    """Return the only loader of an ``itertools.chain`` that has not begun; anything else as it is."""
    if not isinstance(loader, itertools.chain):
        return loader
    # Two steps: from the chain to the iterator over its arguments, and from there to their tuple or list.
    arguments: Any = loader
    for _ in range(2):
        parts = [part for part in gc.get_referents(arguments) if not isinstance(part, type)]  # without its own
        if len(parts) != 1:  # it has begun
            return loader
        arguments = parts[0]
    return arguments[0] if isinstance(arguments, (tuple, list)) and len(arguments) == 1 else loader


def loader_inside(loader: Any) -> DataLoader[Any]:
    """Return the ``DataLoader`` that makes the batches of ``loader``: itself, or the only one among its attributes.

    Raises:
        TypeError: If there is no such loader, or more than one.
    """
    if _is_loader(loader):
        return loader  # type: ignore[no-any-return]
    inside = list({id(part): part for part in _loaders_in(loader, _MAX_DEPTH)}.values())
    name = type(loader).__name__
    if not inside:
        raise TypeError(
            f"Only a torch.utils.data.DataLoader can be made fair, got {name}, which has none among its attributes "
            f"(not in __slots__, and at most {_MAX_DEPTH + 1} wrappers deep). Return a DataLoader for training (for "
            "several data sets, over torch.utils.data.ConcatDataset), or remove FairSampling."
        )
    if len(inside) > 1:
        raise TypeError(
            f"{name} takes its batches from {len(inside)} DataLoaders, and FairSampling steers one. Return one "
            "DataLoader over torch.utils.data.ConcatDataset([...]) of their data sets, or return the loaders in a "
            "dict and choose one with FairSampling(dataloader=<key>)."
        )
    return inside[0]


def wrong_choice(loaders: Mapping[Any, Sequence[Any]], key: Any) -> ValueError:
    """Return the error that no loader, or a wrong one, was chosen by ``key``, given the loaders of each key."""
    choices = [name for name, parts in loaders.items() if len(parts) == 1 and _has_loader(parts[0])]
    if not choices:
        several = [name for name, parts in loaders.items() if any(map(_has_loader, parts))]
        got = f"those of {several[0]!r} are several" if several else "there is none"
        return ValueError(
            f"FairSampling steers one training DataLoader, and {got}. Return a DataLoader, or a dict of them without "
            "lists in it, and choose one with FairSampling(dataloader=<key>)."
        )
    problem = "there are several" if key is None else f"dataloader={key!r} is none that can be chosen"
    return ValueError(
        f"FairSampling steers one training DataLoader, but {problem}: {', '.join(map(repr, choices))}. "
        f"Choose one with FairSampling(dataloader={choices[0]!r})."
    )


def _has_loader(value: Any) -> bool:
    return any(True for _ in _loaders_among(value, _MAX_DEPTH))


def replace_loader(wrapper: Any, old: DataLoader[Any], new: DataLoader[Any]) -> dict[str, Any]:
    """Return the attributes of a copy of ``wrapper`` that has ``new`` in place of the loader ``old``."""
    return {name: _map(value, lambda part: new if part is old else part) for name, value in vars(wrapper).items()}


def _map(value: Any, change: Callable[[Any], Any], depth: int = _MAX_DEPTH) -> Any:
    if type(value) is dict:
        return {key: _map(part, change, depth) for key, part in value.items()}
    if type(value) in (list, tuple) and len(value) <= _MAX_PARTS:
        return type(value)(_map(part, change, depth) for part in value)
    if depth and not _is_loader(value) and any(True for _ in _loaders_in(value, depth - 1)):
        value = copy(value)
        vars(value).update({name: _map(part, change, depth - 1) for name, part in vars(value).items()})
    return change(value)


def _loaders_in(value: Any, depth: int) -> Iterator[DataLoader[Any]]:
    if not hasattr(type(value), "__iter__"):
        return
    for attribute in list(getattr(value, "__dict__", {}).values()):
        yield from _loaders_among(attribute, depth)


def _loaders_among(value: Any, depth: int) -> Iterator[DataLoader[Any]]:
    if _is_loader(value):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        parts = list(value.values()) if isinstance(value, dict) else value
        for part in parts if len(parts) <= _MAX_PARTS else ():
            yield from _loaders_among(part, depth)
    elif depth:
        yield from _loaders_in(value, depth - 1)


def _is_loader(value: Any) -> bool:
    # Some wrappers give themselves the class of the loader inside, and have no data set of their own.
    return isinstance(value, DataLoader) and "dataset" in vars(value)
