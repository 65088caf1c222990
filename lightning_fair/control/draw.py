"""The record of a draw, and of its report."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_fair.common.arrays import Floats, Ints, to_arrays, to_tensors
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.common.saved_states import array, corrected_mix, counts, integer, mix, number
from lightning_fair.control.label_draws import SampleWeights
from lightning_fair.control.weights import class_weights, clipped_mass


class Moment(NamedTuple):
    """The state of a controller before draw number ``draws``. Its arrays are replaced, and never changed in place."""

    draws: int
    progress: float
    trained_mix: Floats
    ema_loss: Floats
    loss_score: Floats
    tilt: Floats
    scores: Floats


@dataclass(eq=False)
class Draw:
    """The record of a draw. It belongs to the batch until the batch has been trained on.

    Attributes:
        draw_id: Number of the draw, from 0.
        probs: Class mix ``p`` of the draw, shape ``(K,)``.
        counts: Class counts of the batch, over all ranks, shape ``(K,)``. A sample counts for each of its labels.
        trained_mix: The trained mix ``r`` before the draw, shape ``(K,)``.
        alpha: Gain at the draw.
        reference: Mix that the loss of the batch stands for, shape ``(K,)``.
        progress: How far the target had moved, in [0, 1]; 0 for a fixed one.
        drawn_before: Places of each class drawn before, int64, shape ``(K,)``; empty for a stream.
        label_sets: Labels of the samples of the batch of all ranks, if samples have several. They are not saved.
        sample_weights: Weights of such samples. They are not saved.
        before: State of the controller before the draw. It is not saved.
    """

    draw_id: int
    probs: Floats
    counts: Ints
    trained_mix: Floats
    alpha: float
    reference: Floats
    progress: float = field(default=0.0, kw_only=True)
    drawn_before: Ints = field(default_factory=lambda: np.zeros(0, np.int64), kw_only=True)
    label_sets: LabelSets | None = field(default=None, kw_only=True)
    sample_weights: SampleWeights | None = field(default=None, kw_only=True)
    before: Moment | None = field(default=None, kw_only=True)

    @property
    def size(self) -> int:
        """Number of samples of the batch of all ranks."""
        return int(self.counts.sum()) if self.label_sets is None else self.label_sets.size

    @property
    def local_size(self) -> int:
        """Number of labels of the batch on this rank: of samples, unless they have several."""
        return int(self.counts.sum())

    @property
    def weight_reference(self) -> Floats:
        """Share of this batch in the mix that the weighted losses of all batches stand for, shape ``(K,)``."""
        return self.reference

    def weigh(self, max_weight: float, exponent: float = 1.0) -> tuple[Floats, Ints, float]:
        """Return weights of at most ``max_weight``, how many samples of the batch have each, and the clipped mass.

        The weights are those of the classes, or those of the samples if they have several labels. The clipped mass is
        then estimated from the batch.
        """
        p, reference = self.probs, self.weight_reference
        if self.sample_weights is None or self.label_sets is None:
            mass = clipped_mass(reference, p, max_weight, exponent=exponent)
            return class_weights(reference, p, max_weight, exponent=exponent), self.counts, mass
        weights = self.sample_weights.weigh(self.label_sets, p, reference) ** exponent
        clipped = np.minimum(weights, max_weight)
        return clipped, np.ones(self.size, np.int64), float((weights - clipped).mean())

    def state_dict(self) -> dict[str, Any]:
        """Return the record as tensors and plain numbers, without what is not saved or of subclasses."""
        names = [each.name for each in fields(Draw) if each.name not in ("label_sets", "sample_weights", "before")]
        return to_tensors({name: getattr(self, name) for name in names})

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> Draw:
        """Return the record whose ``state_dict`` is given."""
        return Draw(**to_arrays(state))


def draw_spec(num_classes: int) -> dict[str, Any]:
    """Return what the state of a draw has to be."""
    before = array(0, num_classes, dtype=torch.int64, low=0)
    mixes = {"probs": mix(num_classes), "trained_mix": corrected_mix(num_classes), "reference": mix(num_classes)}
    numbers = {"draw_id": integer(), "alpha": number(0.0), "progress": number(0.0, 1.0)}
    return {**numbers, **mixes, "counts": counts(num_classes), "drawn_before": before}


class DrawsInFlight:
    """Keeps the draws that have not been trained on yet."""

    def start_anew(self, num_classes: int) -> None:
        """Forget all draws."""
        # A plain loop that never reports must not keep every record.
        self._in_flight: deque[Draw] = deque(maxlen=max_remembered(num_classes))
        self._overflowed = False  # whether the oldest of this iteration have been forgotten

    def remember(self, number: int) -> None:
        """Remember at least this number of draws in flight."""
        if number > (self._in_flight.maxlen or 0):
            self._in_flight = deque(self._in_flight, maxlen=number)

    @property
    def in_flight(self) -> tuple[Draw, ...]:
        """The draws that have not been trained on yet, oldest first."""
        return tuple(self._in_flight)

    @property
    def oldest(self) -> Draw | None:
        """The oldest draw in flight, or None; a ``RuntimeError`` is raised if it has been forgotten."""
        if self._overflowed:
            raise RuntimeError(
                f"More than {self._in_flight.maxlen} batches were drawn and not reported, so it is not known which one "
                "this is. Report every batch; if the DataLoader draws so far ahead, lower its prefetch_factor or "
                "num_workers, or make it fair with FairDataModule, which remembers them."
            )
        return self._in_flight[0] if self._in_flight else None

    def _put_in_flight(self, draw: Draw) -> None:
        self._overflowed |= len(self._in_flight) == self._in_flight.maxlen
        self._in_flight.append(draw)

    def _land(self, draw: Draw) -> None:
        if draw not in self._in_flight:
            raise RuntimeError(
                f"Draw {draw.draw_id} is not in flight: it was reported before, or withdrawn to be drawn again."
            )
        self._in_flight.remove(draw)

    def _empty(self) -> list[Draw]:
        draws, self._overflowed = list(self._in_flight), False
        self._in_flight.clear()
        return draws


def max_remembered(num_classes: int) -> int:
    """Return the number of draws that are remembered if nobody says how many are needed."""
    return min(max(2**21 // num_classes, 512), 4096)


@dataclass
class Report:
    """The report of a batch, until it takes effect. None stands for no effect.

    Attributes:
        draw_id: Number of the draw.
        due: Number of the draw before which it takes effect.
        correction: Class mix that was trained on minus the one that was drawn, shape ``(K,)``.
        losses: Mean loss of each class, shape ``(K,)``; NaN for a class without one.
        scores: Validation score of each class, shape ``(K,)``; NaN for a class without one.
    """

    draw_id: int
    due: int
    correction: Floats | None = None
    losses: Floats | None = None
    scores: Floats | None = None
