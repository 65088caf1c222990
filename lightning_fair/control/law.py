"""The control law as pure functions; :class:`~lightning_fair.control.controller.FeedbackController` holds the state.

Symbols, arrays of shape ``(K,)`` unless stated otherwise:

- ``q``: target class mix; ``inverse_q``: its :func:`reciprocal`
- ``log_rest``: logarithm of ``p`` without a deficit: of ``q``, or if samples have several labels of draws that bring it
- ``r``: trained mix, the exponentially weighted class mix of the batches trained on
- ``l``: exponentially weighted mean loss of each class, NaN for a class without a loss so far
- ``z``: standardized ``l``; ``e``: loss score, the exponentially weighted ``z``
- ``H``: horizon, the memory of ``r`` and ``e`` in batches, a number of at least 1
- ``B``: samples of a batch over all ranks
- ``W``: largest weight; ``f``: floor, the part of ``p`` that does not follow the feedback
- ``p``: class mix of the next batch
- ``t``: tilt, the logarithm of the factor by which feedback moves the reference
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats
from lightning_fair.common.checks import check_numbers

# The default horizon expects this many samples of the rarest class. At rest the rounding noise of `log(p / q)` then has
# a deviation of `alpha / sqrt(2 * 100 * (1 + alpha))`, 0.19 at alpha = 8.
_EXPECTED_SAMPLES, _MIN_HORIZON, _MAX_HORIZON = 100, 16, 10_000
# Each validation moves the tilt by this fraction of the way to its goal.
_TILT_RATE = 0.3
# Standardized losses are clipped, so that one outlier among many classes cannot raise the loop's gain without bound.
MAX_Z = 3.0
# Clipping moves their mean by at most 1 / 3, because sum(q * |z| for |z| > c) <= sum(q * z**2) / c.
_MAX_Z_FROM_MEAN = MAX_Z + 1.0 / MAX_Z
_MIN_TARGET = 1e-300  # its reciprocal is finite


def reciprocal(q: Floats) -> Floats:
    """Return ``1 / q``, and 0 for a class with target 0, whose deficit is then 0."""
    return np.where(q > 0, 1.0 / np.maximum(q, _MIN_TARGET), 0.0)


def relative_deficit(r: Floats, q: Floats, inverse_q: Floats) -> Floats:
    """Return ``(q - r) / q = 1 - r / q``: how far each class is behind, as a fraction of its target; at most 1."""
    return (q - r) * inverse_q


def draw_logits(log_rest: Floats, deficit: Floats, e: Floats, alpha: float, lambda1: float, lambda2: float) -> Floats:
    """Return ``log_rest + alpha * (lambda1 * deficit + lambda2 * e)``; minus infinity for a class with target 0."""
    logits = log_rest + (alpha * lambda1) * deficit
    return logits + (alpha * lambda2) * e if lambda2 else logits


def mixture_floor(q: Floats, max_weight: float, min_prob: float = 0.0) -> Floats:
    """Return ``f = max(min_prob, q / W)``, and 0 for a class with target 0.

    With ``p >= q / W`` no weight ``q / p`` exceeds ``W``, without clipping and so without bias: the defensive mixture
    of importance sampling.

    References:
        T. Hesterberg, "Weighted average importance sampling and defensive mixture distributions" (1995); A. Owen and
        Y. Zhou, "Safe and effective importance sampling" (2000).

    Example:
        >>> mixture_floor(np.array([0.5, 0.5, 0.0]), max_weight=10.0)
        array([0.05, 0.05, 0.  ])
    """
    return np.where(q > 0, np.maximum(q / max_weight, min_prob), 0.0)


def softmax_with_floor(logits: Floats, floor: Floats) -> Floats:
    """Return ``p = (1 - sum(floor)) * softmax(logits) + floor``, for a floor with a sum of at most one."""
    return apply_floor(np.exp(logits - np.maximum.reduce(logits)), floor)


def apply_floor(shares: Floats, floor: Floats) -> Floats:
    """Return ``(1 - sum(floor)) * shares / sum(shares) + floor``.

    The floor holds exactly and the order of the classes stays, unlike with clipping followed by a division.

    Example:
        >>> apply_floor(np.array([5.0, 0.0, 0.0]), np.array([0.1, 0.1, 0.0]))
        array([0.9, 0.1, 0. ])
    """
    scale: float = max(1.0 - np.add.reduce(floor), 0.0) / np.add.reduce(shares)
    return scale * shares + floor


def moving_average(old: Floats, new: Floats, horizon: float) -> Floats:
    """Return ``(1 - 1/H) * old + (1/H) * new``: ``r`` follows the class mix of each batch, and ``e`` follows ``z``."""
    rate = 1.0 / horizon
    return (1.0 - rate) * old + rate * new


def mix_correction(trained_counts: NDArray[Any], drawn_counts: NDArray[Any], r_before: Floats) -> Floats:
    """Return the class mix that was trained on minus the one that was drawn, for :func:`correct_mix`.

    A batch without samples (a skipped step) has the mix ``r_before``, that before the draw: it leaves ``r`` as it was.
    """
    total = trained_counts.sum()
    trained = trained_counts / total if total else r_before
    correction: Floats = trained - drawn_counts / drawn_counts.sum()
    return correction


def correct_mix(r: Floats, correction: Floats, batches_since: int, horizon: float) -> Floats:
    """Return ``r + (1/H) * (1 - 1/H)**batches_since * correction``.

    ``r`` is linear in its batches, so this is ``r`` as if an earlier batch had had the corrected class mix.
    """
    rate = 1.0 / horizon
    weight: float = rate * (1.0 - rate) ** batches_since
    return r + weight * correction


def rescale_mix(r: Floats, old_q: Floats, new_q: Floats) -> Floats:
    """Return ``r * new_q / old_q``, normalized: a change of the target is no deficit. A new class begins at its target.

    Example:
        >>> rescale_mix(np.array([0.9, 0.1]), np.array([0.9, 0.1]), np.array([0.5, 0.5]))
        array([0.5, 0.5])
    """
    had_target = old_q > 0
    moved = np.where(had_target, r * new_q / np.where(had_target, old_q, 1.0), new_q)
    rescaled: Floats = moved / moved.sum()
    return rescaled


def batch_statistics(
    labels: NDArray[Any], losses: Any, num_classes: int
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Return samples, sum of finite losses and their number for each class; the last two are None without losses."""
    counts = np.bincount(labels, minlength=num_classes)
    if losses is None:
        return counts, None, None
    losses = check_numbers("losses", losses)
    if losses.shape != labels.shape:
        raise ValueError(
            f"losses must have one value per label, shape {labels.shape}, got shape {losses.shape}. "
            'Compute them with reduction="none".'
        )
    finite = np.isfinite(losses)
    sums = np.bincount(labels[finite], weights=losses[finite], minlength=num_classes)
    return counts, sums, np.bincount(labels[finite], minlength=num_classes)


def label_statistics(
    rows: NDArray[np.bool_], losses: Any
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Return the same of samples with several labels: ``rows[i, k]`` is whether sample ``i`` has label ``k``.

    ``losses`` has one value a sample, which counts for each of its labels, or one for each sample and label. If it
    lacks the last class, that of samples without a label, such a sample has the mean of its row there.
    """
    counts = rows.sum(axis=0)
    if losses is None:
        return counts, None, None
    losses, (n, K) = check_numbers("losses", losses), rows.shape
    if losses.shape not in ((n,), (n, K), (n, K - 1)):
        raise ValueError(
            f"losses must have one value per sample, shape ({n},), or per sample and label, shape ({n}, {K}), got "
            f"shape {losses.shape}."
        )
    losses = losses[:, None] if losses.ndim == 1 else losses
    if losses.shape[1] == K - 1:
        losses = np.column_stack([losses, losses.mean(axis=1)])
    counted = rows & np.isfinite(losses)
    return counts, np.where(counted, losses, 0.0).sum(axis=0), counted.sum(axis=0)


def mean_losses(loss_sums: NDArray[Any], loss_counts: NDArray[Any]) -> Floats:
    """Return ``loss_sums / loss_counts``; NaN for a class without a loss, or with a sum that is not finite."""
    usable = (loss_counts > 0) & np.isfinite(loss_sums)
    means: Floats = np.divide(loss_sums, loss_counts, out=np.full(loss_sums.size, np.nan), where=usable)
    return means


def update_losses(ema_loss: Floats, losses: Floats, decay: float) -> Floats:
    """Return ``decay * l + (1 - decay) * losses``; if ``l`` or the loss of a class is NaN, the other one of the two."""
    followed = decay * ema_loss + (1.0 - decay) * losses
    return np.where(np.isnan(losses), ema_loss, np.where(np.isnan(ema_loss), losses, followed))


def standardize_losses(ema_loss: Floats, q: Floats) -> Floats:
    """Return ``z``: mean 0 and deviation 1 under ``q`` over the classes with a loss, clipped at 3; 0 for the others.

    Example:
        >>> standardize_losses(np.array([1.0, 3.0, np.nan]), np.array([0.25, 0.25, 0.5]))
        array([-1.,  1.,  0.])
    """
    seen = ~np.isnan(ema_loss) & (q > 0)
    z = np.zeros(q.size)
    if seen.sum() < 2:
        return z
    losses, share = ema_loss[seen], q[seen] / q[seen].sum()
    losses = losses / (np.abs(losses).max() or 1.0)  # z has no unit, and this keeps the squares in range
    losses = losses - share @ losses
    deviation = math.sqrt(share @ losses**2)
    if deviation > 1e-12:
        z[seen] = np.clip(losses / deviation, -MAX_Z, MAX_Z)
    return z


def tilt_mix(mix: Floats, tilt: Floats) -> Floats:
    """Return ``mix * exp(t)``, normalized.

    Example:
        >>> tilt_mix(np.array([0.5, 0.5]), np.log([1.0, 3.0]))
        array([0.25, 0.75])
    """
    tilted = mix * np.exp(np.minimum(tilt - tilt[mix > 0].max(), 0.0))
    shares: Floats = tilted / tilted.sum()
    return shares


def follow_scores(tilt: Floats, scores: Floats, gain: float) -> Floats:
    """Return ``0.7 * t + 0.3 * gain * (mean(s) - s)``: a class that does worse than the others weighs more.

    ``s`` has one score for each class, larger is better; NaN keeps the tilt of a class, and does not enter the mean.
    Differences are clipped to [-1, 1], so ``|t| <= gain``.

    Example:
        >>> follow_scores(np.zeros(3), np.array([0.9, 0.5, np.nan]), gain=3.0)
        array([-0.18,  0.18,  0.  ])
    """
    known = ~np.isnan(scores)
    if not known.any():
        return tilt
    behind = np.clip(scores[known].mean() - scores, -1.0, 1.0)
    return np.where(known, (1.0 - _TILT_RATE) * tilt + _TILT_RATE * gain * behind, tilt)


def default_horizon(min_target: float, batch_size: float) -> float:
    """Return ``ceil(100 / (B * min_target))``, clipped to 16 to 10,000 batches."""
    expected = math.ceil(_EXPECTED_SAMPLES / (batch_size * max(min_target, 1e-12)))
    return float(min(max(expected, _MIN_HORIZON), _MAX_HORIZON))


def max_z(min_target: float) -> float:
    """Return the largest ``z`` above the mean that a class can have, if no target is below ``min_target``."""
    return min(_MAX_Z_FROM_MEAN, math.sqrt((1.0 - min_target) / min_target))


def largest_gain(lambda1: float, lambda2: float, horizon: float, min_target: float) -> float:
    """Return the ``alpha`` from which on the loop is unstable; infinity if it has no feedback.

    Example:
        >>> largest_gain(1.0, 0.5, horizon=16.0, min_target=0.5)
        20.666666666666668
    """
    weight = lambda1 and lambda1 + max_z(min_target) * lambda2
    return (2.0 * horizon - 1.0) / weight if weight else math.inf


def check_gain(max_alpha: float, lambda1: float, lambda2: float, horizon: float, min_target: float) -> None:
    """Check that the loop is stable: ``alpha * (lambda1 + max_z * lambda2) < 2 * H - 1``.

    Near the class mix ``p`` the loop's gain is ``alpha * lambda1 * max(p / q)``, and at rest ``p / q`` is at most
    ``1 + lambda2 / lambda1 * max_z``.

    Raises:
        ValueError: If it is not.
    """
    largest = largest_gain(lambda1, lambda2, horizon, min_target)
    if max_alpha >= largest:
        z, limit = max_z(min_target), 2.0 * horizon - 1.0
        weight = limit / largest
        gain = max_alpha * weight
        name = f"(lambda1 + {z:.3g} * lambda2)" if lambda2 else "lambda1"
        raise ValueError(
            f"alpha * {name} must be below 2 * horizon - 1 = {limit:g}, or the class mix oscillates; "
            f"got {max_alpha:g} * {weight:g} = {gain:g}. The largest stable alpha is just below "
            f"{largest:g} (no overshoot up to {(horizon - 1) / weight:g}); "
            f"or set horizon above {(gain + 1) / 2:g} batches."
        )
