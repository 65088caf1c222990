"""Positions in a stream: what a draw carries of its worker, and what a checkpoint holds of all workers of a rank."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from lightning_fair.common.arrays import Floats, Ints, to_arrays, to_tensors
from lightning_fair.common.saved_states import (
    LARGEST,
    array,
    check_order,
    check_state,
    corrected_mix,
    describe_damage,
    integer,
    number,
    optional,
)
from lightning_fair.streaming.packing import as_bytes, as_tensor

if TYPE_CHECKING:
    from lightning_fair.control.controller import FeedbackController
    from lightning_fair.streaming.iteration import StreamDraw


class Start(NamedTuple):
    """The state of a controller from which the draws of a worker go on.

    Attributes:
        draws: Number of draws before it.
        progress: How far the target had moved, in [0, 1].
        trained_mix: The trained mix, shape ``(K,)``.
    """

    draws: int
    progress: float
    trained_mix: Floats

    @staticmethod
    def of(controller: FeedbackController) -> Start:
        """Return the state of a controller."""
        return Start(controller.draws, controller.progress, controller.trained_mix)

    def apply_to(self, controller: FeedbackController) -> None:
        """Let a controller go on from this state."""
        controller.rewind(controller.moment._replace(**self._asdict()))


class DrawPosition(NamedTuple):
    """Where a worker was after a draw.

    Attributes:
        worker: Number of the worker.
        num_workers: Number of workers, 1 without workers.
        source: Packed position of its source; None if it has none.
        problem: Why the source has no position; empty if it has one.
        num_unused: Samples in its buffers that had never been handed out.
        start: State of its controller after the draw.
        buffers: Packed buffers and counters; None for most draws, which follow from those of an earlier one.
    """

    worker: int
    num_workers: int
    source: bytes | None
    problem: str
    num_unused: int
    start: Start
    buffers: bytes | None


@dataclass(eq=False)
class WorkerPosition:
    """Where one worker was after its newest draw that was trained on.

    The buffers are those of an earlier draw. With the samples read and handed out since, those of the newest draw
    follow from them.

    Attributes:
        start: State of the controller after the newest draw.
        source: Packed position of the source after the newest draw; None if it has none.
        ended: Whether the source had ended.
        num_unused: Samples in the buffers that had never been handed out.
        balances: Whether the worker drew for others, or left classes to them.
        buffers: Packed buffers, and the position of the source, after an earlier draw; None if they are not saved.
        reads: Number of samples read for each draw since, oldest first.
        labels: Class that each sample of each draw since was drawn for.
    """

    start: Start
    source: bytes | None = None
    ended: bool = False
    num_unused: int = 0
    balances: bool = False
    buffers: bytes | None = None
    reads: list[int] = field(default_factory=list)
    labels: list[Ints] = field(default_factory=list)

    @property
    def can_continue(self) -> bool:
        """Whether the source can continue."""
        return self.ended or self.source is not None

    def follow(self, position: DrawPosition, draw: StreamDraw) -> None:
        """Move on to the next draw that was trained on."""
        self.source, self.ended, self.start = position.source, draw.ended, position.start
        self.num_unused, self.balances = position.num_unused, draw.weight_scale is not None
        if position.buffers is not None:
            self.buffers, self.reads, self.labels = position.buffers, [], []
        elif self.buffers is not None:
            self.reads.append(draw.num_read)
            self.labels.append(draw.drawn_for)

    def state_dict(self) -> dict[str, Any]:
        """Return it as tensors and plain numbers."""
        sizes = [labels.size for labels in self.labels]
        return {
            **to_tensors(self.start._asdict()),
            "source": as_tensor(self.source),
            "ended": int(self.ended),
            "num_unused": self.num_unused,
            "balances": int(self.balances),
            "buffers": as_tensor(self.buffers),
            "reads": torch.tensor(self.reads, dtype=torch.int64),
            "sizes": torch.tensor(sizes, dtype=torch.int64),
            "labels": torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *self.labels])),
        }

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> WorkerPosition:
        """Return the position whose ``state_dict`` is given."""
        arrays = to_arrays({name: state[name] for name in ("reads", "sizes", "labels")})
        return WorkerPosition(
            source=as_bytes(state["source"]),
            ended=bool(state["ended"]),
            num_unused=state["num_unused"],
            balances=bool(state["balances"]),
            start=Start(**to_arrays({name: state[name] for name in Start._fields})),
            buffers=as_bytes(state["buffers"]),
            reads=arrays["reads"].tolist(),
            labels=np.split(arrays["labels"], np.cumsum(arrays["sizes"])[:-1]) if arrays["sizes"].size else [],
        )


@dataclass(eq=False)
class RankPosition:
    """Where the workers of one rank were in an iteration over a stream, after the draws that were trained on.

    Attributes:
        num_workers: Number of workers, 1 without workers.
        start: State from which the iteration began.
        epoch: Number of its epoch.
        next_worker: Worker whose draw is next.
        workers: The position of each worker with a draw that was trained on.
        problem: Why a source has no position; empty if it has one.
    """

    num_workers: int
    start: Start
    epoch: int = 0
    next_worker: int = 0
    workers: dict[int, WorkerPosition] = field(default_factory=dict)
    problem: str = ""

    @property
    def can_continue(self) -> bool:
        """Whether all sources can continue."""
        return all(worker.can_continue for worker in self.workers.values())

    @property
    def num_unused(self) -> int:
        """Samples in the buffers of all workers that had never been handed out."""
        return sum(worker.num_unused for worker in self.workers.values())

    @property
    def has_buffers(self) -> bool:
        """Whether the buffers of all workers are saved."""
        return all(worker.buffers is not None for worker in self.workers.values())

    def of_worker(self, worker: int, num_workers: int) -> WorkerPosition | None:
        """Return the position of one of so many workers; None if it begins at the beginning.

        Raises:
            ValueError: If the number of workers is another one.
        """
        if self.workers and num_workers != self.num_workers:
            raise ValueError(
                f"The position of the stream is that of {self.num_workers} processes, and this loader has "
                f"{num_workers}: the shares of the source are others. Resume with num_workers={self.num_workers} "
                "(with workers, torchdata's StatefulDataLoader gives each its own position), or without the state."
            )
        position = self.workers.get(worker)
        return position if position is not None and position.can_continue else None

    def follow(self, draw: StreamDraw) -> None:
        """Move on to the next draw that was trained on."""
        position = draw.position
        if position is not None:
            self.num_workers, self.problem = position.num_workers, position.problem
            self.workers.setdefault(position.worker, WorkerPosition(position.start)).follow(position, draw)
            self.next_worker = (position.worker + 1) % position.num_workers

    def copy(self) -> RankPosition:
        """Return a copy that does not follow this one's draws."""
        workers = {number: copy(worker) for number, worker in self.workers.items()}
        for worker in workers.values():
            worker.reads, worker.labels = worker.reads.copy(), worker.labels.copy()
        return replace(self, workers=workers)

    def state_dict(self) -> dict[str, Any]:
        """Return it as tensors and plain numbers."""
        return {
            "num_workers": self.num_workers,
            "epoch": self.epoch,
            "next_worker": self.next_worker,
            "start": to_tensors(self.start._asdict()),
            "workers": [{"worker": i, **worker.state_dict()} for i, worker in sorted(self.workers.items())],
        }

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> RankPosition:
        """Return the position whose ``state_dict`` is given, which ``check_position`` has accepted."""
        return RankPosition(
            num_workers=state["num_workers"],
            epoch=state["epoch"],
            next_worker=state["next_worker"],
            start=Start(**to_arrays(state["start"])),
            workers={worker["worker"]: WorkerPosition.from_state_dict(worker) for worker in state["workers"]},
        )


def check_position(state: Any, num_classes: int) -> None:
    """Refuse the state of a :class:`RankPosition` that has a value that no position can have.

    Raises:
        ValueError: If it has one. The message names the key.
    """
    check_state("stream's", state, position_spec(num_classes), "positions")
    numbers = [worker["worker"] for worker in state["workers"]]
    check_order("stream's", "worker of positions.workers", numbers, "num_workers - 1", state["num_workers"] - 1)
    for worker in state["workers"]:
        sizes = worker["sizes"]
        if len(worker["reads"]) != len(sizes) or sizes.sum() != len(worker["labels"]):
            raise ValueError(describe_damage("stream's", "positions.workers has a record that is cut off"))


def position_spec(num_classes: int) -> dict[str, Any]:
    """Return what the state of a :class:`RankPosition` has to be; see :mod:`~lightning_fair.common.saved_states`."""
    start = {"draws": integer(), "progress": number(0.0, 1.0), "trained_mix": corrected_mix(num_classes)}
    packed, counts = optional(array(None, dtype=torch.uint8)), array(None, dtype=torch.int64, low=0, high=LARGEST)
    worker = {
        "worker": integer(),
        "ended": integer(0, 1),
        "balances": integer(0, 1),
        "num_unused": integer(),
        "source": packed,
    }
    log = {"buffers": packed, "reads": counts, "sizes": counts}
    labels = array(None, dtype=torch.int64, low=0, high=num_classes - 1)
    numbers = {"num_workers": integer(1), "epoch": integer(), "next_worker": integer(), "start": start}
    return {**numbers, "workers": [{**worker, **start, **log, "labels": labels}]}
