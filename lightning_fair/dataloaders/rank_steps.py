"""The epochs of a stream on several ranks: they end on all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from lightning_fair.common.distributed import gather_from_ranks, gather_obstacles

_END = "its samples have ended"


class RankSteps:
    """Lets the loaders of all ranks deliver their batches in step, because a training step waits for every rank.

    Every rank has to make it, to iterate equally often, and to stop after as many batches if it stops before the end.

    Args:
        length: Batches of this rank's loader; None if it has no length.
        inform: Logs a line, on the ranks that log.

    Attributes:
        length: The smallest length of a rank's loader, because a rank that stops earlier would leave the others
            waiting; None if the loader of a rank has no length.

    Raises:
        ValueError: If the loaders of some ranks have the length 0.
    """

    def __init__(self, length: int | None, inform: Callable[[str], None]) -> None:
        self._inform = inform
        lengths = gather_from_ranks(length)
        self.length: int | None = None if None in lengths else min(lengths)
        if any(lengths):
            _check_not_empty([rank for rank, batches in enumerate(lengths) if batches == 0])
        if self.length is not None and self.length < max(lengths):
            rank = lengths.index(self.length)
            inform(
                f"FairSampling: the stream of rank {rank} has {self.length} batches, so every epoch has at most these."
            )

    def in_step(self, batches: Iterator[Any], *, goes_on: bool = False) -> Iterator[Any]:
        """Yield the batches as long as every rank has one; ``goes_on`` says that this epoch had batches before.

        Raises:
            ValueError: If an epoch has no batch on some ranks.
            RuntimeError: If the stream of another rank raised an error.
            Exception: The error of this rank's stream.
        """
        nothing = object()
        for number in count():
            try:
                batch = next(batches, nothing)
            except Exception as error:
                gather_obstacles(f"{type(error).__name__}: {error}")  # the other ranks raise an error too
                raise
            if obstacles := gather_obstacles(_END if batch is nothing else None):
                self._explain(obstacles, number, goes_on=goes_on)
                return
            yield batch

    def _explain(self, obstacles: Sequence[str | None], number: int, *, goes_on: bool) -> None:
        """Say why the epoch ends after this number of batches, unless the streams of all ranks have ended."""
        for rank, obstacle in enumerate(obstacles):
            if obstacle not in (None, _END):
                raise RuntimeError(f"The stream of rank {rank} failed: {obstacle}")
        ended = [rank for rank, obstacle in enumerate(obstacles) if obstacle]
        if len(ended) == len(obstacles):
            return
        if not number and not goes_on:
            _check_not_empty(ended)
        more = "more " if goes_on else ""  # those before a resume are not counted
        self._inform(
            f"FairSampling: the stream of {_list_ranks(ended)} ended after {number} {more}batches, so the epoch ends "
            "on all ranks. What the other ranks have left of it is not trained on."
        )


def _check_not_empty(ranks: Sequence[int]) -> None:
    if ranks:
        raise ValueError(
            f"The stream has no batch on {_list_ranks(ranks)}, and some on other ranks, so none can train. Give every "
            "rank samples: for example, split the data into at least as many files as all ranks have workers."
        )


def _list_ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{', ...' if len(ranks) > 8 else ''}"
