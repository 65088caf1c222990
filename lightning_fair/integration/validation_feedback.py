"""Feedback from validation: the value of each class, read at the end of each validation of a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_fair.common.arrays import Floats
from lightning_fair.common.checks import check_numbers
from lightning_fair.common.distributed import sum_over_ranks
from lightning_fair.common.label_sets import numbers_as_names
from lightning_fair.dataloaders.label_counts import count_labels
from lightning_fair.integration.trainer_internals import is_validation_due, training_time, validation_loaders
from lightning_fair.monitoring.class_metrics import ClassValues, find_class_values
from lightning_fair.monitoring.tensorboard_layout import plural

if TYPE_CHECKING:
    import lightning.pytorch as L

    from lightning_fair.control.controller import FeedbackController
    from lightning_fair.integration.run import Run

_MAX_SHOWN = 10  # names in a message
_IS_DUE = "fair_validation_is_due"  # in a checkpoint


class ValidationFeedback:
    """Reports the newest value of each class to the controller of a run, at the end of each validation of a fit.

    The values are those given to :meth:`add` during the validation, or else the metrics that were logged in it under
    the name ``settings.feedback``, averaged over the ranks. A class without a value, or without a validation sample,
    takes no part. Samples are counted by the labels of the validation data, if no sample has to be read for that.

    Args:
        run: The run of the fit, with its loader.
        trainer: The Trainer of the fit.
    """

    def __init__(self, run: Run, trainer: L.Trainer) -> None:
        self._run, self._trainer = run, trainer
        self._name, self._is_rate = run.settings.feedback, run.settings.feedback_mode == "max"
        self._metrics_before: dict[str, Any] | None = None  # of earlier validations; None outside of a validation
        self._given: list[tuple[Floats, Floats]] = []  # weights and values of the calls of `add`
        self._has_counts = False  # whether these calls had counts
        self._has_reported = False
        self._validated_at = training_time(trainer)[-1]  # number of batches at the newest validation, or at the start
        self._label_counts: dict[int, tuple[Any, float, Any]] = {}  # loader, its batches and counts, by its number
        self._warnings: set[str] = set()
        self._warn_without_effect()

    @property
    def _controller(self) -> FeedbackController:
        assert self._run.source is not None
        return self._run.source.controller  # another one if the data change

    def start(self) -> None:
        """Begin a validation."""
        self._metrics_before = dict(self._trainer.callback_metrics)
        self._given, self._has_counts = [], False

    def add(self, values: Any, counts: Any = None) -> None:
        """Take values of the validation; see :meth:`~lightning_fair.ImportanceWeightedMixin.fair_feedback`."""
        if self._metrics_before is None:
            raise RuntimeError(
                "fair_feedback takes the values of a validation, and there is none at present. Call it in "
                "on_validation_epoch_end or validation_step; on_validation_end is too late."
            )
        if self._given and not (self._has_counts and counts is not None):
            raise RuntimeError(
                "fair_feedback was called twice in one validation, without the counts that weight the values of each "
                "call. Call it once, in on_validation_epoch_end, or pass counts each time."
            )
        vector = self._check_vector("values", values)
        weights = np.ones_like(vector) if counts is None else self._check_vector("counts", counts)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"counts must be numbers of samples, finite and at least 0, got {weights.min():g}.")
        self._given.append((weights, vector))
        self._has_counts = counts is not None

    def _check_vector(self, name: str, values: Any) -> Floats:
        K, noun = self._controller.num_classes, self._run.noun
        if isinstance(values, Mapping):
            raise TypeError(
                f"fair_feedback needs {name} as a vector in the order of the {plural(noun)}, got a mapping. Pass "
                f"list(values.values()) if it has this order, or log it, and name the metric: feedback={self._name!r}."
            )
        vector, kind = check_numbers(name, values), self._controller.label_kind
        if kind is not None and kind.has_unlabeled and vector.shape == (K - 1,):  # no metric of samples without a label
            vector = np.append(vector, np.nan if name == "values" else 0.0)
        if vector.shape != (K,):
            raise ValueError(f"fair_feedback needs {name} of each {noun}, shape ({K},), got shape {vector.shape}.")
        return vector

    def finish(self) -> None:
        """End a validation, and report its values.

        Raises:
            ValueError: If the first validation has no value of any class, or if a value is out of range.
        """
        if self._metrics_before is None:
            return
        before, self._metrics_before = self._metrics_before, None
        self._validated_at = training_time(self._trainer)[-1]
        metrics, K = self._trainer.callback_metrics, self._controller.num_classes
        logged = {name: value for name, value in metrics.items() if value is not before.get(name)}
        # One more number shows whether the metric has more classes.
        metric = find_class_values(logged, self._name, [*self._run.class_names, str(K)])
        of_metric = np.array([metric.values.get(c, np.nan) for c in range(K)])
        flags = np.array([bool(self._given), bool(metric.values), self._has_counts])
        sums = _weighted_sums(self._given, K), _weighted_sums([(np.ones(K), of_metric)], K)
        total = self._sum_over_ranks(np.concatenate([flags, *sums[0], *sums[1], *self._count_labels(metric.loader)]))
        (is_given, is_logged, has_counts), (given, of_metrics, labels) = total[:3] > 0, total[3:].reshape(3, 2, K)
        if not (is_given or is_logged):
            if not self._has_reported:
                raise ValueError(self._describe_missing(logged))
            return
        weights, weighted = given if is_given else of_metrics
        values = np.divide(weighted, weights, out=np.full(K, np.nan), where=weights > 0)
        samples = weights if has_counts else np.where(labels[1] > 0, np.nan, labels[0])
        if is_given:
            metric = ClassValues(dict(enumerate(values)), by_number=True)
        self._warn_of_numbers(metric)
        self._warn_of_samples(metric, values, samples)
        self._report(np.where(samples == 0, np.nan, values))

    def save_if_due(self, checkpoint: dict[str, Any]) -> None:
        """Note in a checkpoint if a validation follows before the next batch; see ``warn_of_skipped_validation``."""
        has_validated = training_time(self._trainer)[-1] == self._validated_at
        checkpoint[_IS_DUE] = is_validation_due(self._trainer) and not has_validated

    def _report(self, values: Floats) -> None:
        if self._controller.objective.feedback == "train":
            return  # a FairStream's own controller, which was warned of
        self._run.flush_reports()  # so that the values take effect at the same draw on every device
        try:
            self._controller.report_validation(values, higher_is_better=self._is_rate)
        except ValueError as error:
            raise ValueError(f"FairSampling(feedback={self._name!r}): {error}") from None
        if self._run.tracker is not None:
            self._run.tracker.stream.share()  # the next batch may follow it, as it does after a resume
        self._has_reported = True

    def _sum_over_ranks(self, values: Floats) -> Floats:
        if self._trainer.world_size == 1:
            return values  # not every device has float64
        sums: Floats = sum_over_ranks(torch.from_numpy(values).to(self._trainer.strategy.root_device)).cpu().numpy()
        return sums

    def _count_labels(self, number: int | None) -> Floats:
        """Return the samples of each class in one validation loader or all, and whether that is unknown: ``(2, K)``."""
        loaders = enumerate(validation_loaders(self._trainer))
        counts = [self._count_labels_of(i, *loader) for i, loader in loaders if number in (None, i)]
        known = [each for each in counts if each is not None]
        if not known or len(known) < len(counts):
            return np.repeat([[0.0], [1.0]], self._controller.num_classes, axis=1)
        has_samples = np.stack(known) > 0
        # The metric may be that of any of the loaders.
        return np.stack([np.sum(known, axis=0), has_samples.any(axis=0) & ~has_samples.all(axis=0)])

    def _count_labels_of(self, number: int, loader: Any, num_batches: float) -> Any:
        if number in self._label_counts and self._label_counts[number][:2] == (loader, num_batches):
            return self._label_counts[number][2]
        run, counts = self._run, None
        words = numbers_as_names(self._controller.num_classes, self._controller.label_kind)
        if run.sampler is not None and run.label_check is not None and run.label_check.were_numbered:
            words = list(run.sampler.class_names or words)
        if run.tracker is None or run.tracker.stream.label_fn is None:
            counts = count_labels(loader, num_batches, run.settings.labels, {word: c for c, word in enumerate(words)})
        self._label_counts[number] = loader, num_batches, counts
        return counts

    def _describe_missing(self, logged: Mapping[str, Any]) -> str:
        names = self._run.class_names
        examples = ", ".join(self._metric_of(name) for name in names[:2])
        return (
            f"FairSampling(feedback={self._name!r}) needs a value of each {self._run.noun} at the end of a validation, "
            f"and this one has none. It has logged {_listed(list(logged)) or 'nothing'}. Either log the metrics "
            f"{examples}{', ...' if len(names) > 2 else ''}, by name or number, in on_validation_epoch_end; or inherit "
            "from ImportanceWeightedMixin, and call self.fair_feedback(values) there; or set feedback='train'."
        )

    def _metric_of(self, class_name: str) -> str:
        return self._name.replace("*", class_name) if "*" in self._name else f"{self._name}/{class_name}"

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warnings:
            self._warnings.add(key)
            rank_zero_warn(f"FairSampling(feedback={self._name!r}): {message}")

    def _warn_without_effect(self) -> None:
        """Warn of settings that make the feedback do nothing."""
        objective, is_draw = self._controller.objective, self._controller.objective.feedback_to == "draw"
        other = " or 'logits'" * (self._controller.label_kind is None)
        for applies, reason in (
            (
                not self._trainer.enable_validation,
                "the Trainer validates nothing, so nothing is fed back. Give fit a validation loader, or set "
                "feedback='train'.",
            ),
            (
                objective.feedback == "train",
                "the controller of the FairStream feeds back the losses of the training, so the metric has no effect. "
                "Make it with FeedbackController(feedback='validation').",
            ),
            (
                is_draw and not self._controller.lambda2,
                "the metric acts on the draw by lambda2, which is 0. Set lambda2=0.25, or feedback_to='objective'.",
            ),
            (
                not is_draw and not objective.gain,
                "the metric moves the objective by feedback_gain, which is 0. Set feedback_gain=3.",
            ),
            (
                not is_draw and self._run.settings.correction == "none",
                "the metric moves the objective, which only a correction passes on to the loss. Set "
                f"correction='weights'{other}, or feedback_to='draw'.",
            ),
        ):
            if applies:
                self._warn_once("effect", reason)

    def warn_if_unused(self) -> None:
        """Warn if the fit ends without a validation."""
        if not self._has_reported:
            self._warn_once("effect", "the fit had no validation that gave values, so nothing was fed back.")

    def _warn_of_numbers(self, metric: ClassValues) -> None:
        """Warn if the values are probably in the order of other class numbers, those of the batch."""
        check, K = self._run.label_check, self._controller.num_classes
        if check is None or not metric.by_number:
            return
        if check.relation == "renumbered" or (check.relation == "finer" and K in metric.values):
            numbers = _listed([f"{name} = {c}" for c, name in enumerate(self._run.class_names)])
            self._warn_once(
                "numbers",
                f"the values are taken by FairSampling's numbers of the {plural(self._run.noun)} ({numbers}), and "
                f"{check.column} of the batch has other numbers. If the values follow those, log them under the names "
                "of the classes, or set labels='scan', which reads the numbers of the batch.",
            )

    def _warn_of_samples(self, metric: ClassValues, values: Floats, samples: Floats) -> None:
        """Warn of classes that should have a value and have none, and of zeros that may be no values."""
        names, noun = np.array(self._run.class_names), self._run.noun
        is_logged = np.isin(np.arange(values.size), list(metric.values))
        kind = self._controller.label_kind
        if kind is not None and kind.has_unlabeled:  # a module has no output for samples without a label
            is_logged[-1], samples = True, np.append(samples[:-1], np.nan)
        missing = names[np.isnan(values) & ~(samples == 0) & ~(is_logged & np.isnan(samples))]
        if missing.size:
            self._warn_once(
                "missing",
                f"no value, or none that is finite, for {noun} {_listed(missing)}. They take no part. Log each as "
                f"{self._metric_of(missing[0])}; a mean over batches is NaN if one batch is.",
            )
        elif np.count_nonzero(~np.isnan(values) & ~(samples == 0)) < 2:
            self._warn_once("missing", f"the feedback compares {plural(noun)}, and fewer than two have a value.")
        zeros = names[(values == 0) & np.isnan(samples)]
        if zeros.size:
            self._warn_once(
                "zeros",
                f"{noun} {_listed(zeros)} has the value 0, and it is not known whether the validation has samples of "
                f"it: torchmetrics, for one, gives 0 to a {noun} without samples. Log NaN for such a {noun}, or call "
                "self.fair_feedback(values, counts) with the number of samples.",
            )


def warn_of_skipped_validation(checkpoint: Mapping[str, Any]) -> None:
    """Warn if a validation followed the batch after which the checkpoint was saved: Lightning skips it on resume."""
    if checkpoint.get(_IS_DUE) is True:
        rank_zero_warn(
            "The checkpoint was saved after a batch and before the validation that followed it. Lightning skips this "
            "validation now, so its values are not fed back, as they were in the interrupted fit. Save checkpoints "
            "after other batches, or at the end of a validation: ModelCheckpoint(save_on_train_epoch_end=False)."
        )


def _weighted_sums(pairs: Sequence[tuple[Floats, Floats]], num_classes: int) -> Floats:
    """Return the sum of the weights and of the weighted values of each class, without the values that are not finite.

    Shape ``(2, K)``.
    """
    sums = np.zeros((2, num_classes))
    for weights, values in pairs:
        counted = np.where(np.isfinite(values), weights, 0.0)
        sums += counted, counted * np.where(counted > 0, values, 0.0)
    return sums


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:_MAX_SHOWN]) + (", ..." if len(words) > _MAX_SHOWN else "")
