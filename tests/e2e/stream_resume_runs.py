"""Streams that are cut after every batch: their sources, and a loop that trains, saves and continues as Lightning does.

The processes of the ranks import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_helpers import TARGET
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data.datapipes.iter import IterableWrapper

from lightning_fair import FairStream, FeedbackController
from lightning_fair.dataloaders.fair_loader import make_stream_fair
from lightning_fair.dataloaders.stream_tracker import StreamTracker

SIZE, BATCH = 90, 8
LABELS = np.random.default_rng(0).choice(4, SIZE, p=[0.5, 0.25, 0.15, 0.1]).tolist()


def sample(number: int) -> tuple[torch.Tensor, int, int]:
    y = LABELS[number]
    return torch.tensor([np.sin(number), np.cos(number), float(y == 1), 1.0], dtype=torch.float32), y, number


class Counting(IterableDataset):
    """A source that counts what it has yielded, and continues there; each worker has every n-th sample.

    With ``ends``, a worker's shard can end after so many samples.
    """

    def __init__(self, ends: dict[int, int] | None = None) -> None:
        self.ends, self.first, self.position, self.epoch = ends or {}, 0, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        order = np.random.default_rng(self.epoch).permutation(SIZE)[worker::workers][: self.ends.get(worker)]
        first, self.first = self.first, 0
        for self.position in range(first + 1, len(order) + 1):
            yield sample(int(order[self.position - 1]))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = self.position = state["position"]


def hugging_face(folder: Path) -> Any:
    from datasets import Dataset

    # Without `shuffle`: datasets 5.2 cannot load the state of a worker then, in torchdata's StatefulDataLoader neither.
    return Dataset.from_dict({"index": list(range(SIZE))}).to_iterable_dataset(num_shards=4).map(_as_sample)


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
    "torchdata": torchdata_nodes,
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


def train(source: Any, workers: int, state: Any = None, *, loader: type = DataLoader, **settings: Any) -> Trained:
    """Train an epoch with new objects, from the beginning or within it, with a checkpoint after each batch."""
    law = {"horizon": 16.0, "alpha": 4.0}
    stream = FairStream(
        source, FeedbackController(4, TARGET, **law), batch_size=BATCH, **{"buffer_size": 6, **settings}
    )
    tracker = StreamTracker(stream)
    tracker.num_processes = max(workers, 1)
    if state is not None:
        tracker.restore(state)
    fair: Any = make_stream_fair(loader(stream, batch_size=BATCH, num_workers=workers))
    tracker.start_iteration(0, within_epoch=state is not None, keep_delivered=False)
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
