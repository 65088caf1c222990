"""Importance weights: how much a sample counts, given how likely its class was to be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from lightning_fair.common.arrays import Floats
from lightning_fair.common.checks import check, check_numbers, show
from lightning_fair.common.label_values import check_labels

_MIN_PROB = 1e-12  # in the logarithm
_ROUNDING = 1e-12  # relative error of a weight: none is clipped where the draw keeps the bound


def class_weights(q: ArrayLike, p: ArrayLike, max_w: float | None = None, *, exponent: float = 1.0) -> Floats:
    """Return the weight ``min((q / p) ** exponent, max_w)`` of each class, 0 if ``p = 0``; float64, shape ``(K,)``."""
    q, p = _check_mixes(q=q, p=p)
    max_w, exponent = check("max_w", max_w, optional=True), check("exponent", exponent)
    weights = np.divide(q, p, out=np.zeros_like(q), where=p > 0)
    if exponent != 1.0:
        weights = weights**exponent * (p > 0)
    return weights if max_w is None else np.minimum(weights, max_w)


def _check_mixes(**mixes: ArrayLike) -> tuple[Floats, Floats]:
    (one, q), (other, p) = ((name, check_numbers(name, mix)) for name, mix in mixes.items())
    if q.shape != p.shape or q.ndim != 1:
        raise ValueError(f"{one} and {other} must both have shape (K,), got {q.shape} and {p.shape}.")
    for name, mix in ((one, q), (other, p)):
        if not (np.isfinite(mix).all() and (mix >= 0).all()):
            raise ValueError(f"{name} must be probabilities: finite and not negative, got {show(mix.tolist())}.")
    return q, p


def clipped_mass(ref: ArrayLike, p: ArrayLike, max_w: float, *, exponent: float = 1.0) -> float:
    """Return ``sum(max(ref - max_w * p, 0))``: the part of the reference that weights of at most ``max_w`` leave out.

    In [0, 1]; 0 if no weight ``ref / p`` exceeds ``max_w``. ``ref`` and ``p`` are class mixes, shape ``(K,)``. With an
    exponent, it is ``sum(p * max(w - max_w, 0))`` of the weights ``w`` of :func:`class_weights`, and ``ref`` where
    ``p = 0``.

    Example:
        >>> clipped_mass([0.5, 0.5], [0.99, 0.01], max_w=10.0)
        0.4
    """
    ref, p = _check_mixes(ref=ref, p=p)
    weights = class_weights(ref, p, exponent=exponent)
    excess = np.where(weights > max_w * (1.0 + _ROUNDING), weights - max_w, 0.0)
    return float(p @ excess + ref[p == 0].sum())


def logit_adjustment(p: ArrayLike, ref: ArrayLike) -> torch.Tensor:
    """Return what to add to the logits of a classifier: ``log(p / ref)`` for each class.

    **In training.** The cross entropy of ``logits + logit_adjustment(p, ref)`` on batches drawn from ``p`` is minimized
    by logits whose softmax is the posterior ``P(y | x)`` of data with the class mix ``ref``, for every ``p``. No
    weights are needed, and every sample counts fully. ``p`` must be the class mix that *this* batch was drawn with.
    Outside of training the logits stay as they are. This holds for free logits; a model that cannot fit the posterior
    has another minimum than with weights. Targets may be the class probabilities of each sample. Label smoothing
    toward uniform is not neutral: the softmax is then proportional to ``ref / p * ((1 - eps) * P(y | x) + eps / K)``
    with the posterior at ``p``, so that classes with a large ``ref / p`` win where they should not. Leave the smoothing
    out, or use :func:`importance_weights`.

    **After training.** A model whose softmax stands for the mix ``ref`` is moved to the mix ``new`` where it is used:
    ``logits + logit_adjustment(new, ref)``.

    Args:
        p: Class mix of the draw, or the new one, shape ``(K,)``. Below 1e-12 it counts as that, so that classes which
            cannot be drawn leave the softmax.
        ref: Class mix that the model's probabilities stand for, shape ``(K,)``. A class with 0 gets 0.

    Returns:
        Float32 tensor of shape ``(K,)`` on the CPU.

    Raises:
        TypeError: If ``p`` or ``ref`` is no list or array of numbers.
        ValueError: If ``p`` and ``ref`` differ in shape, or have an entry that is negative or not finite.

    References:
        G. King and L. Zeng, "Logistic regression in rare events data" (2001); J. Ren et al., "Balanced meta-softmax for
        long-tailed visual recognition" (2020); A. Menon et al., "Long-tail learning via logit adjustment" (2021).

    Example:
        >>> logit_adjustment([0.8, 0.2], [0.5, 0.5])
        tensor([ 0.4700, -0.9163])
        >>> logits = torch.tensor([[0.0, 1.0]])  # of a model that was trained for 50:50
        >>> (logits + logit_adjustment([0.99, 0.01], [0.5, 0.5])).softmax(1)  # where 1 % are of class 1
        tensor([[0.9733, 0.0267]])
    """
    p, ref = _check_mixes(p=p, ref=ref)
    offsets = np.log(np.maximum(p, _MIN_PROB) / np.where(ref > 0, ref, 1.0))
    return torch.as_tensor(np.where(ref > 0, offsets, 0.0), dtype=torch.float32)


def importance_weights(
    labels: Any,
    q: ArrayLike,
    p: ArrayLike,
    max_w: float | None = None,
    *,
    normalize: bool = False,
    exponent: float = 1.0,
) -> torch.Tensor:
    """Return the weight of each sample that makes the mean loss of a batch drawn from ``p`` the risk under ``q``.

    ``w = q[y] / p[y]``. The mean of ``w * loss`` over a batch is then, in expectation, the mean loss over data with
    the class mix ``q``, for every ``p``. ``p`` must be the class mix that *this* batch was drawn with.
    Without options the weights are unbiased. Each option trades bias for variance.

    Samples with several labels have weights of their own,
    :meth:`FeedbackBatchSampler.sample_weights <lightning_fair.FeedbackBatchSampler.sample_weights>`.

    Args:
        labels: Class of each sample, integers in ``[0, K)``, shape ``(batch,)``: array, list or tensor.
        q: Class mix that the loss should stand for, shape ``(K,)``.
        p: Class mix that the batch was drawn with, shape ``(K,)``, positive for every label.
        max_w: Largest weight, positive, or None. Clipping adds bias towards the classes that are drawn often.
        normalize: Divide by the mean weight of the batch. Adds a bias of order ``1 / batch``.
        exponent: ``(q / p) ** exponent``, in ``[0, 1]``; 0 gives weights of one. Below 1 it adds bias.

    Returns:
        Float32 tensor of shape ``(batch,)``, on the device of ``labels`` if that is a tensor, else on the CPU.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If labels are not integers in ``[0, K)``, a label's class has ``p = 0``, ``q`` and ``p`` differ in
            shape or have an entry that is negative or not finite, or another argument is out of range.

    References:
        Importance sampling: D. G. Horvitz and D. J. Thompson (1952). The exponent: T. Schaul et al.,
        "Prioritized experience replay" (2016).

    Example:
        >>> importance_weights([0, 1, 1], q=[0.5, 0.5], p=[0.8, 0.2])
        tensor([0.6250, 2.5000, 2.5000])
    """
    weight_of_class, normalize = class_weights(q, p, max_w, exponent=exponent), check("normalize", normalize)
    y = check_labels(labels, weight_of_class.size)
    impossible = check_numbers("p", p)[y] <= 0
    if impossible.any():
        raise ValueError(
            f"labels hold class {int(y[impossible][0])}, which has p = 0 and cannot have been drawn from this p. "
            "Pass the p of the batch's own draw."
        )
    weights = weight_of_class[y]
    if normalize and weights.any():
        weights = weights / weights.mean()
    device = labels.device if isinstance(labels, torch.Tensor) else torch.device("cpu")
    return torch.as_tensor(weights, dtype=torch.float32).to(device)


def effective_sample_size(weights: ArrayLike | torch.Tensor) -> float:
    """Return Kish's effective sample size, ``(sum w)^2 / sum w^2``: between 1 and the number of samples.

    The weighted mean of a batch is about as noisy as a plain mean over this number of samples. Equal weights give the
    batch size, weights of zero and an empty batch 0.

    Args:
        weights: Weights, not negative, shape ``(batch,)``.

    Raises:
        TypeError: If the weights are no list or array of numbers.
        ValueError: If a weight is negative or not finite, or the shape is not ``(batch,)``.

    Reference:
        L. Kish, "Survey Sampling" (1965).

    Example:
        >>> effective_sample_size([1.0, 1.0, 1.0, 1.0]), effective_sample_size([4.0, 0.0, 0.0, 0.0])
        (4.0, 1.0)
    """
    w = check_numbers("weights", weights)
    if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(f"weights must have shape (batch,) and be finite and not negative, got {show(weights)}.")
    if not w.any():
        return 0.0
    w = w / w.max()  # the ratio has no unit, and this keeps the squares in range
    return float(w.sum() ** 2 / (w * w).sum())
