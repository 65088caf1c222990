"""The formulas of the algorithm in slow, plain Python, written from the design and not from the code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

Vector = Sequence[float]


def floor(q: Vector, max_weight: float = math.inf, min_prob: float = 0.0) -> list[float]:
    """``f = max(min_prob, q / W)`` of the classes with a target, 0 for the others."""
    return [max(min_prob, share / max_weight) if share > 0 else 0.0 for share in q]


def mixed(mix: Vector, f: Vector) -> list[float]:
    """``p = R * mix + f`` with ``R = 1 - sum(f)``, for a mix that sums to one."""
    rest = 1.0 - sum(f)
    return [rest * share + least for share, least in zip(mix, f, strict=True)]


def horizon(batch_size: int, q: Vector) -> float:
    """``H = clip(ceil(100 / (B * min q)), 16, 10000)``: a hundred samples of the rarest class that has a target."""
    rarest = min(share for share in q if share > 0)
    return float(min(max(math.ceil(100.0 / (batch_size * rarest)), 16), 10_000))


def standardize(losses: Sequence[float | None], q: Vector) -> list[float]:
    """Mean 0 and deviation 1 under ``q`` over the classes with a loss, clipped at 3; 0 for the others."""
    seen = [(loss, share) for loss, share in zip(losses, q, strict=True) if loss is not None and share > 0]
    if len(seen) < 2:
        return [0.0] * len(losses)
    total = sum(share for _, share in seen)
    mean = sum(loss * share for loss, share in seen) / total
    deviation = math.sqrt(sum((loss - mean) ** 2 * share for loss, share in seen) / total)
    if deviation <= 1e-12 * max(abs(loss) for loss, _ in seen):  # rounding
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
    max_weight: float = math.inf,
    min_prob: float = 0.0,
) -> list[float]:
    """``p = R * softmax(log q + alpha * (lambda1 * (1 - r / q) + lambda2 * e)) + f``."""
    drawn = [i for i in range(len(q)) if q[i] > 0]
    logits = []
    for i in drawn:
        deficit = 1.0 - trained_mix[i] / q[i]
        score = 0.0 if loss_score is None else loss_score[i]
        logits.append(math.log(q[i]) + alpha * (lambda1 * deficit + lambda2 * score))
    mix = [0.0] * len(q)
    for i, share in zip(drawn, softmax(logits), strict=True):
        mix[i] = share
    return mixed(mix, floor(q, max_weight, min_prob))


def at_rest(
    q: Vector,
    z: Vector,
    *,
    alpha: float,
    lambda1: float = 1.0,
    lambda2: float,
    max_weight: float = math.inf,
    min_prob: float = 0.0,
) -> list[float]:
    """Where losses rest: ``x + log((x - f/q) / R) / (alpha * lambda1) = const + (lambda2 / lambda1) * z``, ``x = p/q``.

    Every class has a target. The constant is the one with which ``p`` sums to one.
    """
    f, gain = floor(q, max_weight, min_prob), alpha * lambda1
    rest = 1.0 - sum(f)

    def x_of(i: int, goal: float) -> float:
        # With y = (x - f/q) / R the left side is R * y + f/q + log(y) / gain, which grows with log(y).
        def left(log_y: float) -> float:
            return rest * math.exp(log_y) + f[i] / q[i] + log_y / gain

        log_y = bisect(lambda log_y: left(log_y) - goal, -1000.0, 50.0)
        return rest * math.exp(log_y) + f[i] / q[i]

    def p_of(constant: float) -> list[float]:
        return [q[i] * x_of(i, constant + lambda2 / lambda1 * z[i]) for i in range(len(q))]

    return p_of(bisect(lambda constant: sum(p_of(constant)) - 1.0, -100.0, 100.0))


def bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(200):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2.0


def tilted(reference: Vector, tilt: Vector) -> list[float]:
    """``ref_i ~ reference_i * exp(t_i)``."""
    powers = [share * math.exp(t) for share, t in zip(reference, tilt, strict=True)]
    return [power / sum(powers) for power in powers]


def validation_tilt(
    tilt: Vector, values: Sequence[float | None], *, gain: float = 3.0, higher_is_better: bool = True
) -> list[float]:
    """``t <- 0.7 * t + 0.3 * G * (mean(s) - s)``.

    A loss is divided by its mean over the classes and has the other sign. A class without a value (None) takes no
    part: its ``t`` stays.
    """
    seen = [value for value in values if value is not None]
    mean = sum(seen) / len(seen)
    followed = list(tilt)
    for i, value in enumerate(values):
        if value is not None:
            behind = mean - value if higher_is_better else (value - mean) / mean
            followed[i] = 0.7 * tilt[i] + 0.3 * gain * behind
    return followed


def offsets(p: Vector, reference: Vector) -> list[float]:
    """What is added to the logits: 0 where the reference is 0, else ``log(max(p, 1e-12) / ref)``."""
    return [math.log(max(a, 1e-12) / b) if b > 0 else 0.0 for a, b in zip(p, reference, strict=True)]


def clipped_mass(reference: Vector, p: Vector, max_weight: float) -> float:
    """``sum(max(ref - W * p, 0))``."""
    return sum(max(b - max_weight * a, 0.0) for a, b in zip(p, reference, strict=True))


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
    max_weight: float = math.inf,
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
        p = law(q, now, alpha=alpha, max_weight=max_weight)
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


def simulate(
    q: Vector,
    trained_mix: Vector,
    randomness: Callable[[int], tuple[Sequence[int], float]],
    *,
    batch_size: int,
    horizon: float,
    alpha: float = 8.0,
    max_weight: float = math.inf,
) -> Iterator[tuple[list[float], list[int]]]:
    """Run the loop, with class counts by systematic sampling; yield the class mix and the counts of each batch.

    ``randomness(n)`` returns the order of the classes and the start of draw ``n``.
    """
    now, number = list(trained_mix), 0
    while True:
        p = law(q, now, alpha=alpha, max_weight=max_weight)
        counts = systematic(p, batch_size, *randomness(number))
        yield p, counts
        now, number = follow(now, counts, horizon), number + 1


# -- several labels a sample, each given as the list of its classes --------------------------------------


def class_sizes(sets: Sequence[Sequence[int]], num_classes: int) -> list[int]:
    """``n[k]``: the number of samples with label ``k``."""
    return [sum(k in labels for labels in sets) for k in range(num_classes)]


def share_of_samples(sets: Sequence[Sequence[int]], mix: Vector) -> list[float]:
    """``sum of mix[k] / n[k]`` over the labels of each sample: how likely a place of a batch is this sample."""
    n = class_sizes(sets, len(mix))
    return [sum(mix[k] / n[k] for k in labels) for labels in sets]


def labels_of_draws(sets: Sequence[Sequence[int]], mix: Vector) -> tuple[list[float], float]:
    """The label mix of samples that are drawn with ``mix``, and the mean number of their labels."""
    brought = [0.0] * len(mix)
    for labels, share in zip(sets, share_of_samples(sets, mix), strict=True):
        for k in labels:
            brought[k] += share
    return [each / sum(brought) for each in brought], sum(brought)


def relative_entropy(q: Vector, r: Vector) -> float:
    """``sum(q * log(q / r))``."""
    return sum(a * math.log(a / b) if b > 0 else math.inf for a, b in zip(q, r, strict=True) if a > 0)


def prior_of_sets(sets: Sequence[Sequence[int]], num_classes: int) -> list[float]:
    """The share of each class if a sample counts for each of its ``L`` labels by ``1 / L``."""
    return [sum(1.0 / len(labels) for labels in sets if k in labels) / len(sets) for k in range(num_classes)]


def set_weights(sets: Sequence[Sequence[int]], p: Vector, reference: Vector, *, is_prior: bool) -> list[float]:
    """``ref(x) / pi(x)``.

    ``ref(x)`` is the share of the sample in draws with the reference. If the reference is the prior times ``f``, it is
    the mean of ``f`` over the labels of the sample, divided by the number of samples.
    """
    if is_prior:
        factors = [b / a if a > 0 else 0.0 for a, b in zip(prior_of_sets(sets, len(p)), reference, strict=True)]
        wanted = [sum(factors[k] for k in labels) / len(labels) / len(sets) for labels in sets]
    else:
        wanted = share_of_samples(sets, reference)
    return [a / b if b > 0 else 0.0 for a, b in zip(wanted, share_of_samples(sets, p), strict=True)]


def set_losses(
    sets: Sequence[Sequence[int]], losses: Sequence[float] | Sequence[Vector], num_classes: int
) -> list[float | None]:
    """The mean finite loss of each label over the samples that have it; None without one.

    A loss of a sample counts for each of its labels. Of a row of losses, each label has its own; if the row lacks the
    last class, a sample of this class has the mean of its row.
    """
    means: list[float | None] = []
    for k in range(num_classes):
        mine = []
        for labels, loss in zip(sets, losses, strict=True):
            if k in labels:
                row = loss if isinstance(loss, Sequence) else [loss] * num_classes
                mine.append(row[k] if k < len(row) else sum(row) / len(row))
        mine = [loss for loss in mine if math.isfinite(loss)]
        means.append(sum(mine) / len(mine) if mine else None)
    return means
