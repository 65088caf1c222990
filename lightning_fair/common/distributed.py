"""Sums over ranks, and their number: the only module that imports ``torch.distributed``."""

from __future__ import annotations

import warnings

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


def warn_if_ranks_repeat() -> bool:
    """Warn if several ranks make the draws of one process, and return whether they do."""
    repeat = count_ranks() > 1
    if repeat:
        warnings.warn(
            f"world_size was not set, and {count_ranks()} processes train together: each of them draws the same "
            "samples. Make the sampler with rank=... and world_size=..., for example fabric.global_rank and "
            "fabric.world_size. If that is intended, or accelerator.prepare deals the batches out, set world_size=1. "
            "Give Lightning's Trainer the plain loader with FairSampling, or the FairDataModule itself.",
            stacklevel=2,
        )
    return repeat
