"""Schedules: values that change during training, for example a gain ``alpha`` that warms up, or a moving target.

A schedule is called with the step (number of batches drawn so far) and the epoch, both counted from zero, and returns
the value for the next batch. Every argument that accepts a schedule also accepts a plain number.

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
import torch

from lightning_fair.common.arrays import to_plain
from lightning_fair.common.checks import check_choice, check_number, check_type, show
from lightning_fair.common.class_mix import check_kind

Unit: TypeAlias = Literal["step", "epoch"]

_ROUNDING = 1e-6  # relative, of a value at its extreme; float32 rounds by 6e-8
_FINITE, _TIME = "(-inf, inf)", "[0, inf)"


class Schedule(ABC):
    """A value as a function of the step and the epoch. Subclass it to define another shape."""

    unit: Unit = "epoch"  # the clock that the value depends on

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("step", "epoch"))
        check_extremes(self, _FINITE)

    def __getstate__(self) -> dict[str, Any]:
        return _plain_fields(self)

    @abstractmethod
    def __call__(self, step: int, epoch: int) -> float:
        """Return the value for the batch drawn at ``step`` (from 0) in ``epoch`` (from 0)."""

    def value_at(self, step: int, epoch: int, name: str) -> float:
        """Return the value for a draw as a ``float``; ``name`` is what it is, for the message.

        Raises:
            ValueError: If it is not a number between the extremes, for which the controller was checked.
        """
        value, low, high = self(step, epoch), min(self.extremes), max(self.extremes)
        try:
            number = float(value + 0.0)  # also of a tensor, but not of text
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = math.nan
        slack = _ROUNDING * max(1.0, abs(low), abs(high))
        if not low - slack <= number <= high + slack:
            raise ValueError(
                f"{type(self).__name__} gives {name} the value {show(value)} at step {step} of epoch {epoch}, "
                f"but its extremes state values from {low:g} to {high:g}. Return such a number, or state its extremes."
            )
        return min(max(number, low), high)

    @property
    @abstractmethod
    def extremes(self) -> tuple[float, ...]:
        """Values that include the smallest and the largest one; the controller is checked to be stable for them.

        A draw with a value outside of them is an error.
        """

    @property
    def by_epoch(self) -> bool:
        """Whether the value may depend on the epoch."""
        return self.unit == "epoch"

    def _time(self, step: int, epoch: int) -> int:
        return epoch if self.unit == "epoch" else step


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at all times.

    Example:
        >>> Constant(8.0)(step=3, epoch=0)
        8.0
    """

    value: float
    unit = "step"

    def __post_init__(self) -> None:
        _check_fields(self, value=_FINITE)

    def __call__(self, step: int, epoch: int) -> float:  # noqa: ARG002
        return self.value

    @property
    def extremes(self) -> tuple[float, ...]:
        return (self.value,)


@dataclass(frozen=True)
class _Ramp(Schedule):
    start: float
    end: float
    duration: int
    begin: int = 0
    unit: Unit = "step"

    def __post_init__(self) -> None:
        _check_fields(self, start=_FINITE, end=_FINITE, duration="[1, inf)", begin=_TIME)
        super().__post_init__()

    def __call__(self, step: int, epoch: int) -> float:
        elapsed = self._time(step, epoch) - self.begin
        progress = self._shape(min(max(elapsed / self.duration, 0.0), 1.0))
        return self.start + (self.end - self.start) * progress

    @abstractmethod
    def _shape(self, progress: float) -> float: ...

    @property
    def extremes(self) -> tuple[float, ...]:
        return self.start, self.end


@dataclass(frozen=True)
class Linear(_Ramp):
    """A straight line from ``start`` to ``end``, constant before and after.

    ``start + (end - start) * clip((t - begin) / duration, 0, 1)``, with the step or the epoch ``t``.

    Args:
        start: Value until ``begin``.
        end: Value from ``begin + duration`` on.
        duration: Duration in units, at least 1.
        begin: Start time in units, at least 0.
        unit: ``"step"`` (batches) or ``"epoch"``.

    Raises:
        TypeError: If a value or a time is no number.
        ValueError: If one is not finite, or duration, begin or unit is out of range.

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

    The arguments are those of :class:`Linear`.

    Example:
        >>> cool_down = Cosine(8.0, 2.0, 100, begin=400)
        >>> [round(cool_down(step=s, epoch=0), 2) for s in (0, 400, 425, 450, 500)]
        [8.0, 8.0, 7.12, 5.0, 2.0]
    """

    def _shape(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True)
class Step(Schedule):
    """A jump from one value to another.

    Args:
        before: Value before ``at``.
        after: Value from ``at`` on.
        at: Time of the jump in units, at least 0.
        unit: ``"step"`` (batches) or ``"epoch"``.

    Raises:
        TypeError: If a value or a time is no number.
        ValueError: If one is not finite, or ``at`` or the unit is out of range.

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
        _check_fields(self, before=_FINITE, after=_FINITE, at=_TIME)
        super().__post_init__()

    def __call__(self, step: int, epoch: int) -> float:
        return self.after if self._time(step, epoch) >= self.at else self.before

    @property
    def extremes(self) -> tuple[float, ...]:
        return self.before, self.after


@dataclass(frozen=True)
class Shift:
    """A target that moves from one class mix to another: ``q = (1 - s) * start + s * end``.

    For models that learn better features from the original class mix, and are balanced later. Every argument that
    accepts a target also accepts a shift.

    Args:
        progress: ``s``, a schedule with values in [0, 1].
        start: Class mix at ``s = 0``, as for ``target_probs``: a name, a vector or a mapping.
        end: Class mix at ``s = 1``.

    Raises:
        TypeError: If the progress is not a schedule, or an end is no name, vector or mapping.
        ValueError: If the values of the progress leave [0, 1], or the name of an end is unknown.

    References:
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
                f"Shift's progress must be a lightning_fair.schedules.Schedule, got {show(self.progress)}. "
                "For a step at batch 1000: Step(0.0, 1.0, at=1000)."
            )
        check_extremes(self.progress, "[0, 1]", "progress")
        check_kind("start", self.start)
        check_kind("end", self.end)

    def __getstate__(self) -> dict[str, Any]:
        return _plain_fields(self)


@dataclass(frozen=True)
class Join(Schedule):
    """One schedule after another. All of them count steps and epochs from the start of training.

    Args:
        schedules: The schedules, in order.
        boundaries: Time at which each schedule but the first begins, in units, increasing.
        unit: ``"step"`` (batches) or ``"epoch"``.

    Raises:
        TypeError: If the schedules are no list of schedules, or a boundary is no number.
        ValueError: If there is not one boundary fewer than schedules, or a boundary is negative, not finite, or not
            above the one before.

    Example:
        >>> alpha = Join([Linear(0.0, 8.0, 10), Linear(8.0, 2.0, 10, begin=90)], boundaries=[50])
        >>> [alpha(step=s, epoch=0) for s in (0, 5, 10, 50, 95, 100)]
        [0.0, 4.0, 8.0, 8.0, 5.0, 2.0]
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]
    unit: Unit = "step"

    def __post_init__(self) -> None:
        check_type("schedules", self.schedules, Sequence, "a list of schedules")
        check_type("boundaries", self.boundaries, (Sequence, np.ndarray, torch.Tensor), "a list of times")
        for schedule in self.schedules:
            check_type("schedules", schedule, Schedule, "a list of schedules")
        for boundary in self.boundaries:
            check_number("boundaries", boundary, _TIME)
        super().__post_init__()
        if len(self.schedules) != len(self.boundaries) + 1:
            counts = f"{len(self.schedules)} schedules and {len(self.boundaries)} boundaries"
            raise ValueError(f"Join needs one boundary fewer than schedules, got {counts}.")
        if any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ValueError(f"Join's boundaries must increase, got {list(self.boundaries)}.")

    def __call__(self, step: int, epoch: int) -> float:
        return self.schedules[bisect_right(self.boundaries, self._time(step, epoch))](step, epoch)

    @property
    def extremes(self) -> tuple[float, ...]:
        return tuple(value for schedule in self.schedules for value in schedule.extremes)

    @property
    def by_epoch(self) -> bool:
        return super().by_epoch or any(schedule.by_epoch for schedule in self.schedules)


def check_extremes(schedule: Schedule, interval: str, argument: str = "") -> None:
    """Check that the extremes of a schedule, the value of an argument, are numbers in the interval."""
    kind, extremes = type(schedule).__name__, schedule.extremes
    name = f"the extremes of {argument} ({kind})" if argument else f"the extremes of {kind}"
    if not isinstance(extremes, tuple) or not extremes:
        raise TypeError(f"{name} must be a tuple of numbers, got {show(extremes)}.")
    for value in extremes:
        check_number(name, value, interval)


def _check_fields(owner: object, **intervals: str) -> None:
    for name, interval in intervals.items():
        check_number(name, vars(owner)[name], interval)
        object.__setattr__(owner, name, to_plain(vars(owner)[name]))


def _plain_fields(owner: object) -> dict[str, Any]:
    return {name: to_plain(value) for name, value in vars(owner).items()}


def as_schedule(alpha: float | Schedule) -> Schedule:
    """Return a gain if it is a schedule, else ``Constant(alpha)``; refuse one that can be negative or not finite."""
    gain = alpha if isinstance(alpha, Schedule) else Constant(check_number("alpha", alpha, "[0, inf)", _OR_SCHEDULE))
    check_extremes(gain, "[0, inf)", "alpha")
    return gain


_OR_SCHEDULE = " or a lightning_fair.schedules.Schedule (subclass it for a function of the step)"

# So that `torch.load(weights_only=True)` reads a checkpoint with one of them among its hyperparameters.
torch.serialization.add_safe_globals([Constant, Linear, Cosine, Step, Join, Shift])
