"""The scalars and figures that the loggers and the progress bar show of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakSet

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.class_mix import total_variation
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.monitoring import plots
from lightning_fair.monitoring.class_metrics import find_recalls
from lightning_fair.monitoring.history import DownsampledHistory
from lightning_fair.monitoring.tensorboard_layout import MAX_NAMED_CLASSES, Moving, make_charts, make_layout
from lightning_fair.monitoring.weight_statistics import BatchWeights, RunTotals

if TYPE_CHECKING:
    import lightning.pytorch as L
    from lightning.pytorch.loggers import Logger, TensorBoardLogger
    from matplotlib.figure import Figure

_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
_NUM_FURTHEST = 10


def scalars(
    context: LogContext, draw: Draw, weights: BatchWeights, totals: RunTotals, separator: str = "/"
) -> dict[str, float]:
    """Return the values to log for a batch that was just trained on, by tag; the table of tags explains each.

    Up to 20 classes are logged by name, of more classes quantiles. The separator joins the parts of a tag.
    """
    source, controller = context.source, context.source.controller
    q, trained_mix, moving = controller.q, controller.trained_mix, find_moving(controller)
    rarest = int(np.argmin(np.where(q > 0, source.class_counts, np.inf)))
    values = {
        "distance": total_variation(trained_mix, q),
        "deficit_max": float(controller.deficits.max()),
        "batch_distance": total_variation(draw.probs, controller.rest_at(draw.progress)),
        "coverage": source.coverage,
        "repeats_rarest": float(source.repeats[rarest]),
    }
    if moving.alpha:
        values["alpha"] = draw.alpha
    if (kind := controller.label_kind) is not None:
        values["labels_per_sample"] = draw.counts[: q.size - kind.has_unlabeled].sum() / draw.size
    if context.correction == "weights":
        values |= {
            "weight_mean": weights.mean,
            "weight_p95": weights.percentile(95),
            "weight_max": weights.largest,
            "effective_sample_size": weights.effective_sample_size,
            "effective_sample_size_horizon": totals.effective_sample_size_horizon,
            "effective_sample_size_run": totals.effective_sample_size,
            "clipped_mass": weights.clipped_mass,
        }
    of_classes = {"prob": draw.probs, "loss": controller.ema_loss}
    if moving.target:
        of_classes["target"] = q
    if moving.reference and context.correction in ("weights", "logits"):
        of_classes["reference"] = draw.reference
    if (arriving := source.arriving) is not None:
        of_classes["arriving"] = arriving
    if q.size <= MAX_NAMED_CLASSES:
        names, of_classes["trained_mix"] = context.class_names, trained_mix
    else:
        names, of_classes["over_target"] = tuple(_QUANTILES), over_target(controller)
        of_classes = {group: _quantiles(array) for group, array in of_classes.items()}
    tagged = {
        **{f"fair/{tag}": value for tag, value in values.items()},
        **{f"fair_independent/{tag}": value for tag, value in of_independent_draws(source).items()},
        **{
            f"fair_class/{group}/{name}": value
            for group, array in of_classes.items()
            for name, value in zip(names, array.tolist(), strict=True)
        },
    }
    return {tag.replace("/", separator): value for tag, value in tagged.items() if not np.isnan(value)}


def find_moving(controller: FeedbackController) -> Moving:
    """Return which settings can change during the training."""
    objective = controller.objective
    target = not np.array_equal(controller.target_at(0.0), controller.target_at(1.0))
    is_moved = objective.is_moved_by_losses or objective.is_moved_by_scores
    return Moving(len(set(controller.alpha.extremes)) > 1, target, is_moved or (target and objective.base is None))


def of_independent_draws(source: DrawSource) -> dict[str, float]:
    """Return what as many independent draws at the target would give, beside which the trained mix can be judged.

    The trained mix begins at the target. After many batches of ``B`` samples over all ranks it would have the standard
    deviation ``sqrt(q (1 - q) / (B (2 horizon - 1)))``, and after ``n`` batches ``sqrt(1 - (1 - 1 / horizon)^(2 n))``
    times as much. ``distance`` is its mean distance from the target. ``low`` and ``high`` are one standard deviation
    below and above the largest target; with more than 20 classes, of the trained mix over its target, for the smallest.
    """
    controller, q = source.controller, source.controller.q
    begun = 1.0 - (1.0 - 1.0 / controller.horizon) ** (2 * controller.draws)
    size = source.global_batch_size * controller.labels_per_draw
    deviation = np.sqrt(begun * q * (1.0 - q) / (size * (2.0 * controller.horizon - 1.0)))
    center, reach, highest = float(q.max()), float(deviation[q.argmax()]), 1.0
    if q.size > MAX_NAMED_CLASSES:
        center, reach, highest = 1.0, float((deviation[q > 0] / q[q > 0]).max()), math.inf
    return {
        "distance": float(deviation.sum()) / math.sqrt(2.0 * math.pi),  # the mean of |x| is sqrt(2 / pi) deviations
        "low": max(center - reach, 0.0),
        "high": min(center + reach, highest),
    }


def _quantiles(array: Floats) -> Floats:
    """Return the quantiles over the classes that have a value, shape ``(5,)``; NaN if none has."""
    known = array[~np.isnan(array)]
    return np.quantile(known, list(_QUANTILES.values())) if known.size else np.full(len(_QUANTILES), np.nan)


def over_target(controller: FeedbackController) -> Floats:
    """Return trained mix over target, shape ``(K,)``; NaN for a class with target 0."""
    q = controller.q
    return controller.trained_mix / np.where(q > 0, q, np.nan)


def _furthest_classes(relative: Floats) -> Ints:
    """Return up to ten classes with a target, those furthest from it first."""
    num_targets = int((~np.isnan(relative)).sum())
    return np.argsort(-np.abs(relative - 1.0))[: min(_NUM_FURTHEST, num_targets)]  # NaN comes last


def furthest_table(source: DrawSource, class_names: Sequence[str], noun: str = "class") -> str:
    """Return a Markdown table of the classes furthest from their target."""
    controller = source.controller
    relative = over_target(controller)
    rows = [
        f"| {rank} | {' '.join(class_names[c].split()).replace('|', '&#124;')} | {source.class_counts[c]:,} | "
        f"{controller.q[c]:.3g} | {controller.trained_mix[c]:.3g} | {relative[c]:.2f} |"
        for rank, c in enumerate(_furthest_classes(relative).tolist(), start=1)
    ]
    header = f"| rank | {noun} | training samples | target | trained mix | trained mix over target |"
    return "\n".join((header, "|" + "---|" * 6, *rows))


class Board(NamedTuple):
    """A TensorBoard logger, and the prefix that it puts before every tag."""

    logger: TensorBoardLogger
    prefix: str


class LogContext(NamedTuple):
    """A moment of a training, as far as a dashboard shows it."""

    source: DrawSource
    class_names: Sequence[str]
    # How the loss is corrected, as in the settings; None: not at all, because the module has no part in it.
    correction: Literal["weights", "logits", "none"] | None
    step: int  # optimizer steps so far
    loggers: Sequence[Logger]
    boards: Sequence[Board]  # the TensorBoard loggers that this process writes to: none unless it is the first rank
    noun: str = "class"  # or "group" if the labels are groups of the user's own, or "label" if samples have several


class Dashboard:
    """Writes scalars and figures of one run.

    Every logger gets the scalars. TensorBoard gets a layout with the first of them, and figures after the epochs 1, 2,
    4, 8 and so on and at the end.
    """

    def __init__(self) -> None:
        self._history: DownsampledHistory | None = None
        self._boards_with_layout: WeakSet[TensorBoardLogger] = WeakSet()
        self._last_plot = -1  # step of the newest figure of the mix

    def __reduce__(self) -> tuple[type[Dashboard], tuple[()]]:
        return Dashboard, ()  # a copy starts empty, because the loggers are the Trainer's

    def record(self, context: LogContext) -> None:
        """Record the trained mix of this step, if there is a board for the figure."""
        if not context.boards:
            return
        if self._history is None or self._history.width != len(context.class_names):
            self._history = DownsampledHistory(len(context.class_names))
        self._history.add(context.step, lambda: over_target(context.source.controller))

    def write_scalars(self, context: LogContext, draw: Draw, weights: BatchWeights, totals: RunTotals) -> None:
        """Write the scalars of a batch that was trained on, and the layout if it is not written yet."""
        for logger in context.loggers:
            values = scalars(context, draw, weights, totals, logger.group_separator)
            logger.log_metrics(values, step=context.step)
        for board in context.boards:
            self._write_layout(board, context)

    def end_epoch(self, context: LogContext, epoch: int) -> None:
        """Plot the mix after the epochs 1, 2, 4, 8 and so on; ``epoch`` counts from 0."""
        if (epoch + 1) & epoch == 0:  # epoch + 1 is a power of two
            self._plot_mix(context)

    def end(self, context: LogContext, metrics: Mapping[str, Any]) -> None:
        """Plot the mix, and the recall of each class in the last validation."""
        self._plot_mix(context)
        self.plot_recall(context, metrics, "validation")

    def plot_recall(self, context: LogContext, metrics: Mapping[str, Any], stage: str) -> None:
        """Plot the recall of each class over its training samples, if the module has logged it."""
        names, counts, kind = context.class_names, context.source.class_counts, context.source.controller.label_kind
        if kind is not None and kind.has_unlabeled:  # the module has no output for it
            names, counts = names[:-1], counts[:-1]
        recall = find_recalls(metrics, names, stage[:3]) if context.boards else None
        if recall is not None:
            tag = f"fair/recall/{stage}"
            self._add_figure(context, tag, plots.plot_recall, recall, counts, names, stage, context.noun)

    def _plot_mix(self, context: LogContext) -> None:
        history, source, names = self._history, context.source, context.class_names
        if history is None or not context.boards or context.step == self._last_plot:
            return
        self._last_plot = context.step
        steps, rows = np.array(history.steps), np.stack(history.rows)
        self._add_figure(context, "fair/mix", plots.plot_mix, steps, rows, source.class_counts, names, context.noun)
        if len(names) > MAX_NAMED_CLASSES:
            table = furthest_table(source, names, context.noun)
            for logger, prefix in context.boards:
                logger.experiment.add_text(f"{prefix}fair/furthest", table, context.step)

    def _add_figure(self, context: LogContext, tag: str, plot: Callable[..., Figure], *values: Any) -> None:
        if find_spec("matplotlib") is None:
            return
        try:
            image = plots.to_pixels(plot(*values))
        except Exception as error:  # a figure must not end a training
            rank_zero_warn(f"The figure {tag} could not be plotted: {type(error).__name__}: {error}")
            return
        for logger, prefix in context.boards:
            logger.experiment.add_image(f"{prefix}{tag}", image, context.step, dataformats="HWC")

    def _write_layout(self, board: Board, context: LogContext) -> None:
        if board.logger in self._boards_with_layout:
            return
        self._boards_with_layout.add(board.logger)
        charts = make_charts(
            len(context.class_names),
            find_moving(context.source.controller),
            correction=context.correction,
            arriving=context.source.arriving is not None,
            noun=context.noun,
        )
        board.logger.experiment.add_custom_scalars(make_layout(charts, board.prefix))


def show_distance(pl_module: L.LightningModule, controller: FeedbackController) -> None:
    """Give the progress bar and ``trainer.callback_metrics`` the distance of the trained mix from the target."""
    if not pl_module.trainer.barebones:
        # On the host, so that nothing waits for the device.
        distance = torch.tensor(total_variation(controller.trained_mix, controller.q))
        pl_module.log("fair/distance", distance, prog_bar=True, logger=False, rank_zero_only=True, sync_dist=True)
