"""Withdrawn draws, which are made once more."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_fair.control.draw import Draw


class ReplayedDraw(NamedTuple):
    """A draw to make once more.

    Attributes:
        draw: Record of the draw.
        is_trained: Whether its batch has been trained on. If so, its items are skipped.
    """

    draw: Draw
    is_trained: bool


class Replay:
    """The queue of the draws to make once more, in the order of their numbers.

    A loader can deliver batches out of order. If a batch is trained on while an older one is in flight, its draw is
    remembered: if the older draw is withdrawn later, the items of both have to be passed in the order of the draws.
    """

    def __init__(self) -> None:
        self._queue: deque[ReplayedDraw] = deque()
        self._completed_out_of_order: list[ReplayedDraw] = []

    def __len__(self) -> int:
        """Return the number of draws in the queue."""
        return len(self._queue)

    def pop(self) -> ReplayedDraw:
        """Remove the first draw from the queue and return it."""
        return self._queue.popleft()

    def made_since(self, draws: Sequence[Draw]) -> list[ReplayedDraw]:
        """Return all draws since the first of ``draws``, which are all draws in flight, oldest first."""
        in_flight = [ReplayedDraw(draw, is_trained=False) for draw in draws]
        completed = [other for other in self._completed_out_of_order if draws and _is_newer(other, draws[0])]
        return sorted(in_flight + completed, key=lambda replayed: replayed.draw.draw_id)

    def put_back(self, draws: Sequence[Draw]) -> None:
        """Put all draws since the first of ``draws``, which have been withdrawn, in front of the queue."""
        self._queue.extendleft(reversed(self.made_since(draws)))
        self._completed_out_of_order.clear()

    def record_completed(self, draw: Draw, oldest: Draw | None) -> None:
        """Remember a draw that has been trained on, as long as an older one has not: ``oldest`` is in flight."""
        first = oldest or (self._queue[0].draw if self._queue else None)
        completed = [*self._completed_out_of_order, ReplayedDraw(draw, is_trained=True)]
        self._completed_out_of_order = [other for other in completed if first and _is_newer(other, first)]

    def forget_completed(self) -> None:
        """Forget the draws that were completed out of order."""
        self._completed_out_of_order.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of tensors and plain numbers only."""
        parts = {"replay": self._queue, "completed_out_of_order": self._completed_out_of_order}
        return {name: [_to_state(replayed) for replayed in part] for name, part in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned."""
        self._queue = deque(map(_from_state, state["replay"]))
        self._completed_out_of_order = [_from_state(each) for each in state["completed_out_of_order"]]


def _is_newer(replayed: ReplayedDraw, draw: Draw) -> bool:
    return replayed.draw.draw_id > draw.draw_id


def _to_state(replayed: ReplayedDraw) -> dict[str, Any]:
    return {**replayed.draw.state_dict(), "is_trained": replayed.is_trained}


def _from_state(state: Mapping[str, Any]) -> ReplayedDraw:
    draw = {name: value for name, value in state.items() if name != "is_trained"}
    return ReplayedDraw(Draw.from_state_dict(draw), state["is_trained"])
