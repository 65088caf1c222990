"""The outcome of a run for each class, as data and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table
from rich.text import Text

from lightning_fair.common.arrays import Floats, Ints

SHOTS = {"many": (101, None), "medium": (20, 100), "few": (0, 19)}  # training images, both ends included
# The numbers that compare runs, in the order of the columns in tables.
METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "worst_class_recall": "worst-class recall",
    "val_balanced_accuracy": "balanced accuracy, validation",
    "mean_distance": "mean distance",
    "worst_distance": "worst distance",
    "recovery": "batches to recover",
    "largest_weight": "largest weight",
    "clipped_mass": "clipped mass",
    "effective_sample_size": "effective sample size",
    **{f"{name}_shot_accuracy": f"{name}-shot accuracy" for name in SHOTS},
    "accuracy": "plain accuracy",
}


@dataclass(frozen=True)
class Best:
    """The epoch with the largest balanced accuracy in validation.

    Attributes:
        epoch: From 1.
        accuracy: Balanced accuracy, in [0, 1].
        on_test: Whether the validation data are the test set, so that the epoch was chosen with the test set.
    """

    epoch: int
    accuracy: float
    on_test: bool


@dataclass(frozen=True)
class Report:
    """The outcome of a run, after its last epoch.

    Attributes:
        classes: Names of the ``K`` classes.
        images: Training images of each class, int64, shape ``(K,)``.
        drawn: Training samples drawn of each class, int64, shape ``(K,)``.
        recall: Recall of each class in the test, in [0, 1], shape ``(K,)``; NaN for a class without test images, which
            counts in no mean.
        accuracy: Accuracy in the test, in [0, 1].
        largest_weight: Largest importance weight of the run; 1 without the plugin.
        effective_sample_size: That of the run, as a fraction of its samples, in [0, 1]; 1 without the plugin.
        val_balanced_accuracy: Balanced accuracy of the last validation, in [0, 1]; None without a validation, or if
            the validation data are the test set.
        best: The best epoch, shown beside the last one; None without validation.
        clipped_mass: Part of the reference that the loss of the run lacks, in [0, 1]; 0 without the plugin.
        mean_distance: Mean distance of the trained mix from the target over the turns of a stream after the first, in
            [0, 1]; None for other data.
        worst_distance: The largest of these distances.
        errors: Standard error of those metrics whose error a single run tells: the binomial one of the test and of the
            validation.
        recovery: Median over these turns of the batches until the trained mix was within 2 % of the target again; None
            for other data. A turn that did not recover counts with all its batches.
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
    clipped_mass: float = 0.0
    mean_distance: float | None = None
    worst_distance: float | None = None
    recovery: float | None = None
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def share_of_draws(self) -> Floats:
        """Share of each class in all training samples drawn, shape ``(K,)``; zeros before the first draw."""
        shares: Floats = self.drawn / max(int(self.drawn.sum()), 1)
        return shares

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls, in [0, 1]."""
        return float(np.nanmean(self.recall))

    @property
    def worst_class_recall(self) -> float:
        """The least of the recalls, in [0, 1]."""
        return float(np.nanmin(self.recall))

    @property
    def prior_accuracy(self) -> float:
        """Recalls weighted by the training images, in [0, 1]: the accuracy at the class mix of the training data.

        It shows the cost of balancing for the frequent classes, which a balanced test set hides.
        """
        tested = ~np.isnan(self.recall)
        return float(self.recall[tested] @ self.images[tested] / self.images[tested].sum())

    @property
    def shots(self) -> dict[str, float]:
        """Mean recall of the classes with many, medium and few training images, in [0, 1]; NaN if none was tested."""
        tested = ~np.isnan(self.recall)
        groups = {name: tested & _within(self.images, *ends) for name, ends in SHOTS.items()}
        return {name: float(self.recall[group].mean()) if group.any() else math.nan for name, group in groups.items()}

    def metrics(self) -> dict[str, float]:
        """Return the numbers in ``METRICS``; NaN for those that the run does not have.

        Example:
            >>> report = make_report(["cat", "dog"], [90, 10], [50, 50], [1.0, 0.5], 0.75, 1.0, 1.0)
            >>> metrics = report.metrics()
            >>> metrics["balanced_accuracy"], metrics["worst_class_recall"], metrics["few_shot_accuracy"]
            (0.75, 0.5, 0.5)
        """
        numbers = {f"{name}_shot_accuracy": recall for name, recall in self.shots.items()}
        values = {name: numbers[name] if name in numbers else getattr(self, name) for name in METRICS}
        return {name: math.nan if value is None else float(value) for name, value in values.items()}

    def table(self, title: str = "") -> Table:
        """Return the report as a rich table, to print with ``rich.print``."""
        table = Table(title=title or None, show_footer=True, title_justify="left")
        table.add_column("class", footer="all")
        table.add_column("training images", footer=str(self.images.sum()), justify="right")
        table.add_column("share of draws", footer=f"{self.drawn.sum()} draws", justify="right")
        table.add_column("recall", footer=f"{self.balanced_accuracy:.3f}", justify="right")
        rows = zip(self.classes, self.images, self.share_of_draws, self.recall, strict=True)
        for name, images, share, recall in rows:
            # Text, because rich would read a name such as [unk] or [/] as markup.
            table.add_row(Text(name), str(images), f"{100 * share:.1f} %", _number(recall))
        return table

    def summary(self) -> Table:
        """Return the numbers of the whole run as a rich table."""
        table = Table(show_header=False, box=None)
        tested = int((~np.isnan(self.recall)).sum())
        which = "" if tested == self.recall.size else f" of the {tested} tested classes"
        for name, value, meaning in (
            ("balanced accuracy", f"{self.balanced_accuracy:.3f}", f"mean of the recalls{which}, after the last epoch"),
            *self._shot_rows(),
            ("plain accuracy", f"{self.accuracy:.3f}", "over the whole test set"),
            ("accuracy at prior", f"{self.prior_accuracy:.3f}", "recalls weighted by the training images"),
            ("largest weight", f"{self.largest_weight:.2f}", "of one sample in the loss"),
            ("clipped mass", f"{self.clipped_mass:.3f}", "part of the loss that bounded weights leave out"),
            ("effective sample size", f"{self.effective_sample_size:.3f}", "of each sample of the run"),
        ):
            table.add_row(name, value, f"[dim]{meaning}[/dim]")
        if self.recovery is not None:
            distances = f"{self.mean_distance:.3f}, {self.worst_distance:.3f}"
            table.add_row("distance from the target", distances, "[dim]mean and largest, after the first turn[/dim]")
            table.add_row("batches to recover", f"{self.recovery:.1f}", "[dim]after a turn of the stream, median[/dim]")
        if self.best:
            chosen = "chosen on the test set itself" if self.best.on_test else "on the validation data"
            meaning = f"balanced accuracy of epoch {self.best.epoch}, {chosen}; not the result"
            table.add_row("best epoch", f"{self.best.accuracy:.3f}", f"[dim]{meaning}[/dim]")
        return table

    def _shot_rows(self) -> Iterator[tuple[str, str, str]]:
        for name, recall in self.shots.items():
            low, high = SHOTS[name]
            sizes = f"{low} or more" if high is None else f"{low} to {high}" if low else f"{high} or fewer"
            number = int(_within(self.images, low, high).sum())
            yield (
                f"  {name}-shot",
                _number(recall),
                f"{number} class{'es' * (number != 1)} with {sizes} training images",
            )


def comparison(runs: Mapping[str, Sequence[Report]], title: str = "") -> Table:
    """Return the recalls of several methods on the same data as a rich table, a column for each method.

    The last rows are the mean of the recalls, the least one, and their mean weighted by the training images, below each
    its standard deviation over the runs of a method. The recalls of the classes are averaged over these runs.

    Args:
        runs: Reports of each method, at least one, of runs that differ in the seed; as many for each.
        title: Above the table.
    """
    table, (first, *others) = Table(title=title or None, title_justify="left"), next(iter(runs.values()))
    for column in ("class", "images", *runs):
        table.add_column(column, justify="left" if column == "class" else "right")
    recalls = [np.mean([run.recall for run in reports], axis=0) for reports in runs.values()]
    for name, images, *row in zip(first.classes, first.images, *recalls, strict=True):
        # Text, because rich would read a name such as [unk] or [/] as markup.
        table.add_row(Text(name), str(images), *map(_number, row))
    table.add_section()
    for name, metric in (
        ("mean", "balanced_accuracy"),
        ("worst", "worst_class_recall"),
        ("data mix", "prior_accuracy"),
    ):
        values = [[getattr(run, metric) for run in reports] for reports in runs.values()]
        table.add_row(name, "", *(_number(float(np.mean(numbers))) for numbers in values))
        if others:
            table.add_row("  ±", "", *(_number(float(np.std(numbers, ddof=1))) for numbers in values), style="dim")
    return table


def mean_std(values: ArrayLike, digits: int = 3, unit: str = "") -> str:
    """Return ``mean ± sample standard deviation``; the mean alone if the deviation rounds to 0, nothing for no values.

    Example:
        >>> mean_std([0.8]), mean_std([0.8, 0.9, 1.0]), mean_std([10.0, 12.0], 1, " %")
        ('0.800', '0.900 ± 0.100', '11.0 ± 1.4 %')
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        return ""
    deviation = float(np.std(numbers, ddof=1)) if numbers.size > 1 else 0.0
    shown = f" ± {deviation:.{digits}f}" if deviation >= 0.5 * 10.0**-digits else ""
    return f"{numbers.mean():.{digits}f}{shown}{unit}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _within(images: Ints, low: int, high: int | None) -> NDArray[np.bool_]:
    return (images >= low) & (images <= (images.max() if high is None else high))


def make_report(
    classes: Sequence[str], images: ArrayLike, drawn: ArrayLike, recall: ArrayLike, *numbers: Any, **named: Any
) -> Report:
    """Return a :class:`Report`, with the class counts and recalls converted to arrays.

    Raises:
        ValueError: If classes, images, draws and recalls differ in length.

    Example:
        >>> report = make_report(["cat", "dog"], [90, 10], [50, 50], [1.0, 0.5], 0.75, 1.0, 1.0)
        >>> report.balanced_accuracy, report.prior_accuracy
        (0.75, 0.95)
    """
    counts, draws = np.asarray(images, dtype=np.int64), np.asarray(drawn, dtype=np.int64)
    recalls = np.asarray(recall, dtype=np.float64)
    sizes = [len(classes), counts.size, draws.size, recalls.size]
    if len(set(sizes)) != 1:
        raise ValueError(f"classes, images, drawn and recall must have the same length, got {sizes}.")
    return Report(list(classes), counts, draws, recalls, *numbers, **named)
