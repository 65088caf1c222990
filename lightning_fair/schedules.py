"""Values that change while training goes on: a gain ``alpha`` that warms up and cools down, a target that moves.

A schedule is called with the step (batches drawn so far) and the epoch, both counted from zero, and gives
the value for the next batch. Wherever the library takes a schedule it takes a plain number as well.

>>> warm_up = Linear(0.0, 8.0, 500)  # over 500 batches
>>> cool_down = Cosine(8.0, 2.0, 10, begin=90, unit="epoch")  # in epochs 90 to 99
>>> alpha = Join([warm_up, cool_down], boundaries=[50], unit="epoch")
>>> alpha(step=250, epoch=0), alpha(step=9000, epoch=60), alpha(step=15000, epoch=100)
(4.0, 8.0, 2.0)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Unit: TypeAlias = Literal["step", "epoch"]


class Schedule(ABC):
    """A value as a function of the step and the epoch. Subclass it for a shape that is not here."""

    @abstractmethod
    def __call__(self, step: int, epoch: int) -> float:
        """Return the value for the batch drawn at ``step`` (from 0) in ``epoch`` (from 0)."""

    @property
    @abstractmethod
    def peak(self) -> float:
        """Largest value the schedule ever takes. The controller checks its stability there."""

    @property
    @abstractmethod
    def trough(self) -> float:
        """Smallest value the schedule ever takes."""

    @property
    def by_epoch(self) -> bool:
        """Whether the value may depend on the epoch. A few batches of one that does not are drawn at once."""
        return True


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value always.

    Example:
        >>> Constant(8.0)(step=3, epoch=0)
        8.0
    """

    value: float

    def __post_init__(self) -> None:
        _check_finite(self, self.value)

    def __call__(self, step: int, epoch: int) -> float:  # noqa: ARG002
        return self.value

    @property
    def by_epoch(self) -> bool:
        return False

    @property
    def peak(self) -> float:
        return self.value

    @property
    def trough(self) -> float:
        return self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    start: float
    end: float
    duration: int
    begin: int = 0
    unit: Unit = "step"

    def __post_init__(self) -> None:
        _check_finite(self, self.start, self.end)
        _check_unit(self.unit)
        if self.duration < 1 or self.begin < 0:
            raise ValueError(
                f"{type(self).__name__} needs duration >= 1 and begin >= 0 (in {self.unit}s), "
                f"got duration={self.duration}, begin={self.begin}."
            )

    def __call__(self, step: int, epoch: int) -> float:
        time = step if self.unit == "step" else epoch
        progress = self._shape(min(max((time - self.begin) / self.duration, 0.0), 1.0))
        return self.start + (self.end - self.start) * progress

    @abstractmethod
    def _shape(self, progress: float) -> float: ...

    @property
    def by_epoch(self) -> bool:
        return self.unit == "epoch"

    @property
    def peak(self) -> float:
        return max(self.start, self.end)

    @property
    def trough(self) -> float:
        return min(self.start, self.end)


@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line from ``start`` to ``end``, level before and after.

    ``start + (end - start) * clip((t - begin) / duration, 0, 1)``, ``t`` being the step or the epoch.

    Args:
        start: Value up to ``begin``.
        end: Value from ``begin + duration`` on.
        duration: Length of the line in units, at least 1.
        begin: Where it begins, in units, at least 0.
        unit: ``"step"`` (batches) or ``"epoch"``.

    Raises:
        ValueError: If a value is not finite, or duration, begin or unit is out of range.

    Example:
        >>> warm_up = Linear(0.0, 8.0, 10, unit="epoch")
        >>> [warm_up(step=0, epoch=e) for e in (0, 5, 10, 20)]
        [0.0, 4.0, 8.0, 8.0]
    """

    def _shape(self, progress: float) -> float:
        return progress


@dataclass(frozen=True)
class Cosine(_Ramp):
    """Half a cosine wave from ``start`` to ``end``: slow at both ends, fast in the middle.

    ``start + (end - start) * (1 - cos(pi * clip((t - begin) / duration, 0, 1))) / 2``.

    Args:
        start: Value up to ``begin``.
        end: Value from ``begin + duration`` on.
        duration: Length of the wave in units, at least 1.
        begin: Where it begins, in units, at least 0.
        unit: ``"step"`` (batches) or ``"epoch"``.

    Raises:
        ValueError: If a value is not finite, or duration, begin or unit is out of range.

    Example:
        >>> cool_down = Cosine(8.0, 2.0, 100, begin=400)
        >>> [round(cool_down(step=s, epoch=0), 2) for s in (0, 400, 425, 450, 500)]
        [8.0, 8.0, 7.12, 5.0, 2.0]
    """

    def _shape(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True)
class Step(Schedule):
    """One value, and another from a certain moment on.

    Args:
        before: Value before.
        after: Value from ``at`` on.
        at: The moment, in units, at least 0.
        unit: ``"step"`` (batches) or ``"epoch"``.

    Raises:
        ValueError: If a value is not finite, or ``at`` or the unit is out of range.

    Example:
        >>> deferred = Step(0.0, 1.0, at=160, unit="epoch")
        >>> [deferred(step=0, epoch=e) for e in (0, 159, 160, 199)]
        [0.0, 0.0, 1.0, 1.0]
    """

    before: float
    after: float
    at: int
    unit: Unit = "step"

    def __post_init__(self) -> None:
        _check_finite(self, self.before, self.after)
        _check_unit(self.unit)
        if self.at < 0:
            raise ValueError(f"Step needs at >= 0 (in {self.unit}s), got {self.at}.")

    def __call__(self, step: int, epoch: int) -> float:
        return self.after if (step if self.unit == "step" else epoch) >= self.at else self.before

    @property
    def by_epoch(self) -> bool:
        return self.unit == "epoch"

    @property
    def peak(self) -> float:
        return max(self.before, self.after)

    @property
    def trough(self) -> float:
        return min(self.before, self.after)


@dataclass(frozen=True)
class Shift:
    """A target that moves from one class mix to another: ``q = (1 - s) * start + s * end``.

    For a model whose features are better learnt from the data as they are, and balanced later. Wherever the library
    takes a target it takes a shift of one as well.

    Args:
        progress: The ``s``: a schedule with values in [0, 1].
        start: Class mix at 0, as for ``target_probs``: a name, a vector or a mapping.
        end: Class mix at 1.

    Raises:
        TypeError: If the progress is no schedule.
        ValueError: If it leaves [0, 1].

    Reference:
        Deferring: K. Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019).
        Moving gradually: B. Kang et al., "Decoupling representation and classifier for long-tailed recognition" (2020).

    Example:
        >>> deferred = Shift(Step(0.0, 1.0, at=160, unit="epoch"), start="prior", end="uniform")
        >>> progressive = Shift(Linear(0.0, 1.0, 200, unit="epoch"))
    """

    progress: Schedule
    start: Any = "prior"
    end: Any = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.progress, Schedule):
            raise TypeError(
                f"Shift's progress must be a lightning_fair.schedules.Schedule, got {self.progress!r}. "
                "For a step at batch 1000: Step(0.0, 1.0, at=1000)."
            )
        if self.progress.trough < 0 or self.progress.peak > 1:
            raise ValueError(
                f"Shift's progress must stay in [0, 1], got values from {self.progress.trough:g} to "
                f"{self.progress.peak:g}."
            )


@dataclass(frozen=True)
class Join(Schedule):
    """One schedule after another, each on the common clock.

    Args:
        schedules: The schedules, in order.
        boundaries: Where the next one takes over, in units, increasing; one fewer than schedules.
        unit: ``"step"`` (batches) or ``"epoch"``.

    Raises:
        ValueError: If the numbers of schedules and boundaries do not fit, or the boundaries do not increase.

    Example:
        >>> alpha = Join([Linear(0.0, 8.0, 10), Linear(8.0, 2.0, 10, begin=90)], boundaries=[50])
        >>> [alpha(step=s, epoch=0) for s in (0, 5, 10, 50, 95, 100)]
        [0.0, 4.0, 8.0, 8.0, 5.0, 2.0]
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]
    unit: Unit = "step"

    def __post_init__(self) -> None:
        _check_unit(self.unit)
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                f"Join needs one boundary fewer than schedules, got {len(self.schedules)} schedules and "
                f"{len(self.boundaries)} boundaries."
            )
        if any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"Join's boundaries must increase, got {list(self.boundaries)}.")

    def __call__(self, step: int, epoch: int) -> float:
        time = step if self.unit == "step" else epoch
        return self.schedules[bisect_right(self.boundaries, time)](step, epoch)

    @property
    def by_epoch(self) -> bool:
        return self.unit == "epoch" or any(schedule.by_epoch for schedule in self.schedules)

    @property
    def peak(self) -> float:
        return max(schedule.peak for schedule in self.schedules)

    @property
    def trough(self) -> float:
        return min(schedule.trough for schedule in self.schedules)


def as_schedule(value: float | Schedule) -> Schedule:
    """Return ``value`` if it is a schedule, else the schedule that is always ``value``."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"Expected a number or a lightning_fair.schedules.Schedule, got {value!r}. "
            "For a function of the step, subclass Schedule: it also states its largest value."
        )
    return Constant(float(value))


def _check_finite(schedule: Schedule, *values: float) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{type(schedule).__name__} needs finite values, got {value}.")


def _check_unit(unit: str) -> None:
    if unit not in ("step", "epoch"):
        raise ValueError(f"unit must be 'step' or 'epoch', got {unit!r}.")
