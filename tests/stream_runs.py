"""Streams and a module that watches its weights; the processes of the ranks import this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_helpers import TARGET, Weighted, fit
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_fair import FairSampling, FairStream, FeedbackController

__all__ = ["TARGET", "Shards", "Sums", "Watching", "mixed", "train_on_stream"]


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


def mixed(size: int, controller: FeedbackController | None, **settings: Any) -> FairStream:
    return FairStream(Shards(size), controller, **{"batch_size": 8, "buffer": 32, **settings})


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
    ratio: list[float]
    draws: int


def train_on_stream(world_size: int) -> Sums:
    """Train for 100 steps on the stream, as one of several ranks."""
    module, callback = Watching(), FairSampling(target_probs=TARGET)
    stream = mixed(2400, None, weights=True)
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
    return Sums(wrong, module.items, callback.controller.ratio.tolist(), callback.controller.draws)
