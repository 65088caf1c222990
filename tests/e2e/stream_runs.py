"""Streams and a module that watches its weights; the processes of the ranks import this module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning_helpers import TARGET, Weighted, fit
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import lightning_fair.streaming.stream as stream_module
from lightning_fair import FairSampling, FairStream, FeedbackController

__all__ = ["TARGET", "Files", "Shards", "Sums", "Watching", "in_turns", "mixed", "train_on_stream"]


class Shards(IterableDataset):
    """A long-tailed stream of ``(x, y, index)`` that gives each rank and each worker its shard."""

    classes = "0123"

    def __init__(self, size: int) -> None:
        self.labels = np.random.default_rng(0).choice(4, size, p=[0.8, 0.12, 0.05, 0.03]).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Any:
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        worker = get_worker_info()
        place, places = (worker.id, worker.num_workers) if worker else (0, 1)
        for i in range(rank * places + place, len(self.labels), ranks * places):
            y = self.labels[i]
            yield torch.tensor([np.sin(i), np.cos(i), float(y == 1), 1.0], dtype=torch.float32), y, i


class Files(IterableDataset):
    """Files of ``(x, y)`` with classes of their own each, which the workers share out: labels at random of each."""

    def __init__(self, files: list[list[int]], size: int) -> None:
        self.files, self.size = files, size
        self.classes = sorted({y for labels in files for y in labels})

    def __iter__(self) -> Any:
        worker = get_worker_info()
        place, places = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(place, len(self.files), places):
            labels = np.random.default_rng(number).choice(self.files[number], self.size).tolist()
            for i, y in enumerate(labels):
                yield torch.tensor([np.sin(i), np.cos(i), 1.0 - y, 1.0], dtype=torch.float32), y


def in_turns(stream: FairStream, workers: int, *, samples: bool = False, seed: int = 1) -> Iterator[list[Any]]:
    """Yield what the workers of an iteration have next, one after the other, in this process; then what is left.

    These are ``(draw, samples)``, or with ``samples`` the next batch of what ``iter`` returns.
    """
    infos = [SimpleNamespace(id=i, num_workers=workers, seed=seed + i) for i in range(workers)]
    running: dict[int, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for i in range(workers):
            running[i] = stream._logged_batches() if samples else stream.batches()
        while running:
            turn = []
            for i in list(running):
                for module in (stream_module, __import__(__name__)):
                    patch.setattr(module, "get_worker_info", lambda i=i: infos[i])
                with suppress(StopIteration):
                    turn.append((i, next(running[i])))
                    continue
                del running[i]
            yield turn


def mixed(size: int, controller: FeedbackController | None, **settings: Any) -> FairStream:
    return FairStream(Shards(size), controller, **{"batch_size": 8, "buffer_size": 32, **settings})


class Watching(Weighted):
    """Notes the weight that acts on each sample's loss, and the one that came with the sample from its draw."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y, index, weight = batch
        losses = self.losses(x, y)
        loss = self.reduce(losses)
        (share,) = torch.autograd.grad(loss, losses, retain_graph=True)
        self.steps.append((share.double().numpy() * len(losses), weight.double().numpy()))
        self.items = getattr(self, "items", set()) | set(index.tolist())
        return loss


@dataclass
class Sums:
    """What one rank saw."""

    wrong: int
    items: set[int]
    trained_mix: list[float]
    draws: int


def train_on_stream(world_size: int) -> Sums:
    """Train for 100 steps on the stream, as one of several ranks."""
    module, callback = Watching(), FairSampling(target_probs=TARGET)
    stream = mixed(2400, None, return_weights=True)
    fit(
        module,
        DataLoader(stream, batch_size=8),
        callback,
        strategy="ddp",
        devices=world_size,
        max_steps=100,
    )
    wrong = sum(not np.allclose(acted, drawn, rtol=1e-5) for acted, drawn in module.steps)
    assert callback.controller is not None
    return Sums(wrong, module.items, callback.controller.trained_mix.tolist(), callback.controller.draws)
