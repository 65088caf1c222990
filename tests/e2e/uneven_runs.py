"""Streams that do not end on all ranks at the same time; the processes of the ranks import this module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from lightning_helpers import Indexed, Plain, fit, loader
from lightning_utilities.core import rank_zero
from rank_runs import this_rank
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_fair import FairSampling, FairStream
from lightning_fair.common import distributed

BATCH = 4
Sample = tuple[torch.Tensor, int, int]


def sample(index: int) -> Sample:
    return torch.tensor([index % 7, index % 3, float(index % 2), 1.0]), index % 4, index


class Shard(IterableDataset[Sample]):
    """Batches of one rank, split over its workers; ``fails`` is the rank whose source raises after 5 samples."""

    def __init__(self, batches: tuple[int, ...], fails: int | None = None) -> None:
        self.size, self.fails = BATCH * batches[this_rank()], fails == this_rank()

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        for index in range(*((worker.id, self.size, worker.num_workers) if worker else (0, self.size))):
            if self.fails and index >= 5:
                raise OSError("the disk is gone")
            yield sample(index)


class SizedShard(Shard):
    def __len__(self) -> int:
        return self.size


def one_sized(batches: tuple[int, ...]) -> Shard:
    """Return shards of which only that of rank 1 has a length."""
    return (SizedShard if this_rank() else Shard)(batches)


class Iterable:
    """Samples without a length, of which every rank takes its share."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Sample]:
        return map(sample, range(self.size))


@dataclass
class Uneven:
    """Records of a fit on one rank."""

    epochs: list[int] = field(default_factory=list)  # batches of each epoch
    lines: list[str] = field(default_factory=list)
    draws: int = 0
    handed_out: int = 0
    failure: str | None = None


class Counting(Plain):
    def on_train_epoch_start(self) -> None:
        self.epochs = [*getattr(self, "epochs", []), 0]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.epochs[-1] += 1
        x, y, _ = batch[0] if isinstance(batch, (list, tuple)) and len(batch) == 2 else batch
        return self.losses(x, y).mean()


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "FairSampling: the stream" in record.getMessage():
            self.lines.append(record.getMessage())


def train_unevenly(
    world_size: int,
    source: Callable[..., Any],
    sizes: Any,
    loaded: dict[str, Any] | None = None,
    second: bool = False,
    validated: bool = False,
    **settings: Any,
) -> Uneven:
    """Train for two epochs on the stream of ``source(sizes)``; with ``second``, there is a second training loader."""
    module, fair, handler, log = Counting(), FairSampling(num_classes=4), Lines(), rank_zero.log
    stream = DataLoader(FairStream(source(sizes), batch_size=BATCH), batch_size=BATCH, **loaded or {})
    data: Any = stream
    if second:
        fair = FairSampling(num_classes=4, dataloader=0)
        data = [stream, loader(Indexed((8, 8, 8, 8)), batch_size=BATCH)]
    log.addHandler(handler)
    validation = {"val_check_interval": 3, "check_val_every_n_epoch": None} if validated else {}
    if validated:
        module.val_dataloader = lambda: loader(batch_size=32, shuffle=False)
    result = Uneven()
    try:
        settings = {"devices": world_size, "strategy": "ddp", "max_epochs": 2, **validation, **settings}
        fit(module, data, fair, **settings)
        result.draws, result.handed_out = fair.controller.draws, int(fair.sampler.handed_out.sum())
    except Exception as error:
        result.failure = f"{type(error).__name__}: {error}"
    finally:
        log.removeHandler(handler)
    result.epochs, result.lines = getattr(module, "epochs", []), handler.lines
    return result


def agree_in_own_group(world_size: int) -> tuple[bool, list[list[str | None]]]:
    """Exchange obstacles as with a backend that needs a GPU; return whether the group is a new one, and the answers."""
    fit(Plain(), loader(), devices=world_size, strategy="ddp", max_steps=1)  # starts the process group
    distributed._host_group.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.dist, "get_backend", lambda group: "nccl")
        answers = [distributed.gather_obstacles(obstacle) for obstacle in (None, "x" if this_rank() else None)]
        is_new = distributed._host_group(distributed.dist.group.WORLD) is not distributed.dist.group.WORLD
    distributed._host_group.cache_clear()
    return is_new, answers
