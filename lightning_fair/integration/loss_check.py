"""Warnings of losses that do not fit fair batches: with class weights, or of samples that mix classes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss

from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.step_correction import copy_to_host

if TYPE_CHECKING:
    import lightning.pytorch as L

_LOOKS_PER_EPOCH = 8  # a module may mix only some batches, or only from some epoch on
_MAX_NODES = 1000  # of the graph, from the loss on; losses are near its root
_LOSSES = (
    "NllLossBackward",
    "MultiMarginLossBackward",
    "BinaryCrossEntropyBackward",
    "BinaryCrossEntropyWithLogitsBackward",
)


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
        self._searches: dict[_Search, bool] = {
            _have_class_weights: not _is_named(objective, "prior") and not self._warn_of_weighted_modules(pl_module),
            _are_mixed: bool(self._remedies),
            _are_of_each_class: has_logits,
            _are_scaled: has_logits,
        }
        self._warnings: dict[_Search, Callable[[], None]] = {
            _have_class_weights: partial(self._warn_of_class_weights, "The loss function"),
            _are_mixed: self._warn_of_mixtures,
            _are_of_each_class: _warn_of_each_class,
            _are_scaled: _warn_of_scale,
        }
        self._looks_left = _LOOKS_PER_EPOCH
        self._answers: Callable[[], Tensor] | None = None  # of the last look, in the order of the searches

    @torch.no_grad()
    def look(self, loss: Tensor, labels: Tensor, num_classes: int | None) -> None:
        """Look at a loss before its backward pass.

        Args:
            loss: The loss, with its graph.
            labels: Class of each sample of the batch, shape ``(batch,)``.
            num_classes: Number of classes. None: the targets have other numbers, as of groups, and are not compared.
        """
        if not self._looks_left:
            return
        self._warn_of_answers()
        self._looks_left -= 1
        if not any(self._searches.values()):
            return
        near = (term for term in _terms(loss) if term.target.device == loss.device)
        terms = [term for term in near if term.is_for(labels, num_classes)]
        if terms:
            y = None if num_classes is None else labels.to(loss.device, non_blocking=True)
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
                weight, positive = getattr(module, "weight", None), getattr(module, "pos_weight", None)
                if (weight is not None and _is_uneven(weight)) or (positive is not None and (positive != 1).any()):
                    self._warn_of_class_weights(name or type(module).__name__)
                    return True
        return False

    def _warn_of_class_weights(self, name: str) -> None:
        rank_zero_warn(
            f"{name} has class weights, and FairSampling balances the classes: together they correct twice. Remove the "
            f"weights, or set {self._prior}. The weights also change the scale of a cross entropy with "
            "reduction='none', because only 'mean' divides by their sum: if they stay, divide them by their mean over "
            "the samples."
        )

    def _warn_of_mixtures(self) -> None:
        wrong = " and ".join(_MIXED[remedy] for remedy in self._remedies)
        other = ", or with correction='logits'" if self._remedies[0] == _NO_WEIGHTS else ""
        rank_zero_warn(
            f"The loss is that of mixed samples (MixUp, CutMix, soft labels), but each sample {wrong} of the class "
            f"that it was drawn for. Mix only with FairSampling({', '.join(self._remedies)}){other}."
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


_Search: TypeAlias = "Callable[[list[_Term], Tensor | None], Tensor]"


class _Term(NamedTuple):
    """A loss in the graph: of class numbers, shape ``(batch,)``, or probabilities, ``(batch,)`` or ``(batch, C)``."""

    target: Tensor
    weight: Tensor | None  # of each class
    pos_weight: Tensor | None
    of_each_class: bool  # whether it is a sum over the classes, and not of a softmax
    is_scaled: bool  # whether offsets that were added to the scores are multiplied
    scores: Any  # the node of the network's outputs that the loss is a function of

    def is_for(self, labels: Tensor, num_classes: int | None) -> bool:
        """Return whether the target may be the classes of the batch."""
        target, batch = self.target, labels.numel()
        if type(target) is not Tensor or not target.ndim or target.shape[0] != batch or not batch:
            return False  # a subclass may be a part of a tensor on several devices
        if not target.is_floating_point():
            is_weight = self.weight is None or num_classes is None or self.weight.numel() >= num_classes
            return target.ndim == 1 and is_weight
        columns = target.numel() // batch
        return target.ndim <= 2 and (num_classes in (None, columns) or (columns == 1 and num_classes == 2))

    def equals(self, labels: Tensor | None) -> Tensor:
        """Return whether the target is the labels, for the samples that have one; true for groups."""
        target = self.target
        if labels is None:
            return torch.ones((), dtype=torch.bool, device=target.device)
        if target.is_floating_point():
            target = target.abs()
            target = target.argmax(1) if target.numel() > len(target) else target.flatten().round()
        return ((target == labels) | (target < 0)).all()

    def is_soft(self) -> Tensor:
        """Return whether the target is probabilities with a third value; a smoothed label has two."""
        target = self.target.abs().float()
        least, most = target.aminmax()
        third = ((target > least + 1e-3) & (target < most - 1e-3)).any()
        sums_to_one = target.numel() == len(target) or ((target.sum(1) - 1.0).abs() < 0.02).all()
        return third & sums_to_one


def _have_class_weights(terms: list[_Term], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in terms:
        if term.weight is not None:
            answer = answer | (_is_uneven(term.weight) & term.equals(labels))
        if term.pos_weight is not None:
            answer = answer | ((term.pos_weight != 1).any() & term.equals(labels))
    return answer


def _are_mixed(terms: list[_Term], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in (term for term in terms if term.target.is_floating_point()):
        is_mixed = term.is_soft()
        for other in terms:
            if other.scores is term.scores and not other.target.is_floating_point():
                is_mixed = is_mixed & ~other.equals(labels)  # distillation: each sample is of one class
        answer = answer | is_mixed
    for one, other in combinations(terms, 2):  # lam * loss(scores, y_a) + (1 - lam) * loss(scores, y_b)
        a, b = one.target, other.target
        if one.scores is other.scores and a.shape == b.shape:
            differ = ((a != b) & (a >= 0) & (b >= 0)).any()
            answer = answer | (differ & (one.equals(labels) | other.equals(labels)))
    return answer


def _are_of_each_class(terms: list[_Term], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in (term for term in terms if term.of_each_class):
        answer = answer | term.equals(labels)
    return answer


def _are_scaled(terms: list[_Term], labels: Tensor | None) -> Tensor:
    answer = torch.zeros((), dtype=torch.bool, device=terms[0].target.device)
    for term in (term for term in terms if term.is_scaled and not term.target.is_floating_point()):
        answer = answer | term.equals(labels)  # a distillation to probabilities has a temperature
    return answer


def _terms(loss: Tensor) -> Iterator[_Term]:
    """Find the losses of classes in the graph."""
    queue, seen = deque[Any]([loss.grad_fn] if loss.grad_fn is not None else []), set[Any]()
    while queue and len(seen) < _MAX_NODES:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        with suppress(AttributeError, RuntimeError):  # another version of torch; a part of the graph that is freed
            if (term := _to_term(node)) is not None:
                yield term
                continue
        queue.extend(_inputs(node))


def _to_term(node: Any) -> _Term | None:
    name = _name(node)
    if name in _LOSSES:
        target, weight = _saved(node, "target"), _saved(node, "weight")
        if target.is_floating_point() and weight is not None and weight.shape == target.shape and weight.stride(0):
            weight = None  # of each sample
        of_each_class = name == "MultiMarginLossBackward" or ("Binary" in name and target.numel() > len(target))
        pos_weight = _saved(node, "pos_weight") if hasattr(node, "_raw_saved_pos_weight") else None
        return _Term(target, weight, pos_weight, of_each_class, _is_scaled(node), _scores(node))
    # The cross entropy of probabilities is a sum of target * log_softmax(scores), and may be multiplied by weights.
    # Names are compared before saved values are read, because checkpointed layers compute them anew.
    path = [name, *_names_below(node, 2)]
    if path[:2] == ["MulBackward", "LogSoftmaxBackward"] and (target := _factor(node)) is not None:
        return _Term(target, None, None, False, _is_scaled(_inputs(node)[0]), _scores(node))
    if path == ["MulBackward", "MulBackward", "LogSoftmaxBackward"]:
        inner = _inputs(node)[0]
        weight, target = _factor(node), _factor(inner)
        if weight is not None and target is not None and weight.numel() == target.shape[-1]:
            return _Term(target, weight, None, False, _is_scaled(_inputs(inner)[0]), _scores(inner))
    return None


def _name(node: Any) -> str:
    return str(node.name()).rstrip("0123456789")


def _names_below(node: Any, depth: int) -> list[str]:
    """Return the names of the first input of a node, of the first input of that, and so on."""
    names: list[str] = []
    while len(names) < depth and (inputs := _inputs(node)):
        node = inputs[0]
        names.append(_name(node))
    return names


def _saved(node: Any, name: str) -> Any:
    """Return a tensor that a node has saved for the backward pass."""
    if getattr(getattr(node, f"_raw_saved_{name}"), "unpack_hook", None) is not None:
        raise RuntimeError("Reading it would call a hook, for example compute a checkpointed layer again.")
    return getattr(node, f"_saved_{name}")


def _factor(node: Any) -> Tensor | None:
    """Return the constant that a multiplication multiplies by; None if it is a number, or neither is constant."""
    constants = [value for value in (_saved(node, "self"), _saved(node, "other")) if isinstance(value, Tensor)]
    return constants[0] if len(constants) == 1 and constants[0].ndim else None


def _scores(node: Any) -> Any:
    """Return the node of a loss's scores, before the log softmax, a temperature and conversions."""
    while len(inputs := _inputs(node)) == 1:
        node = inputs[0]
        if not node.name().startswith(("LogSoftmax", "Mul", "Div", "ToCopy", "Squeeze", "View")):
            break
    return node


_PASSED = ("LogSoftmax", "ToCopy", "Squeeze", "Unsqueeze", "View", "Reshape", "Slice", "Select", "Index", "Transpose")


def _is_scaled(node: Any, *, scale: bool = False) -> bool:
    """Return whether a constant was added to the scores of a loss, and the sum was multiplied or divided."""
    inputs, name = _inputs(node), _name(node)
    if name == "AddBackward" and len(inputs) == 1:
        return scale
    if name in ("MulBackward", "DivBackward"):
        return any(_is_scaled(each, scale=True) for each in inputs)
    is_passed = name in _LOSSES or name.startswith(_PASSED)
    return is_passed and any(_is_scaled(each, scale=scale) for each in inputs)


def _inputs(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions if following is not None]
