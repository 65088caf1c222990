"""Checks of what the training steps call, and with which classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats
from lightning_fair.control.draw import Draw
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.control.weights import class_weights
from lightning_fair.dataloaders.label_check import LabelCheck
from lightning_fair.dataloaders.label_set_check import LabelSetCheck
from lightning_fair.integration.label_set_correction import LabelSetCorrection
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.step_correction import StepCorrection
from lightning_fair.monitoring.tensorboard_layout import plural
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

if TYPE_CHECKING:
    import lightning.pytorch as L

_MAX_SHOWN = 10  # classes in a message


def warn_of_no_mixin(pl_module: L.LightningModule, settings: FairSettings, *, several_labels: bool) -> None:
    """Warn that a module without the mixin has neither weights nor feedback of its losses, if it should."""
    name, lacks = type(pl_module).__name__, []
    if settings.correction == "weights":
        lacks.append("has no importance weights: its loss stands for the class mix that is drawn")
    if settings.feeds_train_losses:
        lacks.append("feeds no losses back")
    if not lacks:
        return
    nothing = f"correction='none'{', lambda2=0.0' if settings.lambda2 else ''}"
    others = (
        "FairSampling(correction='logits') corrects the outputs of its last linear layer (logits='model.fc' names one) "
        f"and {nothing} corrects nothing."
    )
    rank_zero_warn(
        f"The batches are balanced, but {name} {', and '.join(lacks)}. Inherit from ImportanceWeightedMixin and return "
        'self.weighted_loss(losses), with the losses of reduction="none". If the module stays as it is, '
        + (f"set FairSampling({nothing})." if several_labels else others)
    )


def check_reference(source: DrawSource, settings: FairSettings, names: Sequence[str]) -> None:
    """Refuse a reference that adjusted logits cannot stand for, and warn of one that needs larger weights than allowed.

    Raises:
        ValueError: If a class is drawn, has no share of the reference, and the logits are corrected.
    """
    controller, is_stream = source.controller, source.arriving is not None
    base, moves = controller.objective.base, controller.objective.feedback_to == "objective"
    other = " or 'logits'" * (controller.label_kind is None)
    if settings.correction == "none" and (base is not None or (moves and controller.feeds_train_losses)):
        rank_zero_warn(
            "With correction='none' the loss stands for the mix that is drawn, so reference and "
            f"feedback_to='objective' have no effect. Set correction='weights'{other}, or leave them out."
        )
    elif moves and controller.objective.feedback == "train" and not controller.lambda2:
        rank_zero_warn(
            "feedback_to='objective' has no effect: training losses move the reference by lambda2, which is 0. Set "
            "lambda2=0.25, or feedback='val/recall' or another metric."
        )
    if base is None or (controller.label_kind is not None and not is_stream):  # see `check_sample_weights`
        return
    targets = np.stack([controller.target_at(0.0), controller.target_at(1.0)])
    lacking = (base == 0) & (targets > 0).any(axis=0)
    if settings.correction == "logits" and lacking.any():
        raise ValueError(
            f"With correction='logits' each class that is drawn needs a share of the reference, and "
            f"{_first(lacking, names)} has none. Give it a share or a target of 0, or set correction='weights', which "
            "gives its samples no weight."
        )
    weights = np.max([class_weights(base, q, exponent=settings.exponent) for q in targets], axis=0)
    if settings.correction == "weights" and weights.max() > controller.max_weight * (1.0 + 1e-9):
        largest = weights == weights.max()
        rank_zero_warn(
            f"The reference gives {_first(largest, names)} {weights.max():.4g} times the share of its target, so its "
            f"weights are clipped at max_weight={controller.max_weight:g}, and the loss stands for less of it "
            f"(fair/clipped_mass). Bring target_probs nearer to the reference, set correction='logits', or set "
            f"max_weight={np.ceil(weights.max()):g}."
        )


def check_sample_weights(sampler: FeedbackBatchSampler, exponent: float) -> None:
    """Warn if samples with several labels would need larger weights than allowed, without a deficit."""
    controller = sampler.controller
    if controller.objective.base is None:  # without a deficit, all weights are one
        return
    ends = {tuple(controller.rest_at(progress)) for progress in (0.0, 1.0)}
    weights = max((sampler.weights_at(np.array(rest)) for rest in sorted(ends)), key=np.max) ** exponent
    if weights.max() > controller.max_weight * (1.0 + 1e-9):
        share = np.mean(weights > controller.max_weight)
        rank_zero_warn(
            f"The reference needs weights of up to {weights.max():.4g}, so those of {share:.2%} of the samples are "
            f"clipped at max_weight={controller.max_weight:g}, and the loss stands for less of them "
            f"(fair/clipped_mass). Bring target_probs nearer to the reference, or set max_weight="
            f"{np.ceil(2 * weights.max()):g}."
        )


def _first(which: NDArray[np.bool_], names: Sequence[str]) -> str:
    return f"class {names[int(which.argmax())]}"


class StepChecks:
    """Warns, once of each, of training steps that do not call what their correction needs, or with other classes."""

    def __init__(self) -> None:
        self._has_warned_of_calls = self._has_warned_of_labels = False

    def check_calls(self, step: StepCorrection, sums: Floats) -> None:
        """Warn if a training step did not call what the settings need; ``sums`` are those of ``StepCorrection``."""
        has_losses, has_logits = sums[:2, -1] > 0
        settings, problem = step.settings, None
        if step.adjusts_logits and not has_logits:
            problem = _NO_HOOK.format(name=step.hooked) if step.hooked else _NO_LOGITS
        elif settings.correction == "weights" and not has_losses:
            problem = _NO_WEIGHTS.format(and_feedback=" and is not fed back" if settings.feeds_train_losses else "")
        elif settings.feeds_train_losses and not has_losses:
            problem = _NO_LOSSES
        if problem and not self._has_warned_of_calls:
            self._has_warned_of_calls = True
            rank_zero_warn(problem)

    def check_numbers(self, step: StepCorrection, check: LabelCheck | None, class_names: Sequence[str]) -> None:
        """Check that the class numbers of a batch are those of FairSampling, if that matters."""
        if isinstance(step, LabelSetCorrection) and isinstance(check, LabelSetCheck):
            step.know_columns(check.has_own_columns)
            if check.relation == "renumbered" and step.got_columns and not self._has_warned_of_labels:
                self._has_warned_of_labels = True
                rank_zero_warn(_OTHER_COLUMNS.format(column=check.column, names=", ".join(class_names[:_MAX_SHOWN])))
            return
        if check is None or check.relation not in ("renumbered", "groups"):
            return
        if step.adjusts_logits:
            raise ValueError(_describe_other_outputs(check, step.noun))
        if (
            step.got_labels
            and check.were_numbered
            and check.relation == "renumbered"
            and not self._has_warned_of_labels
        ):
            self._has_warned_of_labels = True
            numbers = ", ".join(f"{name} = {c}" for c, name in enumerate(class_names[:_MAX_SHOWN]))
            rank_zero_warn(
                f"weighted_loss(losses, labels) needs FairSampling's numbers of the {plural(step.noun)} ({numbers}), "
                f"and {check.column} has other numbers. Leave labels out, or pass labels in these numbers."
            )

    def check_counts(self, step: StepCorrection, counts: Floats, draw: Draw, class_names: Sequence[str]) -> None:
        """Warn if the labels that were given to the mixin are as many as were drawn, but of other classes."""
        if self._has_warned_of_labels or counts.sum() != draw.counts.sum():
            return
        other = np.flatnonzero(counts != draw.counts)[:_MAX_SHOWN].tolist()
        if other:
            self._has_warned_of_labels = True
            seen, drawn = ({class_names[c]: int(each[c]) for c in other} for each in (counts, draw.counts))
            method = "adjusted_logits(logits, labels)" if step.sums_cross_entropy else "weighted_loss(losses, labels)"
            rank_zero_warn(
                f"{method} got samples of other {plural(step.noun)} than were drawn: {seen}, but {drawn} were drawn, "
                "so their weights and losses are those of other samples. Leave labels out, or pass the "
                f"{plural(step.noun)} that FairSampling balances, in its numbers."
            )


_OTHER_COLUMNS = (
    "{column} has the labels in another order than FairSampling ({names}), so it is not known which label each column "
    "of the losses belongs to: the mean loss of a sample counts for each of its labels. Pass the labels as the batches "
    "have them, for example FairSampling(labels='scan'), or losses and labels in this order."
)
_NO_WEIGHTS = (
    "training_step did not call self.weighted_loss(losses), so its loss has no importance weights{and_feedback}. "
    "Return self.weighted_loss(losses), or set FairSampling(correction='none', lambda2=0.0)."
)
_NO_LOSSES = (
    "training_step did not call self.weighted_loss(losses), so no losses are fed back. Return "
    "self.weighted_loss(losses), or set FairSampling(lambda2=0.0)."
)
_NO_LOGITS = (
    "training_step did not call self.adjusted_logits(logits), so its loss is not corrected: it stands for the class "
    "mix that is drawn. Compute the loss of self.adjusted_logits(logits), or name the submodule whose output are the "
    "logits: FairSampling(logits='model.fc'), or set FairSampling(correction='none')."
)
_NO_HOOK = (
    "training_step did not call {name} with gradients, so its loss is not corrected: it stands for the class mix that "
    "is drawn. Name the submodule that the training step calls and whose output are the logits, "
    "FairSampling(logits=...), or set FairSampling(correction='none')."
)


def _describe_other_outputs(check: LabelCheck, noun: str) -> str:
    if check.relation == "renumbered":
        return (
            "correction='logits' adds the offset of class c to output c, so the batches must have FairSampling's class "
            f"numbers, and {check.column} has others. Pass the numbers of the batches, for example "
            "FairSampling(labels='scan'), or set correction='weights'."
        )
    return (
        f"correction='logits' adds the offset of {noun} c to output c, so the outputs of the module must be the "
        f"{plural(noun)} that FairSampling balances, and {check.column} merges these. Balance the classes of "
        f"{check.column}, or set correction='weights'."
    )
