"""The callback: makes the training loader fair, feeds the losses back, and logs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_fair.common.labels import Labels
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.control.objective import FeedbackTo
from lightning_fair.control.target_values import Target
from lightning_fair.integration import trainer_internals
from lightning_fair.integration.lightning_packages import Callback, check_trainer
from lightning_fair.integration.loader_setup import make_loader_fair
from lightning_fair.integration.logits_hook import set_up_correction
from lightning_fair.integration.loss_check import LossCheck
from lightning_fair.integration.presets import Correction, PresetName
from lightning_fair.integration.run import Run
from lightning_fair.integration.settings import FairSettings, Resume
from lightning_fair.integration.training_length import TrainingLength, announce
from lightning_fair.integration.validation_feedback import ValidationFeedback, warn_of_skipped_validation
from lightning_fair.monitoring.class_metrics import Mode
from lightning_fair.monitoring.dashboard import LogContext, show_distance
from lightning_fair.sampling.sampler_controller import EmptyClasses
from lightning_fair.schedules import Schedule, Shift

if TYPE_CHECKING:
    import lightning.pytorch as L
    from lightning.pytorch.utilities.types import STEP_OUTPUT


class FairSampling(Callback):
    """Steers the class mix of the training batches of any Trainer by negative feedback.

    ``Trainer(callbacks=[FairSampling()])`` is enough: the training ``DataLoader`` keeps all of its settings and gets
    other batches. With :class:`~lightning_fair.ImportanceWeightedMixin` in the module, the loss of each sample is
    weighted by ``reference[y] / p[y]``, with the class mix ``p`` of its own draw, and the losses are fed back. With
    ``correction="logits"`` the loss is corrected in the logits instead, for which the module needs no mixin. Else,
    without the mixin, the loss is the module's own, so the objective is the risk under the class mix that is drawn.

    A preset is a combination of arguments; one that is given wins over it. The last column is the class mix at which
    the softmax of the trained model estimates the probabilities of the classes.

    ===========  ============  =========  ==========  ============================  ================================
    preset       target_probs  reference  correction  feedback                      the softmax estimates
    ===========  ============  =========  ==========  ============================  ================================
    balanced     uniform       target     weights     off                           uniform
    deferred     deferred      target     weights     off                           prior, at the end uniform
    long_tail    auto          uniform    logits      off                           uniform
    worst_class  auto          uniform    logits      val/recall, to the objective  uniform, tilted to low recalls
    calibrated   uniform       prior      logits      off                           prior
    ===========  ============  =========  ==========  ============================  ================================

    What they cost: ``"balanced"`` repeats the samples of rare classes, in a long training until they are learned by
    heart. ``"deferred"`` hardly trains on rare classes before the last fifth. ``"long_tail"`` needs a softmax cross
    entropy, and frequent classes lose some accuracy. ``"worst_class"`` can lose a little of the mean accuracy, and
    needs about ten validations to settle. If its validation samples are taken out of scarce training data, that costs
    one or two percentage points; then set ``feedback="train"``, for the training losses with ``lambda2=0.25``.
    ``"calibrated"`` has the data's probabilities: its likeliest class is not balanced.

    **Several labels a sample**, such as tags or findings: rows of zeros and ones, or a list of classes for each sample
    (:func:`~lightning_fair.common.label_values.number_labels`). Samples without a label form the class ``"none"``. A
    place of a batch is a class, and a sample of it from the passes of that class; its other labels come along. The
    controller counts all labels of the samples, so a label that comes along is drawn less for itself. Target and
    trained mix are shares of all labels. If no draws bring the target, a warning names the nearest mix that they can
    bring. The weight of a sample with the labels ``k`` is ``ref(x) / sum(p[k] / n[k])``, with the ``n`` samples of each
    label; ``reference="target"`` stands for the draws that bring the target, ``"prior"`` for the mean over all samples,
    another mix ``m`` for ``ref(x) = sum(m[k] / n[k])``. :class:`~lightning_fair.control.label_draws.SampleWeights` says
    what is exact. Losses are fed back for each label. For a stream, set ``FairStream(several_labels=True)``.
    ``correction="logits"``, and with it the presets ``long_tail``, ``worst_class`` and ``calibrated`` as they are, is
    an error: set ``"weights"`` or ``"none"``.

    Args:
        alpha: Gain of the feedback, at least 0, or a schedule (:mod:`lightning_fair.schedules`).
            :class:`~lightning_fair.FeedbackController` has the formulas.
        target_probs: Class mix that batches are steered to: ``"uniform"``, ``"sqrt"``, ``"prior"``, a vector of shape
            ``(K,)``, a mapping from class (its number, its name, or its label in the data if labels are numbered) to
            probability (others share what is left, if any), or a :class:`~lightning_fair.schedules.Shift` between two.
            Or ``"auto"``: ``prior ** t`` with the smallest ``t`` in [0, 1] that keeps to ``max_repeats``, ``"sqrt"`` in
            a training of unknown length, ``"uniform"`` for a stream. Or ``"deferred"``: the prior, at last uniform.
        preset: Name in the table. It decides the arguments of the table, and ``lambda2``, where they are None.
        lambda1: Weight of the deficit, at least 0.
        lambda2: Weight of the class losses, at least 0; in the draw, also of a metric. Training losses need the mixin,
            or ``correction="logits"``.
        max_weight: Largest importance weight, at least 1. Draws are mixed with the target so that it holds without
            bias; weights are clipped only where a draw cannot keep it.
        min_prob: Smallest probability of a class, in ``[0, 1/K)``, in addition.
        horizon: Memory of the trained mix in batches, at least 1. None: chosen from the target and the batch size.
        loss_ema_decay: Memory of the class losses, in ``[0, 1)``.
        reference: Class mix that the loss stands for: ``"target"``, ``"uniform"``, ``"prior"``, ``"sqrt"``, a vector or
            a mapping.
        correction: ``"weights"``: each loss is multiplied by ``reference[y] / p[y]``. ``"logits"``:
            ``log(p / reference)`` is added to the logits in training. ``"none"``: the loss stands for the drawn mix.
        logits: With ``correction="logits"``: name of the submodule whose output are the logits, such as ``"model.fc"``.
            A forward hook adds the offsets there, only in training steps and where gradients are recorded, so the
            module stays as it is. An accuracy that the training step computes of this output is that of the adjusted
            logits, which know the class mix of the batch; validation is as without the hook. None: the mixin's
            ``adjusted_logits``; without the mixin, the only ``nn.Linear`` with as many outputs as there are classes
            (with two classes, one or two), which the log names. If training losses are fed back, its rows must be the
            samples of the batch, in their order.
        feedback: ``"train"``, the losses of training; or the name of a metric of each class that the module logs at
            validation: ``"val/recall"`` for ``val/recall/<class>`` (see
            :func:`~lightning_fair.monitoring.class_metrics.find_class_values`), which is read after each validation
            and averaged over the ranks. ``self.fair_feedback(values)`` of the mixin takes its place.
        feedback_mode: Whether higher values of that metric are better (``"max"``) or worse. None: known by its name.
        feedback_to: ``"draw"``: classes that do badly are drawn more often. ``"objective"``: the reference moves. None:
            as the preset says, and the objective for a metric.
        feedback_gain: Gain of a validation metric in the objective, at least 0. A larger one, such as 10, can do more
            for the worst class, and overshoots if there are only a few steps between two validations.
        max_repeats: With ``"auto"``: how often a sample of the rarest class is drawn in the whole training, at most (if
            even the prior draws it more often, ``t = 1``); at least 1. The log has ``t`` and the expected repeats.
        normalize: Divide the weights by their mean over the batch. This adds a bias of order ``1 / batch``.
        exponent: Weights to this power, in ``[0, 1]``. An exponent below 1 adds bias.
        labels: One class per sample, or several, if the data set does not show the classes or if others shall be
            balanced: numbers, strings or other hashable values. Or the name of an attribute, column or key; the
            position of an element in a sample; or a function of the loader's data set, called in each epoch, that
            returns one of these, such as ``lambda data: data.df["kind"]``, or of a ``Subset``
            ``data.dataset.df["kind"].iloc[data.indices]``.
            ``"scan"``, and a name or a position that the data set itself does not have, reads every sample once, and
            keeps the result for later runs (see
            :func:`~lightning_fair.dataloaders.label_scan.find_loader_labels`). None: the data set's own labels (see
            :func:`~lightning_fair.common.labels.find_labels`).
        num_classes: Number of classes ``K``. None: the largest label plus one, at least the number of the
            data set's ``classes``, or the length of the target. With several labels a sample, that of the labels or,
            with the class ``"none"``, one more.
        class_names: Names of the classes for the logger. None: the label values if these are no class numbers, else
            the data set's ``classes``, or else numbers.
        dataloader: Key or position of the loader to make fair, if there are several training loaders.
        steps_per_epoch: Batches of an epoch. None: the length of the loader.
        empty_classes: If a class with a target has no samples: ``"error"``, or ``"skip"`` to draw the others.
        feedback_delay: Batches after which a loss or a validation takes effect, at least 1. If it is larger than the
            number of batches drawn ahead (``num_workers * prefetch_factor``), the batches do not depend on that number.
            None: the delay of the checkpoint on resume, else 16, or more if the loader draws further ahead.
        seed: Seed of the draws, at least 0. None: that of ``seed_everything``, or else 0.
        resume: What ``fit(ckpt_path=...)`` takes from the checkpoint. ``"continue"``: model and class mix, so that the
            batches are those of an uninterrupted run; other data, batch size or target, and damage are errors, and
            ``"auto"`` keeps the checkpoint's target. ``"restart"``: the model, the optimizer and the Trainer's step and
            epoch, which schedules follow; the class mix and the uses of samples start anew, with any data. Lightning
            2.6 itself can train steps too many after several interruptions, and loses a cut accumulation window.

    Attributes:
        settings: The arguments, as a frozen :class:`~lightning_fair.integration.settings.FairSettings`. A copy or a
            pickle of the callback has only these. Among hyperparameters (``save_hyperparameters``), a checkpoint holds
            them without ``labels`` that are values or a function, and to train with such a callback is an error.

    Raises:
        ValueError: If an argument is out of range. An argument that does not fit the data raises before the first step.
        TypeError: If an argument is of another type.

    Example:
        >>> import lightning.pytorch as L  # or: import pytorch_lightning as L
        >>> callback = FairSampling(alpha=8.0, max_weight=50.0)
        >>> trainer = L.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        alpha: float | Schedule = 8.0,
        target_probs: Target | Shift = None,
        *,
        preset: PresetName = "balanced",
        lambda1: float = 1.0,
        lambda2: float | None = None,
        max_weight: float = 10.0,
        min_prob: float = 0.0,
        horizon: float | None = None,
        loss_ema_decay: float = 0.9,
        reference: Target = None,
        correction: Correction | None = None,
        logits: str | None = None,
        feedback: str | None = None,
        feedback_mode: Mode | None = None,
        feedback_to: FeedbackTo | None = None,
        feedback_gain: float = 3.0,
        max_repeats: float = 40.0,
        normalize: bool = False,
        exponent: float = 1.0,
        labels: Labels = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        dataloader: int | str | None = None,
        steps_per_epoch: int | None = None,
        empty_classes: EmptyClasses = "error",
        feedback_delay: int | None = None,
        seed: int | None = None,
        resume: Resume = "continue",
    ) -> None:
        # The arguments are spelled out, because LightningCLI and Hydra read this signature.
        self.settings = FairSettings(**{name: value for name, value in locals().items() if name != "self"})
        self._forget_fit()

    def _forget_fit(self) -> None:
        self._run = Run(self.settings)
        self._stage = "fit"
        self._patches = ExitStack()  # of Lightning's methods, during a fit
        self._installed_in: ref[L.Trainer] | None = None  # the Trainer that a FairDataModule has given it to

    def __getstate__(self) -> dict[str, Any]:
        # `log` and `log_dict` are methods of the module, which Lightning adds.
        of_fit = ("_run", "_stage", "_patches", "_installed_in", "log", "log_dict")
        return {name: value for name, value in self.__dict__.items() if name not in of_fit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_fit()

    @property
    def sampler(self) -> DrawSource | None:
        """The :class:`~lightning_fair.FeedbackBatchSampler`, or for a stream its tracker; None before the first fit."""
        return self._run.source

    @property
    def controller(self) -> FeedbackController | None:
        """The controller; None before the first fit has its data."""
        return None if self.sampler is None else self.sampler.controller

    @property
    def largest_weight(self) -> float:
        """Largest importance weight of the run so far."""
        return self._run.totals.largest_weight

    @property
    def clipped_mass(self) -> float:
        """Part of the reference that the loss of the run so far lacks, in [0, 1]; NaN before the first batch.

        The mean over the samples of ``fair/clipped_mass``. It is 0 unless weights are clipped at ``max_weight``, or a
        class of a stream is missing.
        """
        return self._run.totals.clipped_mass

    @property
    def effective_sample_size(self) -> float:
        """Effective sample size of the run so far, as a fraction of its samples, in [0, 1]; NaN before the first.

        ``(sum w)^2 / (N sum w^2)`` over all ``N`` samples of the run. The mean over the batches would hide weights that
        swing from batch to batch.
        """
        return self._run.totals.effective_sample_size

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stage = stage
        if stage != "fit":
            return
        check_trainer(trainer)
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        data_source = trainer_internals.train_data_source(trainer)
        if self._run.loader is not None and self._run.trainer_id != id(trainer):
            raise RuntimeError(
                "This FairSampling is in the fit of another Trainer. Give each Trainer one of its own, for example "
                "copy.deepcopy(fair)."
            )
        if self.is_installed_in(trainer) and getattr(data_source, "_callback", None) is not self:
            trainer.callbacks = others  # type: ignore[attr-defined]  # the Trainer has another data module now
            return
        # First of all, so that a callback that saves a checkpoint after a batch finds the batch reported.
        trainer.callbacks = [self, *others]  # type: ignore[attr-defined]
        self._detach(pl_module)
        if hasattr(pl_module, "_step_correction"):
            pl_module._has_fair_sampling = True  # type: ignore[assignment]
        if any(isinstance(callback, FairSampling) for callback in others):
            raise ValueError("The Trainer has more than one FairSampling callback. Keep one: it owns the state.")
        self._run = self._run.next_fit(trainer)
        self._run.length = TrainingLength.of(trainer, pl_module)
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            rank_zero_warn("FairSampling is off with overfit_batches: Lightning needs the same batches in each epoch.")
            return
        trainer_internals.check_training_step(pl_module)
        self._run.loss_check = LossCheck(self.settings, pl_module)
        make_fair, key = partial(make_loader_fair, self._run, trainer), self.settings.dataloader
        self._patches = trainer_internals.intercept_train_dataloader(trainer, key, make_fair)
        begin_search = partial(setattr, self._run, "in_search", True)
        trainer_internals.join_searches(self._patches, trainer, self, begin_search)
        trainer_internals.on_exception(self._patches, trainer, partial(self._detach, pl_module))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._run.tracker is not None:
            self._run.tracker.is_alone = True  # a callback can save now, without the other ranks

    def is_installed_in(self, trainer: L.Trainer | None) -> bool:
        """Return whether a :class:`~lightning_fair.FairDataModule` has given the callback to this Trainer."""
        return self._installed_in is not None and self._installed_in() is trainer

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._detach(pl_module)

    def _detach(self, pl_module: L.LightningModule) -> None:
        self._run.validation_feedback = None
        self._patches.close()
        self._run.loader = None
        if self._run.step_correction is not None:
            self._run.step_correction.close()
        if hasattr(pl_module, "_step_correction"):
            pl_module._step_correction, pl_module._has_fair_sampling = None, False  # type: ignore[assignment]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._run.loader is None or self.controller is None:
            return
        if self.settings.feedback != "train" and not self._run.in_search:
            self._run.validation_feedback = ValidationFeedback(self._run, trainer)
        if not self._run.in_search:
            announce(self._run)
        set_up_correction(self._run, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._run.begin_step()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        run = self._run
        if run.loss_check is not None and run.current is not None and self.controller is not None:
            num_classes = None if run.groups else self.controller.num_classes
            run.loss_check.look(loss, run.current.labels, num_classes, run.step_correction)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        # Under automatic optimization a step that returned None was skipped.
        has_loss = bool(outputs) or not pl_module.automatic_optimization
        draw = self._run.end_step(has_loss=has_loss, device=trainer.strategy.root_device)
        if draw is None:
            return
        weights, context = self._run.add_to_totals(draw), self._log_context(trainer)
        self._run.dashboard.record(context)
        if trainer_internals.should_log(trainer):
            show_distance(pl_module, context.source.controller)
            self._run.dashboard.write_scalars(context, draw, weights, self._run.totals)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._run.loader is not None:
            self._run.end_epoch()
            context = self._log_context(trainer)
            show_distance(pl_module, context.source.controller)
            self._run.dashboard.end_epoch(context, trainer.current_epoch)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._run.validation_feedback is not None:
            self._run.validation_feedback.start()

    # The first hook after everything has been logged. A callback that saves a checkpoint here comes later.
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._run.validation_feedback is not None:
            self._run.validation_feedback.finish()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._run.validation_feedback is not None:
            self._run.validation_feedback.warn_if_unused()
        if self._run.loader is not None:
            self._run.dashboard.end(self._log_context(trainer), trainer.callback_metrics)
            if self._run.step_correction is not None:
                self._run.step_correction.close()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.sampler is not None:
            self._run.dashboard.plot_recall(self._log_context(trainer), trainer.callback_metrics, "test")

    def _log_context(self, trainer: L.Trainer) -> LogContext:
        assert self.sampler is not None
        correction = None if self._run.step_correction is None else self.settings.correction
        names, noun = self._run.class_names, self._run.noun
        return trainer_internals.log_context(trainer, self.sampler, names, correction=correction, noun=noun)

    def state_dict(self) -> dict[str, Any]:
        return self._run.state_dict()

    # Lightning stores the state of a data module under the name of its class. Under that of the wrapped one as well, it
    # can be resumed without the plugin, and the plugin can be added.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        data, wrapped = _data_modules(trainer)
        if wrapped is not data and (state := wrapped.state_dict()):
            checkpoint.setdefault(type(wrapped).__qualname__, state)
        if self._run.validation_feedback is not None:
            self._run.validation_feedback.save_if_due(checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        data, wrapped = _data_modules(trainer)
        state = checkpoint.get(type(wrapped).__qualname__)
        if wrapped is not data and state and type(data).__qualname__ not in checkpoint and self._stage == "fit":
            wrapped.load_state_dict(state)
        if self._stage == "fit" and self.settings.resume == "continue":
            warn_of_skipped_validation(checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage == "fit":  # `validate(ckpt_path=...)` and the like leave the run as it is
            self._run.load_state_dict(state_dict)


# So that `torch.load(weights_only=True)` reads a checkpoint with a callback among its hyperparameters.
torch.serialization.add_safe_globals([FairSampling])


def _data_modules(trainer: L.Trainer) -> tuple[Any, Any]:
    """Return the Trainer's data module, and the one that it wraps; itself if it wraps none."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data, data.wrapped if isinstance(getattr(data, "_default", None), FairSampling) else data


def find_callback(trainer: L.Trainer) -> FairSampling | None:
    """Return the ``FairSampling`` of the Trainer or of its ``FairDataModule``; None if there is none."""
    candidates = [*trainer.callbacks, getattr(trainer.datamodule, "fair", None)]  # type: ignore[attr-defined]
    return next((callback for callback in candidates if isinstance(callback, FairSampling)), None)
