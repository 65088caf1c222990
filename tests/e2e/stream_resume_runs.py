"""Streams that are cut after every batch: their sources, and a loop that trains, saves and continues as Lightning does.

The processes of the ranks import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.distributed as dist
from lightning_helpers import TARGET, Weighted, fit
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data.datapipes.iter import IterableWrapper

from lightning_fair import FairSampling, FairStream, FeedbackController
from lightning_fair.dataloaders.fair_loader import make_stream_fair
from lightning_fair.dataloaders.label_set_check import LabelSetCheck
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.callback import find_callback

SIZE, BATCH = 74, 8
LABELS = np.random.default_rng(0).choice(4, SIZE, p=[0.5, 0.25, 0.15, 0.1]).tolist()


def sample(number: int) -> tuple[torch.Tensor, int, int]:
    y = LABELS[number]
    return torch.tensor([np.sin(number), np.cos(number), float(y == 1), 1.0], dtype=torch.float32), y, number


class Counting(IterableDataset):
    """A source that counts what it has yielded, and continues there; each worker of each rank has every n-th sample.

    With ``ends``, a worker's shard can end after so many samples.
    """

    def __init__(self, ends: dict[int, int] | None = None) -> None:
        self.ends, self.first, self.position, self.epoch = ends or {}, 0, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        order = np.random.default_rng(self.epoch).permutation(SIZE)[worker * ranks + rank :: workers * ranks]
        order = order[: self.ends.get(worker)]
        first, self.first = self.first, 0
        for self.position in range(first + 1, len(order) + 1):
            yield sample(int(order[self.position - 1]))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = self.position = state["position"]


def with_sets(item: tuple[torch.Tensor, int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the sample with a row of several labels; the last column says that it has none of the others."""
    x, y, number = item
    row = torch.tensor([y == 0 or number % 3 == 0, y == 1 or number % 5 == 0, y == 2, False], dtype=torch.float32)
    row[3] = not row.any()
    return x, row, number


class CountingSets(Counting):
    """The same source, whose samples have several labels."""

    def __iter__(self) -> Iterator[Any]:
        return map(with_sets, super().__iter__())


def listed_sets(folder: Path) -> Any:
    return [with_sets(sample(number)) for number in range(SIZE)]


def hugging_face(folder: Path) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"index": list(range(SIZE))}).to_iterable_dataset(num_shards=4).map(_as_sample)


def hugging_face_shuffled(folder: Path) -> Any:
    return hugging_face(folder).shuffle(seed=0, buffer_size=10)


def _as_sample(row: dict[str, Any]) -> dict[str, Any]:
    x, y, index = sample(row["index"])
    return {"x": x.tolist(), "label": y, "index": index}


def torchdata_nodes(folder: Path) -> Any:
    from torchdata.nodes import IterableWrapper as Wrapper
    from torchdata.nodes import Loader, Mapper

    return Loader(Mapper(Wrapper(range(SIZE)), sample))


def litdata(folder: Path) -> Any:
    import litdata as package
    from litdata.streaming import Cache

    if not (folder / "index.json").exists():
        cache = Cache(str(folder), chunk_size=7)
        for number in range(SIZE):
            x, y, index = sample(number)
            cache[number] = {"x": x, "label": y, "index": index}
        cache.done()
        cache.merge()
    return package.StreamingDataset(str(folder), shuffle=True)


def mosaicml(folder: Path) -> Any:
    import streaming

    if not (folder / "index.json").exists():
        with streaming.MDSWriter(out=str(folder), columns={"label": "int", "index": "int"}) as writer:
            for number, y in enumerate(LABELS):
                writer.write({"label": y, "index": number})
    return streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)


def listed(folder: Path) -> Any:
    return [sample(number) for number in range(SIZE)]


def piped(folder: Path) -> Any:
    return IterableWrapper(range(SIZE)).shuffle().sharding_filter().map(sample)


SOURCES: dict[str, Callable[[Path], Any]] = {
    "own class": lambda _: Counting(),
    "list": listed,
    "datasets": hugging_face,
    "datasets, shuffled": hugging_face_shuffled,
    "torchdata.nodes": torchdata_nodes,
    "litdata": litdata,
    "streaming": mosaicml,
}


@dataclass
class Trained:
    """The batches of a run that were trained on, and the state after each, first before the first one."""

    batches: list[tuple[int, list[int], list[int], bytes]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    mixes: list[bytes] = field(default_factory=list)

    @property
    def items(self) -> list[int]:
        return [item for _, items, *_ in self.batches for item in items]


LAW = {"horizon": 16.0, "alpha": 4.0}


def fair_stream(source: Any, controller: FeedbackController | None, **settings: Any) -> FairStream:
    return FairStream(source, controller, batch_size=BATCH, **{"buffer_size": 6, **settings})


def train(source: Any, workers: int, state: Any = None, *, epoch: int = 0, **settings: Any) -> Trained:
    """Train an epoch with new objects, from the beginning or within it, with a checkpoint after each batch."""
    stream = fair_stream(source, FeedbackController(4, TARGET, **LAW), **settings)
    tracker = StreamTracker(stream)
    tracker.num_processes, tracker.draws_ahead = max(workers, 1), workers > 0
    if state is not None:
        tracker.restore(state)
    check = LabelSetCheck(4, has_unlabeled=False) if stream.several_labels else None
    fair: Any = make_stream_fair(DataLoader(stream, batch_size=BATCH, num_workers=workers), label_check=check)
    tracker.start_iteration(epoch, within_epoch=state is not None, keep_delivered=False)
    fair.begin_at_worker(tracker.first_worker, within_epoch=state is not None)
    run = Trained(states=[tracker.capture()])
    for batch in fair:
        draw = fair.pop_pending().draw
        items, labels = (batch["index"], batch["label"]) if isinstance(batch, dict) else (batch[2], batch[1])
        run.batches.append((draw.draw_id, items.tolist(), labels.tolist(), draw.probs.tobytes()))
        tracker.report(draw)
        run.states.append(tracker.capture())
        run.mixes.append(tracker.controller.trained_mix.tobytes())
    return run


class Recording(Weighted):
    """Records epoch, number, samples and class mix of each batch."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        fair = find_callback(self.trainer)
        assert fair is not None
        draw = fair._run.current.draw
        self.seen = [*getattr(self, "seen", []), (self.trainer.current_epoch, draw.draw_id, batch[2].tolist())]
        self.mixes = [*getattr(self, "mixes", []), draw.probs.tobytes()]
        return self.weighted_loss(self.losses(batch[0], batch[1]))

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if y.ndim == 1:
            return super().losses(x, y)
        return F.binary_cross_entropy_with_logits(self.net(x), y, reduction="none")


class SaveEach(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit_stream(
    source: Any, loader: Any = DataLoader, *, save: Path | None = None, resume: Path | None = None, **settings: Any
) -> Recording:
    """Fit with new objects, from the start or from a checkpoint; with ``save``, one is written after each batch."""
    names = ("num_workers", "persistent_workers")
    options = {name: settings.pop(name) for name in names if name in settings}
    L.seed_everything(0, verbose=False)
    law = {**LAW, "lambda2": settings.pop("lambda2", None)}
    module, fair = Recording(), FairSampling(target_probs=TARGET, num_classes=4, **law)
    stream = fair_stream(source, None, save_buffers=True, several_labels=settings.pop("several_labels", False))
    callbacks = [fair, *([SaveEach(save)] if save else [])]
    fit(module, loader(stream, batch_size=BATCH, **options), *callbacks, ckpt=resume, **{"max_epochs": 2, **settings})
    return module


def cut_on_ranks(world_size: int, folder: Path, kind: type[Counting] = Counting) -> tuple[Any, Any]:
    """Return the batches of a rank: of a whole run, and of one that continues after 3 of them."""
    settings: dict[str, Any] = {"strategy": "ddp", "devices": world_size, "num_workers": 2, "max_epochs": 1}
    settings |= {"limit_train_batches": 5, "several_labels": kind is CountingSets}
    whole = fit_stream(kind(), save=folder, **settings)
    return whole.seen, fit_stream(kind(), resume=folder / "3.ckpt", **settings).seen
