"""What a run did for each class, as data and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table

from lightning_fair.simplex import Floats, Ints


@dataclass(frozen=True)
class Report:
    """The outcome of a run.

    Attributes:
        classes: Name of each class, ``K`` of them.
        images: Training images of each class, int64, shape ``(K,)``.
        drawn: Training samples of each class that were drawn, int64, shape ``(K,)``.
        recall: Share of each class's test images that were recognised, in [0, 1], shape ``(K,)``.
        accuracy: Share of all test images that were recognised, in [0, 1].
        largest_weight: Largest importance weight of the run; 1 without the plugin.
        effective_sample_size: Mean over the batches, in samples; the batch size without the plugin.
    """

    classes: Sequence[str]
    images: Ints
    drawn: Ints
    recall: Floats
    accuracy: float
    largest_weight: float
    effective_sample_size: float

    @property
    def share_of_draws(self) -> Floats:
        """Share of each class in all training samples drawn, shape ``(K,)``; zeros before any."""
        shares: Floats = self.drawn / max(int(self.drawn.sum()), 1)
        return shares

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls, in [0, 1]: accuracy where every class is equally frequent."""
        return float(self.recall.mean())

    @property
    def prior_accuracy(self) -> float:
        """Recalls weighted by the training images, in [0, 1]: accuracy at the training data's own mix.

        A balanced test set hides what balancing costs the frequent classes; this shows it.
        """
        return float(self.recall @ self.images / self.images.sum())

    def table(self, title: str = "") -> Table:
        """Return the report as a rich table; ``rich.print`` shows it."""
        table = Table(title=title or None, show_footer=True, title_justify="left")
        table.add_column("class", footer="all")
        table.add_column("training images", footer=str(self.images.sum()), justify="right")
        table.add_column("share of draws", footer=f"{self.drawn.sum()} draws", justify="right")
        table.add_column("recall", footer=f"{self.balanced_accuracy:.3f}", justify="right")
        rows = zip(self.classes, self.images, self.share_of_draws, self.recall, strict=True)
        for name, images, share, recall in rows:
            table.add_row(name, str(images), f"{100 * share:.1f} %", f"{recall:.3f}")
        return table

    def summary(self) -> Table:
        """Return the numbers of the whole run as a rich table."""
        table = Table(show_header=False, box=None)
        for name, value, meaning in (
            ("balanced accuracy", f"{self.balanced_accuracy:.3f}", "mean of the recalls"),
            ("plain accuracy", f"{self.accuracy:.3f}", "over the test set as it is"),
            ("accuracy at prior", f"{self.prior_accuracy:.3f}", "recalls weighted by the training images"),
            ("largest weight", f"{self.largest_weight:.2f}", "of one sample in the loss"),
            ("effective sample size", f"{self.effective_sample_size:.1f}", "samples a batch, mean"),
        ):
            table.add_row(name, value, f"[dim]{meaning}[/dim]")
        return table


def make_report(
    classes: Sequence[str],
    images: ArrayLike,
    drawn: ArrayLike,
    recall: ArrayLike,
    accuracy: float,
    largest_weight: float,
    effective_sample_size: float,
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
    )
