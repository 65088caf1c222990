"""Importance weights: what a sample counts for, given how likely its class was to be drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from lightning_fair.common.arrays import Floats, to_numpy
from lightning_fair.common.labels import check_labels


def class_weights(q: ArrayLike, p: ArrayLike, max_w: float | None = None, *, exponent: float = 1.0) -> Floats:
    """Return the importance weight of each class, ``min((q / p) ** exponent, max_w)``, shape ``(K,)``, float64.

    A class with ``p = 0`` is never drawn; its weight is 0 here.

    Raises:
        ValueError: If ``q`` and ``p`` differ in shape or hold a number that is negative or not finite, or
            ``max_w`` is not positive, or ``exponent`` lies outside ``[0, 1]``.

    Example:
        >>> class_weights([0.5, 0.5], [0.8, 0.2], max_w=2.0)
        array([0.625, 2.   ])
    """
    wanted = np.asarray(to_numpy(q), dtype=np.float64)
    drawn = np.asarray(to_numpy(p), dtype=np.float64)
    if wanted.shape != drawn.shape or wanted.ndim != 1:
        raise ValueError(f"q and p must both have shape (K,), got {wanted.shape} and {drawn.shape}.")
    for name, mix in (("q", wanted), ("p", drawn)):
        if not (np.isfinite(mix).all() and (mix >= 0).all()):
            raise ValueError(f"{name} must be probabilities: finite and not negative.")
    if max_w is not None and not max_w > 0:
        raise ValueError(f"max_w must be positive, or None for no bound, got {max_w}.")
    if not (math.isfinite(exponent) and 0.0 <= exponent <= 1.0):
        raise ValueError(f"exponent must lie in [0, 1], got {exponent}.")
    return weights_of_mixes(wanted, drawn, max_w, exponent)


def weights_of_mixes(q: Floats, p: Floats, max_w: float | None, exponent: float) -> Floats:
    """Return :func:`class_weights` of arguments that have been checked: every training step needs them."""
    weights = np.divide(q, p, out=np.zeros_like(q), where=p > 0)
    if exponent != 1.0:
        weights = weights**exponent * (p > 0)
    return weights if max_w is None else np.minimum(weights, max_w)


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

    ``w = q[y] / p[y]``: then the mean of ``w * loss`` over a batch is, in expectation, the mean loss over
    data whose class mix is ``q``, whatever ``p`` was. ``p`` must be the mix that *this* batch was drawn with.
    It is unbiased as it stands. Each bound trades bias for variance: ``max_w`` clips, ``normalize`` divides
    by the batch's mean weight, an ``exponent`` below 1 corrects only in part.

    Args:
        labels: Class of each sample, integers in ``[0, K)``, shape ``(batch,)``: array, list or tensor.
        q: Class mix that the loss should stand for, shape ``(K,)``.
        p: Class mix that the batch was drawn with, shape ``(K,)``, positive for every label.
        max_w: Largest weight, positive, or None. Adds bias towards the classes that are drawn often.
        normalize: Divide by the mean weight of the batch. Adds a bias of order ``1 / batch``.
        exponent: ``(q / p) ** exponent``, in ``[0, 1]``; 0 gives weights of one. Below 1 it adds bias.

    Returns:
        Float32 tensor of shape ``(batch,)``, on the device of ``labels`` if that is a tensor, else the CPU.

    Raises:
        ValueError: If labels are not integers in ``[0, K)``, a label's class has ``p = 0``, or another
            argument is out of range.

    References:
        Importance sampling: D. G. Horvitz and D. J. Thompson (1952). The exponent: T. Schaul et al.,
        "Prioritized experience replay" (2016).

    Example:
        >>> importance_weights([0, 1, 1], q=[0.5, 0.5], p=[0.8, 0.2])
        tensor([0.6250, 2.5000, 2.5000])
    """
    table = class_weights(q, p, max_w, exponent=exponent)
    y = check_labels(labels, table.size)
    never = np.asarray(to_numpy(p))[y] <= 0
    if never.any():
        raise ValueError(
            f"labels hold class {int(y[never][0])}, which has p = 0 and cannot have been drawn from this p. "
            "Pass the p of the batch's own draw."
        )
    weights = table[y]
    if normalize and weights.any():
        weights = weights / weights.mean()
    device = labels.device if isinstance(labels, torch.Tensor) else torch.device("cpu")
    return torch.as_tensor(weights, dtype=torch.float32).to(device)


def effective_sample_size(weights: ArrayLike | torch.Tensor) -> float:
    """Return Kish's effective sample size, ``(sum w)^2 / sum w^2``: between 1 and the number of samples.

    The weighted mean of a batch is about as noisy as a plain mean over this many samples. Weights that are
    all alike give the batch size.

    Args:
        weights: Weights, not negative, shape ``(batch,)``.

    Returns:
        Number of samples; 0.0 for no samples or weights that are all zero.

    Raises:
        ValueError: If a weight is negative or not finite, or the shape is not ``(batch,)``.

    Reference:
        L. Kish, "Survey Sampling" (1965).

    Example:
        >>> effective_sample_size([1.0, 1.0, 1.0, 1.0]), effective_sample_size([4.0, 0.0, 0.0, 0.0])
        (4.0, 1.0)
    """
    w = np.asarray(to_numpy(weights), dtype=np.float64)
    if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError("weights must have shape (batch,) and be finite and not negative.")
    if not w.any():
        return 0.0
    w = w / w.max()  # the ratio has no unit: this keeps the squares in range
    return float(w.sum() ** 2 / (w * w).sum())
