"""The formulas of the algorithm in slow, plain Python, written from the design and not from the code."""

from __future__ import annotations

import math
from collections.abc import Sequence

Vector = Sequence[float]


def floored(mix: Vector, min_prob: float, q: Vector | None = None) -> list[float]:
    """``p = (1 - K * min_prob) * mix + min_prob`` over the ``K`` classes with a target ``q`` (default: ``mix``)."""
    target = mix if q is None else q
    K = sum(1 for share in target if share > 0)
    return [
        (1.0 - K * min_prob) * share + min_prob if goal > 0 else 0.0 for share, goal in zip(mix, target, strict=True)
    ]


def standardize(losses: Sequence[float | None], q: Vector) -> list[float]:
    """Mean 0 and deviation 1 under ``q`` over the classes with a loss, clipped at 3; 0 for the others."""
    seen = [(loss, share) for loss, share in zip(losses, q, strict=True) if loss is not None and share > 0]
    if len(seen) < 2:
        return [0.0] * len(losses)
    total = sum(share for _, share in seen)
    mean = sum(loss * share for loss, share in seen) / total
    deviation = math.sqrt(sum((loss - mean) ** 2 * share for loss, share in seen) / total)
    if deviation == 0.0:
        return [0.0] * len(losses)
    return [
        0.0 if loss is None or share == 0 else min(max((loss - mean) / deviation, -3.0), 3.0)
        for loss, share in zip(losses, q, strict=True)
    ]


def softmax(logits: Vector) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    return [power / sum(powers) for power in powers]


def law(
    q: Vector,
    trained_mix: Vector,
    loss_score: Vector | None = None,
    *,
    alpha: float = 8.0,
    lambda1: float = 1.0,
    lambda2: float = 0.0,
    min_prob: float = 1e-6,
) -> list[float]:
    """``p = softmax(log q + alpha * (lambda1 * (1 - r / q) + lambda2 * e))``, with the floor."""
    drawn = [i for i in range(len(q)) if q[i] > 0]
    logits = []
    for i in drawn:
        deficit = 1.0 - trained_mix[i] / q[i]
        score = 0.0 if loss_score is None else loss_score[i]
        logits.append(math.log(q[i]) + alpha * (lambda1 * deficit + lambda2 * score))
    mix = [0.0] * len(q)
    for i, share in zip(drawn, softmax(logits), strict=True):
        mix[i] = share
    return floored(mix, min_prob, q)


def count_law(
    q: Vector,
    counts: Vector,
    losses: Vector,
    *,
    alpha: float,
    lambda1: float = 1.0,
    lambda2: float = 0.0,
    min_prob: float = 1e-6,
) -> list[float]:
    """The published law: ``p = softmax(alpha * (lambda1 * (q * t - n) + lambda2 * l))``."""
    total = sum(counts)
    logits = [alpha * (lambda1 * (q[i] * total - counts[i]) + lambda2 * losses[i]) for i in range(len(q))]
    K = len(q)
    return [(1.0 - K * min_prob) * share + min_prob for share in softmax(logits)]


def follow(trained_mix: Vector, counts: Vector, horizon: float) -> list[float]:
    """``r <- (1 - 1/H) * r + (1/H) * c / sum(c)``; a batch without samples leaves ``r`` unchanged."""
    total = sum(counts)
    if total == 0:
        return list(trained_mix)
    return [(1.0 - 1.0 / horizon) * trained_mix[i] + counts[i] / total / horizon for i in range(len(trained_mix))]


def follow_score(loss_score: Vector, z: Vector, horizon: float) -> list[float]:
    """``e <- (1 - 1/H) * e + (1/H) * z``."""
    return [(1.0 - 1.0 / horizon) * old + new / horizon for old, new in zip(loss_score, z, strict=True)]


def follow_losses(
    losses: Sequence[float | None], labels: Sequence[int], values: Vector, beta: float
) -> list[float | None]:
    """``l <- beta * l + (1 - beta) * mean`` over the finite losses; the first mean of a class replaces None."""
    followed = list(losses)
    for label in range(len(losses)):
        mine = [v for y, v in zip(labels, values, strict=True) if y == label and math.isfinite(v)]
        if not mine:
            continue
        mean, old = sum(mine) / len(mine), losses[label]
        followed[label] = mean if old is None else beta * old + (1.0 - beta) * mean
    return followed


def systematic(probs: Vector, size: int, order: Sequence[int], start: float) -> list[int]:
    """Lay ``size * p`` end to end in the given order; count the points ``start + 0, 1, 2, ...`` in each interval.

    ``start`` lies in (0, 1]; an interval holds its upper end.
    """
    counts = [0] * len(probs)
    lower = 0.0
    for i in order:
        upper = lower + size * probs[i]
        counts[i] = sum(1 for k in range(size) if lower < start + k <= upper)
        lower = upper
    return counts


def importance_weights(
    labels: Sequence[int],
    q: Vector,
    p: Vector,
    max_w: float | None = None,
    *,
    normalize: bool = False,
    exponent: float = 1.0,
) -> list[float]:
    """``w = min((q[y] / p[y]) ** exponent, max_w)``; with ``normalize`` divided by the batch's mean."""
    weights = []
    for y in labels:
        weight = (q[y] / p[y]) ** exponent
        weights.append(weight if max_w is None else min(weight, max_w))
    if normalize:
        mean = sum(weights) / len(weights)
        weights = [weight / mean for weight in weights]
    return weights


def effective_sample_size(weights: Vector) -> float:
    """Kish: ``(sum w)^2 / sum w^2``."""
    return sum(weights) ** 2 / sum(w * w for w in weights)


def settle(
    q: Vector,
    trained_mix: Vector,
    *,
    alpha: float,
    horizon: float,
    kept: Vector | None = None,
    batches: int = 1000,
    until: float = -1.0,
) -> tuple[list[float], int]:
    """Run the loop without noise: each batch has exactly the class mix ``p``.

    Of each class the share ``kept`` is trained on. Stop as soon as the trained mix is within ``until`` of ``q``. Return
    the trained mix and the number of batches.
    """
    now = list(trained_mix)
    for batch in range(batches):
        if max(abs(r - target) for r, target in zip(now, q, strict=True)) <= until:
            return now, batch
        p = law(q, now, alpha=alpha, min_prob=0.0)
        now = follow(now, [share * (1.0 if kept is None else kept[i]) for i, share in enumerate(p)], horizon)
    return now, batches


def chi_square_limit(freedom: int, normal: float = 3.719) -> float:
    """Wilson and Hilferty's quantile of chi-square; 3.719 is the normal quantile of 1 - 0.0001."""
    spread = 2.0 / (9.0 * freedom)
    return freedom * (1.0 - spread + normal * math.sqrt(spread)) ** 3


def splitmix64(number: int) -> int:
    """The finalizer of SplitMix64, on integers modulo ``2**64``."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def order_of_pass(items: Sequence[int], class_key: int, number: int) -> list[int]:
    """The items of a small class in the order of a pass: sorted by a hash of the class, the pass and the item."""
    key = splitmix64((class_key + number) % 2**64)
    return sorted(items, key=lambda item: splitmix64((key + item * 0x9E3779B97F4A7C15) % 2**64))
