"""What a run's loggers and its progress bar show of the plugin."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.class_mix import total_variation
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw, DrawSource
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.monitoring import plots as figures
from lightning_fair.monitoring.history import History
from lightning_fair.monitoring.tensorboard_layout import MOST_BY_NAME, charts, layout_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
_FURTHEST = 10


@dataclass(frozen=True)
class BatchWeights:
    """What the importance weights of one batch come to: over all ranks, of a stream on this one.

    Attributes:
        size: Samples of the batch.
        mean: Their mean weight.
        largest: Their largest weight.
        effective_sample_size: How many equally weighted samples the batch is worth.
    """

    size: int
    mean: float = 1.0
    largest: float = 1.0
    effective_sample_size: float = 1.0
    _of_classes: tuple[Floats, NDArray[Any]] | None = None

    @classmethod
    def of(cls, weights: Floats, counts: NDArray[Any], *, normalize: bool) -> BatchWeights:
        """Sum up the class weights, shape ``(K,)``, of a batch with the given class counts, shape ``(K,)``."""
        size, total, squares = int(counts.sum()), float(weights @ counts), float(weights**2 @ counts)
        mean, largest = total / size, float(weights[counts > 0].max())
        scale = mean if normalize and mean else 1.0
        effective = total**2 / squares if squares else 0.0
        return cls(size, mean / scale, largest / scale, effective, (weights / scale, counts))

    @classmethod
    def none(cls, size: int) -> BatchWeights:
        """Return what it is where all weights are one."""
        return cls(size, effective_sample_size=float(size))

    def percentile(self, percent: float) -> float:
        """Return a percentile of the samples' weights."""
        if self._of_classes is None:
            return self.mean
        weights, counts = self._of_classes
        return float(np.percentile(weights.repeat(counts), percent))


def scalars(
    sampler: DrawSource,
    draw: Draw,
    weights: BatchWeights,
    names: Sequence[str],
    separator: str = "/",
) -> dict[str, float]:
    """Return what is logged of a batch that was just trained on, by tag; the README's table says what each means.

    Up to 20 classes are logged each by name; of more, quantiles over the classes, and the trained mix over the target
    of the ten that are furthest from theirs.

    Args:
        sampler: The sampler, which holds the controller; or what stands in its place for a stream.
        draw: The record of the batch.
        weights: Its importance weights.
        names: Name of each class.
        separator: What joins the parts of a tag (a logger's ``group_separator``).
    """
    controller = sampler.controller
    q, trained_mix = controller.q, controller.trained_mix
    rarest = int(np.argmin(np.where(q > 0, sampler.class_counts, np.inf)))
    values = {
        "alpha": draw.alpha,
        "distance": total_variation(trained_mix, q),
        "deficit_max": float(controller.deficits.max()),
        "weight_mean": weights.mean,
        "weight_p95": weights.percentile(95),
        "weight_max": weights.largest,
        "effective_sample_size": weights.effective_sample_size / weights.size,
        "coverage": sampler.coverage,
        "repeats_rarest": float(sampler.repeats[rarest]),
    }
    groups = {"prob": draw.probs, "loss": controller.ema_loss, "target": q, "trained_mix": trained_mix}
    if isinstance(sampler, StreamTracker):
        groups = {"arriving": sampler.arriving, **groups}
    if q.size <= MOST_BY_NAME:
        low, high = band(controller, sampler.global_batch_size)
        groups |= {"target_low": low, "target_high": high}
        # Class by class, so that a reader who comes meanwhile seldom finds a line without its band.
        for name, row in zip(names, np.stack(list(groups.values()), axis=1).tolist(), strict=True):
            values |= {f"{group}/{name}": value for group, value in zip(groups, row, strict=True)}
    else:
        relative = over_target(controller)
        for group, array in {**groups, "over_target": relative}.items():
            there = array[~np.isnan(array)]
            if there.size:
                quantiles = np.quantile(there, list(_QUANTILES.values())).tolist()
                values |= {f"{group}/{name}": value for name, value in zip(_QUANTILES, quantiles, strict=True)}
        furthest = relative[_furthest(relative)].tolist()
        values |= {f"furthest/{rank}": value for rank, value in enumerate(furthest, start=1)}
    return {f"fair/{tag}".replace("/", separator): value for tag, value in values.items() if not np.isnan(value)}


def band(controller: FeedbackController, batch_size: int) -> tuple[Floats, Floats]:
    """Return how far independent draws at exactly the target would carry the trained mix: one standard deviation.

    It is ``sqrt(q (1 - q) / (B (2 horizon - 1)))``, since the mix is an exponentially weighted average.

    Args:
        controller: The controller.
        batch_size: Samples of a batch, ``B``, over all ranks.

    Returns:
        Lower and upper end for each class, each of shape ``(K,)``, in [0, 1].
    """
    q = controller.q
    reach = np.sqrt(q * (1.0 - q) / (batch_size * (2.0 * controller.horizon - 1.0)))
    return np.maximum(q - reach, 0.0), np.minimum(q + reach, 1.0)


def over_target(controller: FeedbackController) -> Floats:
    """Return trained mix over target, shape ``(K,)``; NaN where a class has no target."""
    q = controller.q
    over: Floats = np.divide(controller.trained_mix, q, out=np.full(q.size, np.nan), where=q > 0)
    return over


def _furthest(relative: Floats) -> Ints:
    """The ten classes furthest from their target, of those with one, the furthest first."""
    off = np.abs(relative - 1.0)
    return np.argsort(np.where(np.isnan(off), -1.0, off))[::-1][: min(_FURTHEST, int((~np.isnan(off)).sum()))]


# -- a run -------------------------------------------------------------------------------------------------


class LogContext(NamedTuple):
    """What a dashboard shows: the sampler (of a stream what stands in its place), and its classes' names.

    ``weighted``: whether the loss has importance weights.
    """

    sampler: DrawSource
    names: Sequence[str]
    weighted: bool


class Dashboard:
    """Writes all of this for one run.

    Every logger gets the scalars; TensorBoard gets the layout with the first of them, and figures after the epochs 1,
    2, 4, 8 and so on and at the end. The progress bar has the distance of the trained mix from the target.
    """

    def __init__(self) -> None:
        self._history: History | None = None
        self._laid_out: WeakSet[TensorBoardLogger] = WeakSet()
        self._draws = False  # whether there is a logger for figures
        self._drawn = -1  # step of the last picture of the mix

    def __reduce__(self) -> tuple[type[Dashboard], tuple[()]]:
        return Dashboard, ()  # a copy begins anew: the loggers are the Trainer's

    def start(self, trainer: L.Trainer) -> None:
        """Take the loggers of the training that begins."""
        self._draws = bool(boards(trainer))

    def follow(
        self, trainer: L.Trainer, pl_module: L.LightningModule, shown: LogContext, draw: Draw, weights: BatchWeights
    ) -> None:
        """Take a batch that was trained on; write where the Trainer's ``log_every_n_steps`` says so."""
        if self._draws:
            if self._history is None or self._history.size != len(shown.names):
                self._history = History(len(shown.names))
            self._history.add(_step(trainer), lambda: over_target(shown.sampler.controller))
        # As Lightning's own callbacks do; and one point, not several, per optimiser step.
        if not trainer._logger_connector.should_update_logs or trainer.fit_loop._should_accumulate():
            return
        self.show_distance(trainer, pl_module, shown)
        for logger in trainer.loggers:
            values = scalars(shown.sampler, draw, weights, shown.names, logger.group_separator)
            logger.log_metrics(values, step=_step(trainer))
        for board in boards(trainer):
            self._lay_out(board, shown)

    def show_distance(self, trainer: L.Trainer, pl_module: L.LightningModule, shown: LogContext) -> None:
        """Let the progress bar, and ``trainer.callback_metrics``, have the distance of the trained mix."""
        if trainer.barebones:
            return
        controller = shown.sampler.controller
        off = torch.tensor(
            total_variation(controller.trained_mix, controller.q)
        )  # not on the device: nothing waits for it
        pl_module.log("fair/distance", off, prog_bar=True, logger=False, rank_zero_only=True, sync_dist=True)

    def end_epoch(self, trainer: L.Trainer, shown: LogContext) -> None:
        """Draw the mix over time, where the epoch is one for it."""
        number = trainer.current_epoch + 1
        if number & (number - 1) == 0:
            self._draw_mix(trainer, shown)

    def end(self, trainer: L.Trainer, shown: LogContext) -> None:
        """Draw the mix over time, and what the last validation says of the classes."""
        self._draw_mix(trainer, shown)
        self.draw_recall(trainer, shown, "validation")

    def draw_recall(self, trainer: L.Trainer, shown: LogContext, of: str) -> None:
        """Draw the recall of each class against its training samples, where the module logged it."""
        recall = recalls(trainer.callback_metrics, shown.names, of[:3]) if boards(trainer) else None
        if recall is not None:
            counts = shown.sampler.class_counts
            self._add(trainer, f"fair/recall/{of}", lambda: figures.recall_by_samples(recall, counts, shown.names, of))

    def _draw_mix(self, trainer: L.Trainer, shown: LogContext) -> None:
        history, step, counts = self._history, _step(trainer), shown.sampler.class_counts
        if history is None or not history.steps.size or step == self._drawn:
            return
        self._drawn = step
        self._add(trainer, "fair/mix", lambda: figures.mix_over_time(history.steps, history.rows, counts, shown.names))
        if len(shown.names) > MOST_BY_NAME:
            for board in boards(trainer):
                table = furthest_table(shown.sampler, shown.names)
                board.experiment.add_text(f"{_prefix(board)}fair/furthest", table, step)

    def _add(self, trainer: L.Trainer, tag: str, draw: Callable[[], Figure]) -> None:
        if find_spec("matplotlib") is None:
            return
        try:
            picture = figures.pixels(draw())
        except Exception as error:  # no picture is worth a training
            rank_zero_warn(f"The figure {tag} could not be drawn: {type(error).__name__}: {error}")
            return
        for board in boards(trainer):
            board.experiment.add_image(f"{_prefix(board)}{tag}", picture, _step(trainer), dataformats="HWC")

    def _lay_out(self, board: TensorBoardLogger, shown: LogContext) -> None:
        if board in self._laid_out or find_spec("tensorboard") is None:
            return
        self._laid_out.add(board)
        stream, controller = isinstance(shown.sampler, StreamTracker), shown.sampler.controller
        targets = controller.target_at(0.0), controller.target_at(1.0)
        categories = charts(shown.names, targets, weighted=shown.weighted, stream=stream)
        # The file is open: a scalar was just written.
        board.experiment.file_writer.add_summary(layout_summary(categories, _prefix(board)))


def boards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers that this process writes to."""
    return [x for x in trainer.loggers if isinstance(x, TensorBoardLogger)] if trainer.is_global_zero else []


def recalls(metrics: Mapping[str, Any], names: Sequence[str], stage: str) -> Floats | None:
    """Return the recall of each class from what a module logged, shape ``(K,)``; None where it did not.

    Args:
        metrics: Metrics by name. Those are taken that end with "recall" and a class's name or number, such as
            ``test/recall/cat`` or ``multiclassrecall_0`` (torchmetrics' ``ClasswiseWrapper``).
        names: Name of each class.
        stage: What names of this stage's metrics begin with, such as ``"val"``. Those without any such beginning will
            do, those of the training will not.

    Example:
        >>> recalls({"val/loss": 0.3, "val/recall/cat": 0.9, "val/recall/dog": 0.5}, ["cat", "dog"], "val")
        array([0.9, 0.5])
    """
    for endings in (names, [str(label) for label in range(len(names))]):
        starts = [key.removesuffix(endings[0]) for key in metrics if key.endswith(endings[0])]
        starts = [start for start in starts if re.search(r"recall[^a-z0-9]*$", start, re.IGNORECASE)]
        for start in sorted(starts, key=lambda start: not start.startswith(stage)):
            each = [np.asarray(metrics.get(f"{start}{ending}", ()), dtype=float) for ending in endings]
            if not start.startswith("train") and all(share.size == 1 for share in each):
                return np.array([share.item() for share in each])
    return None


def furthest_table(sampler: DrawSource, names: Sequence[str]) -> str:
    """Return a Markdown table of the classes furthest from their target."""
    controller = sampler.controller
    relative = over_target(controller)
    rows = [
        f"| {rank} | {' '.join(names[c].split()).replace('|', '&#124;')} | {sampler.class_counts[c]:,} | "
        f"{controller.q[c]:.3g} | {controller.trained_mix[c]:.3g} | {relative[c]:.2f} |"
        for rank, c in enumerate(_furthest(relative).tolist(), start=1)
    ]
    header = "| rank | class | training samples | target | trained mix | trained mix over target |"
    return "\n".join((header, "|" + "---|" * 6, *rows))


def _prefix(board: TensorBoardLogger) -> str:
    return f"{board._prefix}{board.LOGGER_JOIN_CHAR}" if board._prefix else ""


def _step(trainer: L.Trainer) -> int:
    return trainer.fit_loop.epoch_loop._batches_that_stepped
