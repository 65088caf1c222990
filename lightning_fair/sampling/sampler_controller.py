"""The controller of a batch sampler: made for its labels, or checked against them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Ints
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.common.label_values import check_label_sets, check_labels
from lightning_fair.control.controller import FeedbackController

EmptyClasses: TypeAlias = Literal["error", "skip"]


def default_controller(labels: NDArray[Any] | LabelSets) -> FeedbackController:
    """Return a controller with a uniform target over the classes that have samples."""
    sets = labels if isinstance(labels, LabelSets) else None
    counts = np.bincount(labels) if sets is None else sets.counts  # type: ignore[arg-type]
    return FeedbackController(counts.size, (counts > 0) / np.count_nonzero(counts), label_sets=sets)


def check_fit(labels: NDArray[Any] | LabelSets, controller: FeedbackController) -> None:
    """Refuse labels with other classes than the controller has, or of another kind."""
    has_sets = isinstance(labels, LabelSets)
    if has_sets and controller.label_kind is None:
        raise ValueError(
            "The samples have several labels, so the controller has to know them: FeedbackController(..., "
            "label_sets=<the labels of the data>)."
        )
    if controller.label_kind is not None and not has_sets:
        raise ValueError(
            "The controller was made with label_sets, for samples with several labels, and these have one each. Leave "
            "label_sets out."
        )
    (check_label_sets if has_sets else check_labels)(labels, controller.num_classes)
    if controller.label_counts is not None and isinstance(labels, LabelSets):
        kind = controller.label_kind
        assert kind is not None
        if kind.has_unlabeled != labels.has_unlabeled or not np.array_equal(controller.label_counts, labels.counts):
            raise ValueError(
                "The controller was made with label_sets of other samples than the sampler draws from, so draws and "
                "weights would be those of other data. Make it with the labels of these samples."
            )


def skip_empty_classes(
    controller: FeedbackController,
    class_counts: Ints,
    empty_classes: EmptyClasses,
    names: Sequence[str] | None,
    place: str | None,
) -> None:
    """Share out the target of classes without samples over the others, or with ``"error"`` refuse them.

    ``names`` of the classes and the ``place`` of the labels are for the message.
    """
    empty = controller.wanted & (class_counts == 0)
    if empty.any() and empty_classes == "skip":
        controller.skip_classes(empty)
    elif empty.any():
        shown = [names[c] if names else str(c) for c in np.flatnonzero(empty).tolist()]
        source = f" (the labels come from {place})" if place else ""
        raise ValueError(
            f"No samples of class {', '.join(shown[:5])}{', ...' if len(shown) > 5 else ''}{source}, but the target "
            'gives them a probability. Set their target to 0, check num_classes, or pass empty_classes="skip".'
        )
