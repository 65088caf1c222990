"""The labels of a stream whose samples have several: how they are read, and what is known of them so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from lightning_fair.common.arrays import Floats, Ints, to_numpy
from lightning_fair.common.checks import show
from lightning_fair.common.label_sets import UNLABELED, LabelSets, mirrored
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.label_draws import SampleWeights
from lightning_fair.streaming.samples import class_number, label_values, refuse_out_of_range

# Of a solution, which begins at the last one. Counts of a few thousand samples are less exact than this tolerance.
_TOLERANCE, _STEPS, _STEP_BUDGET = 1e-4, (100, 2000), 20_000_000  # the budget: numbers that all steps read


def read_label_sets(
    samples: Sequence[Any],
    kind: LabelSets,
    label_fn: Callable[[Any], Any] | None = None,
    numbers: Mapping[str, int] | None = None,
) -> list[tuple[int, ...]]:
    """Return the classes of each sample of a stream, ascending; see :class:`~lightning_fair.FairStream` for the forms.

    Args:
        samples: Samples of one kind, at least one.
        kind: Labels with the same classes.
        label_fn: Takes a sample and returns its labels.
        numbers: Class number of each name; None if nothing names the classes.

    Raises:
        TypeError: If a sample has no label, or no label that can be a class or a name.
        ValueError: If a row has other values or columns, a class is not in ``[0, K)``, a name is unknown, or a sample
            has no label and no class stands for that.

    Example:
        >>> read_label_sets([("a", [0, 1, 1]), ("b", {2}), ("c", [2, 0])], LabelSets.expected(3))
        [(1, 2), (2,), (0, 2)]
    """
    K = kind.num_classes
    lists = [_classes(value, kind, numbers or {}) for value in label_values(samples, label_fn)]
    refuse_out_of_range([label for labels in lists for label in labels], K)
    if not all(lists) and not kind.has_unlabeled:
        raise ValueError(
            "A sample of the stream has no label, and no class stands for that. Count such samples as a class of their "
            f'own, the last one, which is called "{UNLABELED}": num_classes={K + 1}, and '
            f'FairStream(class_names=[..., "{UNLABELED}"]); or leave them out of the source.'
        )
    return [tuple(labels) or (K - 1,) for labels in lists]


def _classes(value: Any, kind: LabelSets, numbers: Mapping[str, int]) -> list[int]:
    """Return the classes of a row of zeros and ones, a collection of classes, or a single class."""
    is_many = isinstance(value, (Sequence, Set)) and not isinstance(value, (str, bytes))
    if not is_many and not (hasattr(value, "ndim") and value.ndim):
        return [class_number(value, numbers)]
    value = value if is_many else to_numpy(value)
    if not isinstance(value, Set):
        row = _as_row(value)
        K = kind.num_classes
        widths = (K - 1, K) if kind.has_unlabeled else (K,)
        if row is not None and len(row) in widths and ((row == 0) | (row == 1)).all():
            return list(map(int, np.flatnonzero(row)))
        is_no_list = row is not None and row.max() <= 1 and len(set(row.tolist())) < len(row)  # of class numbers
        if is_no_list or (row is not None and row.dtype.kind in "bf"):
            raise ValueError(
                f"The labels of a sample must be a row of {' or '.join(map(str, widths))} zeros and ones, a number for "
                f"each label, or its classes, such as {{0, 2}}; got {show(row.tolist())} in the stream. Set "
                "num_classes to the number of labels (one more if the last class is that of samples without a label: "
                f'FairStream(class_names=[..., "{UNLABELED}"])). If other values than 0 and 1 say that a label is not '
                "certain, pass FairStream(label_fn=...) with a function such as lambda sample: sample[1] == 1."
            )
    items = value.tolist() if isinstance(value, np.ndarray) else value
    return sorted({class_number(item, numbers) for item in items})


def _as_row(value: Any) -> Any:
    """Return the numbers or truth values of a list or an array of one dimension; None if they are something else."""
    try:
        row = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        return None
    if row.ndim > 1:
        raise ValueError(
            f"The labels of a sample must be one row or its classes, got shape {row.shape} in the stream. Let the "
            "source yield single samples and not batches."
        )
    return row if row.dtype.kind in "biuf" and row.size else None


class LabelStatistics:
    """What one process has read in one iteration over a stream whose samples have several labels.

    Attributes:
        kind: Labels with the same classes.
        num_samples: Number of samples ``N``.
    """

    def __init__(self, kind: LabelSets) -> None:
        self.kind, self.num_samples = kind, 0
        self._together: Ints = np.zeros((kind.num_classes, kind.num_classes), np.int64)  # the upper triangle
        self._next = 1  # samples from which on the draws are computed again

    def add(self, labels: LabelSets) -> None:
        """Count samples that were read."""
        self.num_samples += labels.size
        for pairs in labels.pairs():
            np.add.at(self._together.reshape(-1), pairs, 1)

    @property
    def weights(self) -> SampleWeights:
        """Weights by the samples of each label, and of all, so far."""
        return SampleWeights(self._together.diagonal().copy(), self.num_samples)

    def steer(self, controller: FeedbackController) -> None:
        """Let a controller find the draws that bring the target, if a tenth more samples are known than last time."""
        if self.num_samples >= self._next:
            self._next = self.num_samples * 11 // 10 + 1
            steps = int(np.clip(_STEP_BUDGET // self._together.size, *_STEPS))
            options = {"tolerance": _TOLERANCE, "max_steps": steps}
            controller.learn_draws(controller.solve_draws(mirrored(self._together), **options))

    def capture(self, resting: Floats | None) -> dict[str, Any]:
        """Return the statistics, and the draws that follow from them."""
        state = {"num_samples": self.num_samples, "together": self._together, "next": self._next}
        return {**state, "resting": resting}

    def restore(self, state: Mapping[str, Any], controller: FeedbackController) -> None:
        """Take over what ``capture`` returned."""
        self.num_samples, self._together, self._next = state["num_samples"], state["together"], state["next"]
        controller.learn_draws(state["resting"])
