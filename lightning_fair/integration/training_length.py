"""The length of a training, and what follows from it: ``target_probs="auto"``, ``"deferred"``, repeats of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import ArrayLike

from lightning_fair.common.arrays import Floats
from lightning_fair.common.class_mix import TRAINING_TARGETS
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.control.label_draws import RestingDraw
from lightning_fair.control.target_values import AutoTarget, Target, auto_exponent, expected_repeats, resolve_target
from lightning_fair.monitoring.tensorboard_layout import plural
from lightning_fair.schedules import Shift, Step

if TYPE_CHECKING:
    import lightning.pytorch as L

    from lightning_fair.integration.run import Run
    from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

_TOO_OFTEN = 200  # draws of a sample in a training; from there on, networks learned their rare samples by heart
_UNKNOWN = "the length of the training is not known"


@dataclass(frozen=True)
class TrainingLength:
    """How long a Trainer trains, as its arguments say before a fit. Lightning's finders change them while they search.

    Attributes:
        max_epochs, max_steps: As in the Trainer, -1 for no limit.
        limit_train_batches: Batches of an epoch if it is an int, else a fraction of them.
        batches_per_step: Batches of an optimizer step; None if it is not known.
    """

    max_epochs: int = -1
    max_steps: int = -1
    limit_train_batches: float = 1.0
    batches_per_step: int | None = 1

    @classmethod
    def of(cls, trainer: L.Trainer, pl_module: L.LightningModule) -> TrainingLength:
        """Return the length of the training that begins."""
        epochs, limit = trainer.max_epochs, trainer.limit_train_batches
        # A module that steps by itself, and a schedule of accumulation, have any number of batches in a step.
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        is_scheduled = any(getattr(x, "going_to_accumulate_grad_batches", bool)() for x in callbacks)
        is_known = pl_module.automatic_optimization and not is_scheduled
        batches_per_step = trainer.accumulate_grad_batches if is_known else None
        return cls(-1 if epochs is None else epochs, trainer.max_steps, limit, batches_per_step)

    def batches(self, epoch_batches: int | None) -> int | None:
        """Return the batches of the whole training, given those of an epoch; None if their number is not known."""
        lengths = []
        if epoch_batches is not None:
            limit = self.limit_train_batches
            epoch_batches = min(epoch_batches, limit) if isinstance(limit, int) else int(epoch_batches * limit)
        if self.max_epochs >= 0:
            lengths.append(None if epoch_batches is None else self.max_epochs * epoch_batches)
        if self.max_steps >= 0:
            lengths.append(self._batches_of_steps(epoch_batches))
        known = [length for length in lengths if length is not None]
        return min(known) if known and len(known) == len(lengths) else None

    def _batches_of_steps(self, epoch_batches: int | None) -> int | None:
        if self.batches_per_step is None:
            return None
        if not epoch_batches:
            return self.max_steps * self.batches_per_step
        # The last step of an epoch has the batches that are left.
        epochs, steps = divmod(self.max_steps, -(-epoch_batches // self.batches_per_step))
        return epochs * epoch_batches + steps * self.batches_per_step


def resolve_target_name(
    target: Target | Shift,
    class_counts: ArrayLike,
    num_batches: int | None,
    batch_size: int,
    max_repeats: float,
    label_sets: LabelSets | None = None,
) -> Target | Shift:
    """Return the target that ``"auto"`` or ``"deferred"`` is for one training; any other ``target`` as it is.

    Args:
        target: The setting ``target_probs``.
        class_counts: Samples of each class, shape ``(K,)``.
        num_batches: Batches of the whole training; None if their number is not known.
        batch_size: Samples of a batch over all ranks.
        max_repeats: See :func:`~lightning_fair.control.target_values.auto_exponent`.
        label_sets: The labels of the data, if samples have several.

    Raises:
        ValueError: If the target is ``"deferred"`` and the number of batches is not known.
    """
    if not is_named(target):
        return target
    if target == "auto":
        if num_batches is None:
            return AutoTarget(0.5)
        num_samples = num_batches * batch_size
        exponent = auto_exponent(class_counts, num_samples, max_repeats)
        if label_sets is None:
            return AutoTarget(exponent)
        pairs = label_sets.cooccurrence()
        for _ in range(3):  # how many labels a drawn sample has depends on the target
            mix = resolve_target(AutoTarget(exponent), label_sets.num_classes, class_counts)
            num_labels = num_samples * RestingDraw(mix, pairs, tolerance=1e-3, max_steps=200).labels_per_draw
            exponent = auto_exponent(class_counts, num_labels, max_repeats)
        return AutoTarget(exponent)
    if num_batches is None:
        raise ValueError(
            f"target_probs='deferred' is balanced in the last fifth of the training, and {_UNKNOWN}. Set max_epochs or "
            "max_steps of the Trainer: max_steps alone if it has several training loaders, max_epochs alone with "
            "manual optimization or GradientAccumulationScheduler. Or choose the batch: "
            "target_probs=Shift(Step(0.0, 1.0, at=1000))."
        )
    return Shift(Step(0.0, 1.0, at=_begin_balance(num_batches)))


def is_named(target: Target | Shift) -> bool:
    """Return whether the target depends on the training: whether it is ``"auto"`` or ``"deferred"``."""
    return isinstance(target, str) and target in TRAINING_TARGETS


def is_auto(target: Target | Shift) -> bool:
    """Return whether the target is ``"auto"``."""
    return isinstance(target, str) and target == "auto"


def _begin_balance(num_batches: int) -> int:
    """Return the batch, from 0, from which ``"deferred"`` is balanced: at the latest the last."""
    return max(min(round(0.8 * num_batches), num_batches - 1), 0)


def describe_target(
    target: Target | Shift, source: DrawSource, num_batches: int | None, made_for: int | None = None
) -> str:
    """Return what the setting ``target`` has become, for the log; empty if it is what it says.

    Args:
        target: The setting ``target_probs``.
        source: What draws by it.
        num_batches: Batches of the whole training; None if their number is not known.
        made_for: The same of the training that the target was made for; another number if a later fit goes on.
    """
    if not is_named(target):
        return ""
    if source.arriving is not None:
        return 'target_probs="auto" is "uniform", because the class counts of a stream are not known'
    if target == "deferred":
        return f"the target moves from the prior to uniform at batch {_begin_balance(made_for or 0)} of {num_batches}"
    # Not the exponent for this length, if the training goes on from a shorter one.
    exponent = source.controller.state_dict()["target"]["exponent"]
    name = {0.0: ' ("uniform")', 0.5: ' ("sqrt")', 1.0: ' ("prior")'}.get(exponent, "")
    power = f'target_probs="auto" is prior ** {exponent:.3g}{name}'
    if num_batches is None:
        return f"{power}, because {_UNKNOWN}" if exponent == 0.5 else power
    num_labels = num_batches * source.global_batch_size * source.controller.labels_per_draw
    repeats = expected_repeats(source.controller.q, source.class_counts, num_labels)
    return f"{power}, which draws a sample of the rarest class about {repeats.max():.3g} times in {num_batches} batches"


def announce(run: Run) -> None:
    """Print what is balanced, and how; at the start of a training, warn if its target repeats samples too often."""
    source, sampler, tracker, setting = run.source, run.sampler, run.tracker, run.settings.target_probs
    assert source is not None
    controller, place = source.controller, None if sampler is None else sampler.label_place
    num_batches = None if sampler is None else run.count_batches(sampler.steps_per_epoch)
    has_own_target = tracker is not None and tracker.stream.brings_controller
    target = "" if has_own_target else describe_target(setting, source, num_batches, run.total_batches)
    rank_zero_info(
        f"FairSampling steers {controller.num_classes} {plural(run.noun)}"
        f"{f' (labels: {place})' if place else ''} in batches of {source.batch_size}; "
        f"horizon {controller.horizon:g} batches, feedback delay {controller.feedback_delay}"
        f"{'; ' if target else ''}{target}{_describe_undrawn(run)}."
    )
    if sampler is not None and num_batches is not None and not controller.draws and not is_auto(setting):
        _warn_of_repeats(run, sampler, num_batches)


def _describe_undrawn(run: Run) -> str:
    """Return which classes of the data are never drawn, for the log; empty if all are."""
    assert run.source is not None
    undrawn = np.flatnonzero(~run.source.controller.wanted & (run.source.class_counts > 0))
    names = ", ".join(run.class_names[c] for c in undrawn[:5].tolist())
    return f"; never drawn, because the target is 0: {names}{', ...' * (undrawn.size > 5)}" if undrawn.size else ""


def _warn_of_repeats(run: Run, sampler: FeedbackBatchSampler, num_batches: int) -> None:
    """Warn of a target that repeats samples more than 200 times, and at least twice as often as "auto" would."""
    counts = sampler.class_counts
    num_samples = num_batches * sampler.global_batch_size * sampler.controller.labels_per_draw  # for each label
    exponents = {"auto": auto_exponent(counts, num_samples, run.settings.max_repeats), "sqrt": 0.5}
    mixes = {name: resolve_target(AutoTarget(t), counts.size, counts) for name, t in exponents.items()}
    others = {name: expected_repeats(mix, counts, num_samples).max() for name, mix in mixes.items()}
    mean = _mean_target(run.settings.target_probs, sampler, num_batches)
    repeats = expected_repeats(mean, counts, num_samples)
    most, label = repeats.max(), int(repeats.argmax())
    if most > max(_TOO_OFTEN, 2 * others["auto"]):
        remedies = [f"target_probs={name!r} ({n:.0f} times)" for name, n in others.items() if 2 * n < most]
        rank_zero_warn(
            f"The samples of {run.noun} {run.class_names[label]} ({counts[label]}) are expected {most:.0f} times each "
            f"in the {num_batches} batches of this training, more than {_TOO_OFTEN}, so the model may learn them by "
            f"heart. Set {' or '.join(remedies)}, or train for fewer batches."
        )


def _mean_target(target: Target | Shift, sampler: FeedbackBatchSampler, num_batches: int) -> Floats:
    """Return the mean target over the training."""
    resolved = resolve_target_name(target, sampler.class_counts, num_batches, sampler.global_batch_size, 1)
    if not isinstance(resolved, Shift):
        return sampler.controller.q
    steps = np.linspace(0, num_batches - 1, min(num_batches, 256)).astype(int).tolist()
    progress = [resolved.progress.value_at(step, step // sampler.steps_per_epoch, "progress") for step in steps]
    return sampler.controller.target_at(float(np.mean(progress)))
