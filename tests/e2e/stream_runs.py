"""Streams, and a module that records its weights; the processes of the ranks import this module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning_helpers import TARGET, Weighted, fit
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import lightning_fair.streaming.stream as stream_module
from lightning_fair import FairSampling, FairStream, FeedbackController
from lightning_fair.integration.callback import find_callback
from lightning_fair.streaming.buffers import ClassBuffers


def stream(labels: Iterable[int], controller: FeedbackController | None = None, **settings: Any) -> FairStream:
    """Return a stream of ``(position, label)``."""
    labels = list(labels)
    controller = controller or FeedbackController(max(labels) + 1)
    return FairStream(list(enumerate(labels)), controller, **{"batch_size": 8, **settings})


def held_samples(buffers: ClassBuffers, label: int) -> list[Any]:
    """Return the samples that the buffer of a class holds."""
    return [sample for level in buffers._levels[label].values() for sample in level]


def long_tail(size: int, shares: Sequence[float] = (0.8, 0.12, 0.05, 0.03), seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).choice(len(shares), size, p=shares).tolist()


def turning(turns: int, size: int, share: float = 0.99, seed: int = 0) -> list[int]:
    """Return labels of two classes, of which first one and then the other is frequent."""
    rng = np.random.default_rng(seed)
    return np.concatenate([(rng.random(size) < share) ^ (turn % 2 == 0) for turn in range(turns)]).astype(int).tolist()


def interrupted() -> list[int]:
    """Return labels of three classes; class 1 arrives for 100 batches, is missing for 100, and returns."""
    full, without = cycle([0, 1, 2, 2]), cycle([0, 2, 2])
    return [*islice(full, 800), *islice(without, 800), *islice(full, 800)]


class Shards(IterableDataset):
    """A long-tailed stream of ``(x, y, index)``, which gives each rank and each worker its shard, and can continue."""

    classes = "0123"

    def __init__(self, size: int) -> None:
        self.labels = np.random.default_rng(0).choice(4, size, p=[0.8, 0.12, 0.05, 0.03]).tolist()
        self.first = self.position = 0  # samples of the shard before the next iteration, and before the next sample

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first = self.position = state["position"]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Any:
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        first, self.first, step = self.first, 0, ranks * workers
        for i in range(rank * workers + number + first * step, len(self.labels), step):
            self.position = i // step + 1
            y = self.labels[i]
            yield torch.tensor([np.sin(i), np.cos(i), float(y == 1), 1.0], dtype=torch.float32), y, i


class SetShards(Shards):
    """The same stream, whose samples have rows of three labels, and none of them if they have no other class than 3."""

    classes = ("a", "b", "c")

    def __iter__(self) -> Any:
        for x, y, i in super().__iter__():
            yield x, torch.tensor([y == 0 or i % 3 == 0, y == 1 or i % 5 == 0, y == 2], dtype=torch.float32), i


class Files(IterableDataset):
    """Files of ``(x, y)``, split over the workers; each file has its own classes, in random order."""

    def __init__(self, files: list[list[int]], size: int) -> None:
        self.files, self.size = files, size
        self.classes = sorted({y for labels in files for y in labels})

    def __iter__(self) -> Any:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for file in range(number, len(self.files), workers):
            labels = np.random.default_rng(file).choice(self.files[file], self.size).tolist()
            for i, y in enumerate(labels):
                yield torch.tensor([np.sin(i), np.cos(i), 1.0 - y, 1.0], dtype=torch.float32), y


def in_turns(stream: FairStream, workers: int, *, samples: bool = False, seed: int = 1) -> Iterator[list[Any]]:
    """Yield the next batch of each worker of an iteration, as ``(worker, batch)``; the workers run in this process.

    A batch is ``(draw, samples)``, or only the samples with ``samples=True``.
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
    source = SetShards if settings.get("several_labels") else Shards
    return FairStream(source(size), controller, **{"batch_size": 8, "buffer_size": 32, **settings})


class Watching(Weighted):
    """Records the weight that acts on each sample's loss, and the weight that its draw gave the sample."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y, index, weight = batch
        losses = self.losses(x, y)
        loss = self.reduce(losses)
        (share,) = torch.autograd.grad(loss, losses, retain_graph=True)
        self.steps.append((share.double().numpy() * len(losses), weight.double().numpy()))
        self.items = getattr(self, "items", set()) | set(index.tolist())
        return loss


class WatchingSets(Watching):
    """The same for samples with several labels."""

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(self.net(x)[:, :3], y, reduction="none").mean(1)


class Adjusting(Watching):
    """Records the offset of each class that acts on the logits, and the one that the draw of the batch gives."""

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = self.net(x)
        adjusted = self.adjusted_logits(logits)
        draw = find_callback(self.trainer)._run.current.draw
        expected = [math.log(max(p, 1e-12) / r) for p, r in zip(draw.probs, draw.reference, strict=True)]
        self.offsets.append(((adjusted - logits)[0].tolist(), expected))
        self.draws_of_steps.append((draw.labels.tolist(), y.tolist()))
        return F.cross_entropy(adjusted, y, reduction="none")

    def on_fit_start(self) -> None:
        self.offsets: list[Any] = []
        self.draws_of_steps: list[Any] = []


@dataclass
class Sums:
    """Results of one rank."""

    wrong: int
    items: set[int]
    trained_mix: list[float]
    draws: int


def train_on_stream(world_size: int, *, several: bool = False) -> Sums:
    """Train for 100 steps on the stream, as one of several ranks."""
    module, callback = WatchingSets() if several else Watching(), FairSampling(target_probs=TARGET)
    stream = mixed(2400, None, return_weights=True, several_labels=several)
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
