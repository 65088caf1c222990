"""Sums over ranks, and comparisons of them: the only module that imports ``torch.distributed``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist


def count_ranks() -> int:
    """Return the number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add up ``values`` over all ranks in place, and return them; with one process they stay as they are.

    Every rank has to call it equally often, with the same shape and dtype.
    """
    if count_ranks() > 1:
        dist.all_reduce(values)  # not `Strategy.reduce`, which adds a barrier and defaults to the mean
    return values


def gather_from_ranks(value: Any, group: Any = None) -> list[Any]:
    """Return the picklable ``value`` of each rank. Every rank has to call it equally often."""
    if count_ranks() == 1:
        return [value]
    ranks: list[Any] = [None] * count_ranks()
    dist.all_gather_object(ranks, value, group=group)
    return ranks


def gather_obstacles(obstacle: str | None) -> list[str | None]:
    """Return what keeps each rank from going on, shape ``(ranks,)``; an empty list if nothing keeps any of them.

    Every rank has to call it equally often. If all go on it costs one sum of one number, on the CPU, so that no rank
    waits for its GPU.
    """
    num_obstacles = torch.tensor(int(obstacle is not None))
    group = None
    if count_ranks() > 1:
        group = _host_group(dist.group.WORLD)
        dist.all_reduce(num_obstacles, group=group)
    return gather_from_ranks(obstacle, group) if num_obstacles else []


@lru_cache(maxsize=1)  # a group has a connection from each rank to others, so there is one only
def _host_group(world: Any) -> Any:
    """Return a group of all ranks that works on the CPU."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")


def check_ranks(rank: int, world_size: int | None, facts: Callable[[], Mapping[str, object]]) -> bool:
    """Compare the ranks, if ``world_size`` is their number; if it is None, warn that each makes the same draws.

    Return whether several processes train together; if not, nothing was done.
    """
    if count_ranks() == 1:
        return False
    if world_size == count_ranks():
        check_same_on_all_ranks(facts())
        ranks = gather_from_ranks(rank)
        if len(set(ranks)) < world_size:
            raise ValueError(
                f"Every process must have its own rank, got rank={', '.join(map(str, ranks))}: those with the same one "
                "draw the same samples. Make the sampler with rank=..., for example fabric.global_rank."
            )
    elif world_size is None:
        warnings.warn(
            f"world_size was not set, and {count_ranks()} processes train together: each of them draws the same "
            "samples. Make the sampler with rank=... and world_size=..., for example fabric.global_rank and "
            "fabric.world_size. If that is intended, or accelerator.prepare deals the batches out, set world_size=1. "
            "Give Lightning's Trainer the plain loader with FairSampling, or the FairDataModule itself.",
            stacklevel=2,
        )
    return True


def check_same_on_all_ranks(facts: Mapping[str, object], error: Exception | None = None) -> None:
    """Raise an error on every rank if the ranks differ in one of the ``facts``, or if one of them has an ``error``.

    Every rank has to call it equally often, also one that cannot go on: no other waits for it then.

    Args:
        facts: What has to be the same everywhere, by its name. What only some ranks know is not compared.
        error: What went wrong on this rank.

    Raises:
        ValueError: If the ranks differ; it names what, and two ranks with their values.
        RuntimeError: If another rank has an error, and this one has none.
        Exception: ``error`` itself.
    """
    if count_ranks() > 1:
        known = {name: str(value) for name, value in facts.items()}
        ranks = gather_from_ranks((known, None if error is None else f"{type(error).__name__}: {error}"))
        differences = [_difference(name, [known.get(name) for known, _ in ranks]) for name in known]
        if differences := list(filter(None, differences)):
            raise ValueError(
                f"The ranks have to draw the same batches, but they differ in {'; '.join(differences[:3])}. Give every "
                "rank the same settings, and the same samples in the same order: it trains on its share of each batch. "
                "If each rank reads samples of its own, make them an IterableDataset inside a FairStream, whose epochs "
                "end on all ranks together."
            ) from error
        for rank, (_, failure) in enumerate(ranks):
            if failure and error is None:
                raise RuntimeError(f"Rank {rank} cannot train: {failure}")
    if error is not None:
        raise error


def _difference(name: str, values: list[str | None]) -> str:
    """Return what two ranks have, in words; empty if the values that are known do not differ."""
    known = [(rank, value) for rank, value in enumerate(values) if value is not None]
    other = next(((rank, value) for rank, value in known if value != known[0][1]), None)
    return "" if other is None else f"{name} ({known[0][1]} on rank {known[0][0]}, {other[1]} on rank {other[0]})"
