"""Warnings of losses that do not fit fair batches, for example with class weights or of samples that mix classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss

from lightning_fair.integration.loss_terms import LossTerm, find_terms
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.step_correction import StepCorrection, copy_to_host

if TYPE_CHECKING:
    import lightning.pytorch as L

_LOOKS_PER_EPOCH = 8  # a module may mix only some batches, or only from some epoch on


class LossCheck:
    """Looks at the graph of the loss in the first steps of each epoch, and warns once of each problem.

    It reads what autograd has saved for the backward pass, so it changes no result, compiles nothing, and costs nothing
    in the other steps. The answers of one look are read at the next, so that no step waits for the device. It sees
    nothing inside a compiled or checkpointed function.

    =================================  ===========================================================================
    loss                               is wrong
    =================================  ===========================================================================
    with class weights                 unless the loss stands for the prior
    of mixed samples                   if weights vary with the class, or training losses are fed back
    a sigmoid or a hinge of each class with ``correction="logits"``, which is for a softmax over the classes
    of logits that are scaled          with ``correction="logits"``, if the offsets are scaled too
    of other logits                    with ``correction="logits"``, if the adjusted ones are no logits of the loss
    of other targets                   with ``correction="logits"``, whose offsets are those of the balanced classes
    of smoothed labels                 with ``correction="logits"``, which moves the uniform part too
    =================================  ===========================================================================

    Args:
        settings: Decide which losses are wrong.
        pl_module: A module with class weights in one of its losses gives a warning at once.
    """

    def __init__(self, settings: FairSettings, pl_module: L.LightningModule) -> None:
        has_mixin, has_logits = hasattr(pl_module, "weighted_loss"), settings.correction == "logits"
        has_weights = has_mixin and settings.correction == "weights" and settings.exponent > 0
        follows_target = not (has_weights or has_logits) or _is_named(settings.reference, "target")
        objective = settings.target_probs if follows_target else settings.reference
        self._prior = "target_probs='prior'" if follows_target else "reference='prior'"
        self._remedies = [_NO_WEIGHTS] * (has_weights and _can_vary(settings))
        self._remedies += [_NO_FEEDBACK] * (settings.feeds_train_losses and (has_mixin or has_logits))
        self._unused = ["reference='target'"] * (not _is_named(settings.reference, "target"))  # without correction
        self._unused += ["feedback_to='draw'"] * (settings.feeds_train_losses and settings.feedback_to == "objective")
        self._searches: dict[_Search, bool] = {
            _have_class_weights: not _is_named(objective, "prior") and not self._warn_of_weighted_modules(pl_module),
            _are_mixed: bool(self._remedies),
            _are_of_each_class: has_logits,
            _are_scaled: has_logits,
            _are_of_other_logits: has_logits,
            _are_of_other_targets: has_logits,
            _are_smoothed: has_logits and (_can_vary(settings) or settings.feeds_train_losses),
        }
        self._warnings: dict[_Search, Callable[[], None]] = {
            _have_class_weights: partial(self._warn_of_class_weights, "The loss function"),
            _are_mixed: self._warn_of_mixtures,
            _are_of_each_class: _warn_of_each_class,
            _are_scaled: _warn_of_scale,
            _are_of_other_logits: self._warn_of_other_logits,
            _are_of_other_targets: _warn_of_other_targets,
            _are_smoothed: _warn_of_smoothing,
        }
        self._hooked: str | None = None
        self._looks_left = _LOOKS_PER_EPOCH
        self._answers: Callable[[], Tensor] | None = None  # of the last look, in the order of the searches

    @torch.no_grad()
    def look(self, loss: Tensor, labels: Tensor, num_classes: int | None, step: StepCorrection | None = None) -> None:
        """Look at a loss before its backward pass.

        Args:
            loss: The loss, with its graph.
            labels: Class of each sample of the batch, shape ``(batch,)``, or whether it has each class, ``(batch, K)``.
            num_classes: Number of classes. None: the targets have other numbers, as of groups, and are not compared.
                It does not matter for labels of shape ``(batch, K)``.
            step: Correction of the step, which knows the adjusted logits.
        """
        if not self._looks_left:
            return
        self._warn_of_answers()
        self._looks_left -= 1
        if not any(self._searches.values()):
            return
        nodes = () if step is None else step.nodes
        self._hooked = None if step is None else step.hooked
        near = (term for term in find_terms(loss, nodes) if term.target.device == loss.device)
        terms = [term for term in near if term.is_for(labels, num_classes)]
        if terms:
            y = None if num_classes is None and labels.ndim == 1 else labels.to(loss.device, non_blocking=True)
            self._answers = copy_to_host(torch.stack([search(terms, y) for search in self._searches]))

    def end_epoch(self) -> None:
        """Read what is left, and look again in the next epoch."""
        self._warn_of_answers()
        self._looks_left = _LOOKS_PER_EPOCH

    def _warn_of_answers(self) -> None:
        if self._answers is None:
            return
        answers, self._answers = self._answers().tolist(), None
        for search, answer in zip(list(self._searches), answers, strict=True):
            if self._searches[search] and answer:
                self._searches[search] = False
                self._warnings[search]()

    def _warn_of_weighted_modules(self, pl_module: L.LightningModule) -> bool:
        for name, module in pl_module.named_modules():
            if isinstance(module, (_WeightedLoss, torch.nn.BCEWithLogitsLoss)):
                weights = (getattr(module, name, None) for name in ("weight", "pos_weight"))
                weight, positive = (None if each is None or each.is_meta else each for each in weights)
                if (weight is not None and _is_uneven(weight)) or (positive is not None and (positive != 1).any()):
                    of_each = isinstance(module, torch.nn.BCEWithLogitsLoss)
                    self._warn_of_class_weights(name or type(module).__name__, of_each_class=of_each)
                    return True
        return False

    def _warn_of_class_weights(self, name: str, *, of_each_class: bool = False) -> None:
        rank_zero_warn(
            f"{name} has class weights, and FairSampling balances the classes: together they correct twice. Remove the "
            f"weights, or set {self._prior}." + ("" if of_each_class else _SCALE)
        )

    def _warn_of_mixtures(self) -> None:
        wrong = " and ".join(_MIXED[remedy] for remedy in self._remedies)
        has_weights = self._remedies[0] == _NO_WEIGHTS
        settings = self._remedies + (self._unused if has_weights else [])
        other = ", or with correction='logits'" if has_weights else ""
        rank_zero_warn(
            f"The loss is that of mixed samples (MixUp, CutMix, soft labels), but each sample {wrong} of the class "
            f"that it was drawn for. Mix only with FairSampling({', '.join(settings)}){other}."
        )

    def _warn_of_other_logits(self) -> None:
        output, remedy = "The tensor that self.adjusted_logits returned", "Compute the loss of that tensor"
        if self._hooked is not None:
            output = f"The output of {self._hooked}"
            remedy = "Let FairSampling(logits=...) name the submodule whose output are the logits of the loss"
        rank_zero_warn(
            f"{output} got the offsets of correction='logits', but the loss is not a softmax of these logits: other "
            "layers follow, such as a linear layer or a normalization, or the loss has logits of its own. So it is not "
            f"corrected as it should be. {remedy}, or set correction='weights'."
        )


_SCALE = (
    " The weights also change the scale of a cross entropy with reduction='none', because only 'mean' divides by their "
    "sum: if they stay, divide them by their mean over the samples."
)
_NO_WEIGHTS, _NO_FEEDBACK = "correction='none'", "lambda2=0.0"
_MIXED = {_NO_WEIGHTS: "has the importance weight", _NO_FEEDBACK: "counts in the loss feedback"}


def _is_named(mix: Any, name: str) -> bool:
    return isinstance(mix, str) and mix == name


def _can_vary(settings: FairSettings) -> bool:
    """Return whether the weights of the classes can be far from one."""
    if settings.feedback_to == "objective" and (settings.feedback != "train" or settings.lambda2 > 0):
        return True
    return not _is_named(settings.reference, "target") and not np.array_equal(
        settings.reference,  # type: ignore[arg-type]
        settings.target_probs,  # type: ignore[arg-type]
    )


def _warn_of_each_class() -> None:
    rank_zero_warn(
        "The loss is a sigmoid or a hinge loss of each class, but correction='logits' is for the cross entropy of a "
        "softmax over the classes, or of one logit if there are two classes. Set correction='weights', or change the "
        "loss."
    )


def _is_uneven(weight: Tensor) -> Tensor:
    return (weight != weight.flatten()[0]).any()


def _warn_of_scale() -> None:
    rank_zero_warn(
        "The logits are multiplied or divided after their offsets were added, for example by the scale of a cosine "
        "classifier or a temperature, and so are the offsets. Let FairSampling(logits=...) name a submodule whose "
        "output is scaled already, or call self.adjusted_logits(logits) of the scaled logits."
    )


def _warn_of_other_targets() -> None:
    rank_zero_warn(
        "The targets of the loss are not the labels that FairSampling balances, but correction='logits' adds the "
        "offset of the balanced class c to output c. Balance the targets of the loss, for example with "
        "FairSampling(labels=1) if they are batch[1], or set correction='weights'."
    )


def _warn_of_smoothing() -> None:
    rank_zero_warn(
        "The labels are smoothed toward uniform, and correction='logits' moves the uniform part too: in the softmax of "
        "the trained model the part of each class is multiplied by reference / p, so that rarely drawn classes win "
        "where they should not. Leave out the label smoothing, or set correction='weights'."
    )


_Search: TypeAlias = "Callable[[list[LossTerm], Tensor | None], Tensor]"


def _have_class_weights(terms: list[LossTerm], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in terms:
        if term.weight is not None:
            answer = answer | (_is_uneven(term.weight) & term.equals(labels))
        if term.pos_weight is not None:
            answer = answer | ((term.pos_weight != 1).any() & term.equals(labels))
    return answer


def _are_mixed(terms: list[LossTerm], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    has_sets = labels is not None and labels.ndim == 2
    for term in (term for term in terms if term.target.is_floating_point()):
        is_mixed = term.is_soft(labels)
        for other in terms:
            if other.scores is term.scores and (has_sets or not other.target.is_floating_point()):
                is_mixed = is_mixed & ~other.equals(labels)  # distillation: each sample is of one class
        answer = answer | is_mixed
    of_labels = [term for term in terms if not term.is_uniform]
    for one, other in combinations(of_labels, 2):  # lam * loss(scores, y_a) + (1 - lam) * loss(scores, y_b)
        a, b = one.target, other.target
        if one.scores is other.scores and a.shape == b.shape:
            differ = ((a != b) & (a >= 0) & (b >= 0)).any()
            if has_sets:  # beside probabilities this is a distillation
                differ = differ & ~one.is_soft(labels) & ~other.is_soft(labels)
            answer = answer | (differ & (one.equals(labels) | other.equals(labels)))
    return answer


def _are_of_other_logits(terms: list[LossTerm], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    if not any(term.is_adjusted is not False for term in terms):
        for term in (term for term in terms if not term.of_each_class):
            answer = answer | term.equals(labels)
            if term.target.is_floating_point():
                answer = answer | term.is_soft(labels)
    return answer


def _are_of_other_targets(terms: list[LossTerm], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    adjusted = [term for term in terms if term.is_adjusted and not (term.of_each_class or term.is_uniform)]
    if labels is None or not adjusted:
        return answer
    return torch.stack([term.has_other_counts(labels) for term in adjusted]).all()


def _are_smoothed(terms: list[LossTerm], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in (term for term in terms if term.target.is_floating_point() and not term.of_each_class):
        answer = answer | (term.is_smoothed() & (term.equals(labels) | (term.target.numel() > len(term.target))))
    return answer


def _are_of_each_class(terms: list[LossTerm], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in (term for term in terms if term.of_each_class):
        answer = answer | term.equals(labels)
    return answer


def _are_scaled(terms: list[LossTerm], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in (term for term in terms if term.is_scaled and not term.target.is_floating_point()):
        answer = answer | term.equals(labels)  # a distillation to probabilities has a temperature
    return answer
