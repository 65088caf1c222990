"""The losses of classes in the graph that autograd has recorded of a loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MAX_NODES = 1000  # of the graph, from the loss on; losses are near its root
_LOSSES = (
    "NllLossBackward",
    "MultiMarginLossBackward",
    "BinaryCrossEntropyBackward",
    "BinaryCrossEntropyWithLogitsBackward",
)


class LossTerm(NamedTuple):
    """A loss in the graph: of class numbers, shape ``(batch,)``, or probabilities, ``(batch,)`` or ``(batch, C)``."""

    target: Tensor
    weight: Tensor | None  # of each class
    pos_weight: Tensor | None
    of_each_class: bool  # whether it is a sum over the classes, and not of a softmax
    is_scaled: bool  # whether offsets that were added to the scores are multiplied
    scores: Any  # the node of the network's outputs that the loss is a function of
    is_uniform: bool = False  # whether it is the mean of the log softmax over the classes, a target of 1 / C
    is_adjusted: bool | None = None  # whether the scores are adjusted logits; None if these are not known

    def is_for(self, labels: Tensor, num_classes: int | None) -> bool:
        """Return whether the target may be the classes of the batch."""
        target, batch = self.target, len(labels)
        if type(target) is not Tensor or not target.ndim or target.shape[0] != batch or not batch:
            return False  # a subclass may be a part of a tensor on several devices
        if labels.ndim == 2:  # the last class can be that of samples without a label, which has no score
            is_sets = target.ndim == 2 and 0 <= labels.shape[1] - target.shape[1] <= 1
            return is_sets and target.is_floating_point()
        if not target.is_floating_point():
            is_weight = self.weight is None or num_classes is None or self.weight.numel() >= num_classes
            return target.ndim == 1 and is_weight
        columns = target.numel() // batch
        return target.ndim <= 2 and (num_classes in (None, columns) or (columns == 1 and num_classes == 2))

    def classes(self) -> Tensor:
        """Return the class numbers of the target, or the classes of the largest probabilities, shape ``(batch,)``."""
        target = self.target
        if target.is_floating_point():
            target = target.abs()
            target = target.argmax(1) if target.numel() > len(target) else target.flatten().round()
        return target

    def equals(self, labels: Tensor | None) -> Tensor:
        """Return whether the target is the labels, for the samples that have one; true for groups."""
        if labels is not None and labels.ndim == 2:
            return ((self.target > self.target.amin()) == labels[:, : self.target.shape[1]]).all()
        classes = self.classes()
        if labels is None:
            return torch.ones((), dtype=torch.bool, device=classes.device)
        return ((classes == labels) | (classes < 0)).all()

    def has_other_counts(self, labels: Tensor) -> Tensor:
        """Return whether the target has each class another number of times than the labels, and each sample one."""
        classes = self.classes()
        differ = (classes.sort().values != labels.sort().values).any() & (classes >= 0).all()
        return differ & ~self.is_soft(labels) if self.target.is_floating_point() else differ

    def is_soft(self, labels: Tensor | None) -> Tensor:
        """Return whether the target is probabilities with a third value; a smoothed label has two.

        The probabilities of several labels of a sample have any sum, and are not soft if they are positive just there.
        """
        target = self.target.abs().float()
        least, most = target.aminmax()
        third = ((target > least + 1e-3) & (target < most - 1e-3)).any()
        is_sets = labels is not None and labels.ndim == 2
        return third & (~self.equals(labels) if is_sets else _sum_to_one(target))

    def is_smoothed(self) -> Tensor:
        """Return whether the target is probabilities whose least is above 0, and the same in each row."""
        target = self.target.abs().float()
        if target.numel() == len(target):
            target = torch.stack((target.flatten(), 1.0 - target.flatten()), 1)
        least = target.amin(1)
        return (least > 1e-4).all() & (least.amax() - least.amin() < 1e-4) & _sum_to_one(target)


def _sum_to_one(target: Tensor) -> Tensor:
    if target.numel() == len(target):
        return torch.ones((), dtype=torch.bool, device=target.device)
    return ((target.sum(1) - 1.0).abs() < 0.02).all()


def find_terms(loss: Tensor, adjusted: Sequence[Any] = ()) -> Iterator[LossTerm]:
    """Find the losses of classes in the graph, and whether their scores are the outputs of the ``adjusted`` nodes."""
    queue, seen = deque[Any]([loss.grad_fn] if loss.grad_fn is not None else []), set[Any]()
    while queue and len(seen) < _MAX_NODES:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        with suppress(AttributeError, RuntimeError):  # another version of torch; a part of the graph that is freed
            if (term := _to_term(node)) is not None:
                yield term._replace(is_adjusted=_is_reached(term.scores, set(adjusted)) if adjusted else None)
                continue
        queue.extend(_inputs(node))


def _to_term(node: Any) -> LossTerm | None:
    name = _name(node)
    if name in _LOSSES:
        target, weight = _saved(node, "target"), _saved(node, "weight")
        if target.is_floating_point() and weight is not None and weight.shape == target.shape and weight.stride(0):
            weight = None  # of each sample
        of_each_class = name == "MultiMarginLossBackward" or ("Binary" in name and target.numel() > len(target))
        pos_weight = _saved(node, "pos_weight") if hasattr(node, "_raw_saved_pos_weight") else None
        return LossTerm(target, weight, pos_weight, of_each_class, _is_scaled(node), _scores(node))
    # The cross entropy of probabilities is a sum of target * log_softmax(scores), and may be multiplied by weights.
    # Names are compared before saved values are read, because checkpointed layers compute them anew.
    path = [name, *_names_below(node, 2)]
    if path[:2] == ["MulBackward", "LogSoftmaxBackward"] and (target := _factor(node)) is not None:
        return LossTerm(target, None, None, False, _is_scaled(_inputs(node)[0]), _scores(node))
    if path[:2] in (["SumBackward", "LogSoftmaxBackward"], ["MeanBackward", "LogSoftmaxBackward"]):
        scores = _saved(_inputs(node)[0], "result")
        target = scores.new_full((), 1.0 / scores.shape[-1]).expand(scores.shape)
        return LossTerm(target, None, None, False, _is_scaled(_inputs(node)[0]), _scores(node), is_uniform=True)
    if path[:2] == ["GatherBackward", "LogSoftmaxBackward"] and (index := _saved(node, "index")).shape[1:] == (1,):
        return LossTerm(index[:, 0], None, None, False, _is_scaled(_inputs(node)[0]), _scores(node))
    if path == ["MulBackward", "MulBackward", "LogSoftmaxBackward"]:
        inner = _inputs(node)[0]
        weight, target = _factor(node), _factor(inner)
        if weight is not None and target is not None and weight.numel() == target.shape[-1]:
            return LossTerm(target, weight, None, False, _is_scaled(_inputs(inner)[0]), _scores(inner))
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


_LAYERS = ("Convolution", "Linear", "Trilinear")  # beside normalizations and products
_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm", "Mv")  # of features and weights, or of the shares of instances and logits


def _is_reached(node: Any, adjusted: set[Any]) -> bool:
    """Return whether scores are adjusted logits, with no layer in between; also if that cannot be seen."""
    stack, seen = [node], set[Any]()
    while stack and len(seen) < _MAX_NODES:
        node = stack.pop()
        if node in adjusted:
            return True
        name = _name(node)
        if node in seen or name.endswith("NormBackward") or name.startswith(_LAYERS):
            continue
        seen.add(node)
        following = [each for each, _ in node.next_functions]
        following = following[-1:] if name.startswith(_PRODUCTS) else following
        stack.extend(each for each in following if each is not None)
    return bool(stack)


def _inputs(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions if following is not None]
