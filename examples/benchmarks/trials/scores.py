"""Numbers that compare classifiers, from logits and labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from lightning_fair.common.arrays import Floats, Ints


def recalls(logits: Floats, labels: Ints) -> Floats:
    """Return the recall of each class, shape ``(K,)``; every class has a label.

    Example:
        >>> recalls(np.array([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), np.array([0, 1, 1]))
        array([1. , 0.5])
    """
    K = logits.shape[1]
    right = np.bincount(labels[logits.argmax(axis=1) == labels], minlength=K)
    shares: Floats = right / np.bincount(labels, minlength=K)
    return shares


def tune_offsets(logits: Floats, labels: Ints, steps: int = 2000, rate: float = 0.02) -> Floats:
    """Return offsets of the logits with the highest recall of the worst class that a simple search finds.

    Each step adds ``rate * std(logits) * (mean(recall) - recall)`` to the offsets. The best of all steps is returned;
    among offsets with the same recall of the worst class, that with the highest mean. This is threshold moving for many
    classes, on validation data with every class.

    Args:
        logits: Logits of the validation data, shape ``(N, K)``.
        labels: Their classes, shape ``(N,)``.
        steps: Steps of the search.
        rate: Change of an offset for a difference of 1 in recall, in standard deviations of the logits.

    Example:
        >>> logits, labels = np.array([[0.0, -0.1], [0.0, -0.2], [0.0, -0.9]]), np.array([1, 1, 0])
        >>> recalls(logits, labels), recalls(logits + tune_offsets(logits, labels), labels)
        (array([1., 0.]), array([1., 1.]))
    """
    offsets = np.zeros(logits.shape[1])
    best, best_score = offsets, (-1.0, -1.0)
    size = rate * float(logits.std())
    for _ in range(steps + 1):
        recall = recalls(logits + offsets, labels)
        score = (float(recall.min()), float(recall.mean()))
        if score > best_score:
            best, best_score = offsets, score
        offsets = offsets + size * (recall.mean() - recall)
    return best


def calibration_error(logits: Floats, labels: Ints, mix: NDArray[np.float64], bins: int = 15) -> float:
    """Return the expected calibration error of the most probable class at a class mix.

    The mean over the bins of ``|accuracy - confidence|``, each with the share of its samples; a sample of class ``c``
    counts ``mix[c] / share of c in the labels``.

    Args:
        logits: Shape ``(N, K)``.
        labels: Shape ``(N,)``.
        mix: Class mix at which the error is measured, shape ``(K,)``, sum 1.
        bins: Bins of equal width.

    Reference:
        C. Guo et al., "On calibration of modern neural networks" (2017).

    Example:
        >>> calibration_error(np.log([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]), np.array([0.75, 0.25]))
        0.0
        >>> calibration_error(np.log([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]), np.array([0.5, 0.5]))
        0.25
    """
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    weights = (mix / np.bincount(labels, minlength=mix.size))[labels]
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights * (right - confidence), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())
