"""What a run did for each class, as data and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table
from rich.text import Text

from lightning_fair.common.arrays import Floats, Ints

SHOTS = {"many": (101, None), "medium": (20, 100), "few": (0, 19)}  # training images, both ends included


@dataclass(frozen=True)
class Best:
    """The epoch with the largest balanced accuracy in validation.

    Attributes:
        epoch: From 1.
        accuracy: Balanced accuracy, in [0, 1].
        on_test: Whether the test set is the validation data, so that the epoch was chosen with it.
    """

    epoch: int
    accuracy: float
    on_test: bool


@dataclass(frozen=True)
class Report:
    """The outcome of a run, after its last epoch.

    Attributes:
        classes: Name of each class, ``K`` of them.
        images: Training images of each class, int64, shape ``(K,)``.
        drawn: Training samples of each class that were drawn, int64, shape ``(K,)``.
        recall: Share of each class's test images that were recognised, in [0, 1], shape ``(K,)``; NaN for a class
            without any, which counts in no mean.
        accuracy: Share of all test images that were recognised, in [0, 1].
        largest_weight: Largest importance weight of the run; 1 without the plugin.
        effective_sample_size: Mean over the batches, in samples; the batch size without the plugin.
        val_balanced_accuracy: Balanced accuracy of the last validation, in [0, 1]; None without one, or if it
            was by the test set.
        best: The best epoch, to be shown beside the last and never in its place; None without validation.
    """

    classes: Sequence[str]
    images: Ints
    drawn: Ints
    recall: Floats
    accuracy: float
    largest_weight: float
    effective_sample_size: float
    val_balanced_accuracy: float | None = None
    best: Best | None = None

    @property
    def share_of_draws(self) -> Floats:
        """Share of each class in all training samples drawn, shape ``(K,)``; zeros before any."""
        shares: Floats = self.drawn / max(int(self.drawn.sum()), 1)
        return shares

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls, in [0, 1]: accuracy where every class is equally frequent."""
        return float(np.nanmean(self.recall))

    @property
    def prior_accuracy(self) -> float:
        """Recalls weighted by the training images, in [0, 1]: accuracy at the training data's own mix.

        A balanced test set hides what balancing costs the frequent classes; this shows it.
        """
        tested = ~np.isnan(self.recall)
        return float(self.recall[tested] @ self.images[tested] / self.images[tested].sum())

    @property
    def shots(self) -> dict[str, float]:
        """Mean recall of the classes with many, medium and few training images, in [0, 1]; NaN where none was tested.

        Many is more than 100, few is less than 20.
        """
        tested = ~np.isnan(self.recall)
        groups = {name: tested & _within(self.images, *ends) for name, ends in SHOTS.items()}
        return {name: float(self.recall[group].mean()) if group.any() else math.nan for name, group in groups.items()}

    def table(self, title: str = "") -> Table:
        """Return the report as a rich table; ``rich.print`` shows it."""
        table = Table(title=title or None, show_footer=True, title_justify="left")
        table.add_column("class", footer="all")
        table.add_column("training images", footer=str(self.images.sum()), justify="right")
        table.add_column("share of draws", footer=f"{self.drawn.sum()} draws", justify="right")
        table.add_column("recall", footer=f"{self.balanced_accuracy:.3f}", justify="right")
        rows = zip(self.classes, self.images, self.share_of_draws, self.recall, strict=True)
        for name, images, share, recall in rows:
            # As text: a name may be what rich takes for markup, such as [unk] or [/].
            table.add_row(Text(name), str(images), f"{100 * share:.1f} %", _log_context(recall))
        return table

    def summary(self) -> Table:
        """Return the numbers of the whole run as a rich table."""
        table = Table(show_header=False, box=None)
        tested = int((~np.isnan(self.recall)).sum())
        which = "" if tested == self.recall.size else f" of the {tested} tested classes"
        for name, value, meaning in (
            ("balanced accuracy", f"{self.balanced_accuracy:.3f}", f"mean of the recalls{which}, after the last epoch"),
            *self._shot_rows(),
            ("plain accuracy", f"{self.accuracy:.3f}", "over the test set as it is"),
            ("accuracy at prior", f"{self.prior_accuracy:.3f}", "recalls weighted by the training images"),
            ("largest weight", f"{self.largest_weight:.2f}", "of one sample in the loss"),
            ("effective sample size", f"{self.effective_sample_size:.1f}", "samples a batch, mean"),
            *self._best_rows(),
        ):
            table.add_row(name, value, f"[dim]{meaning}[/dim]")
        return table

    def _shot_rows(self) -> Iterator[tuple[str, str, str]]:
        for name, recall in self.shots.items():
            low, high = SHOTS[name]
            sizes = f"{low} or more" if high is None else f"{low} to {high}" if low else f"{high} or fewer"
            number = int(_within(self.images, low, high).sum())
            meaning = f"{number} class{'es' * (number != 1)} with {sizes} training images"
            yield f"  {name}-shot", _log_context(recall), meaning

    def _best_rows(self) -> Iterator[tuple[str, str, str]]:
        if self.best:
            chosen = "chosen on the test set itself" if self.best.on_test else "on the validation data"
            meaning = f"balanced accuracy of epoch {self.best.epoch}, {chosen}; not the result"
            yield "best epoch", f"{self.best.accuracy:.3f}", meaning


def _log_context(recall: float) -> str:
    return "-" if math.isnan(recall) else f"{recall:.3f}"


def _within(images: Ints, low: int, high: int | None) -> NDArray[np.bool_]:
    return (images >= low) & (images <= (images.max() if high is None else high))


def make_report(
    classes: Sequence[str],
    images: ArrayLike,
    drawn: ArrayLike,
    recall: ArrayLike,
    accuracy: float,
    largest_weight: float,
    effective_sample_size: float,
    val_balanced_accuracy: float | None = None,
    best: Best | None = None,
) -> Report:
    """Return the report of these numbers, whatever their containers.

    Raises:
        ValueError: If the classes, images, draws and recalls are not equally many.

    Example:
        >>> report = make_report(["cat", "dog"], [90, 10], [50, 50], [1.0, 0.5], 0.75, 1.0, 32.0)
        >>> report.balanced_accuracy, report.prior_accuracy
        (0.75, 0.95)
    """
    counts, draws = np.asarray(images, dtype=np.int64), np.asarray(drawn, dtype=np.int64)
    recalls = np.asarray(recall, dtype=np.float64)
    sizes = [len(classes), counts.size, draws.size, recalls.size]
    if len(set(sizes)) != 1:
        raise ValueError(f"classes, images, drawn and recall must be equally many, got {sizes}.")
    return Report(
        list(classes),
        counts,
        draws,
        recalls,
        float(accuracy),
        float(largest_weight),
        float(effective_sample_size),
        val_balanced_accuracy,
        best,
    )
