"""Canvases with two or three digits, or none: labels that are long-tailed and co-occur.

Digits of scikit-learn's 8x8 images lie on canvases of 24x24 pixels with noise, at random places that do not overlap. Of
2000 training pictures 200 are empty. Label 0 is in 1100 of the others and label 9 in 11. Which digit has which label is
the seed's choice. Frequent labels are together more often than with rare ones. Label 0 is in 85 % of the pictures of
the rare label 7, and label 8 in 10 of the 11 of label 9. In the 2000 test pictures, made of other images of digits, all
labels are equally frequent and independent, and a tenth are empty.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from lightning_fair.common.arrays import Floats, Ints

LABELS, SIDE, DIGIT = 10, 24, 8
PICTURES, EMPTY, MOST, RATIO = 2000, 200, 1100, 100
SHARE_WITH_0 = (0.75, 0.55, 0.2, 0.05, 0.05, 0.05, 0.85, 0.05, 0.05)  # of the pictures of each further label
PAIR = 10  # pictures with label 8 to which label 9 is added
NOISE = 0.1
TEST_IMAGES = 0.4  # part of the images of each digit

Bools = NDArray[np.bool_]


def make_data(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test data: pictures, labels of shape ``(N, 10)``, and a fixed value of each picture.

    The values are the sum of the numbers of a picture's labels and noise, standardized: their mean is 0.
    """
    rng = np.random.default_rng(seed)
    images, digits = load_digits(return_X_y=True)
    images = images.reshape(-1, DIGIT, DIGIT) / 16
    of_label = [images[rng.permutation((digits == digit).nonzero()[0])] for digit in rng.permutation(LABELS)]
    cuts = [int(TEST_IMAGES * len(part)) for part in of_label]
    train = [part[cut:] for part, cut in zip(of_label, cuts, strict=True)]
    test = [part[:cut] for part, cut in zip(of_label, cuts, strict=True)]
    return _pictures(train_labels(rng), train, rng), _pictures(even_labels(rng), test, rng)


def _pictures(labels: Bools, images: list[Floats], rng: np.random.Generator) -> TensorDataset:
    """Paste one of the images of each label of a picture, at random places."""
    canvases = rng.normal(0.0, NOISE, (len(labels), SIDE, SIDE))
    for canvas, row in zip(canvases, labels, strict=True):
        (chosen,) = row.nonzero()
        for label, (top, left) in zip(chosen, _places(len(chosen), rng), strict=True):
            canvas[top : top + DIGIT, left : left + DIGIT] += rng.choice(images[label])
    values = labels @ np.arange(LABELS) + rng.normal(size=len(labels))
    values = (values - values.mean()) / values.std()
    arrays = canvases[:, None], labels, values
    return TensorDataset(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))


def _places(size: int, rng: np.random.Generator) -> Ints:
    """Return the upper left corners of so many digits that do not overlap."""
    while True:
        corners = rng.integers(SIDE - DIGIT + 1, size=(size, 2))
        gaps = np.abs(corners[:, None] - corners[None]).max(axis=2)
        if (gaps[np.triu_indices(size, 1)] >= DIGIT).all():
            return corners


def label_counts() -> Ints:
    """Return the number of training pictures with each label: ``1100 / 100 ** ((k / 9) ** 1.5)``, rounded."""
    k = np.arange(LABELS)
    return np.rint(MOST / RATIO ** ((k / (LABELS - 1)) ** 1.5)).astype(np.int64)


def train_labels(rng: np.random.Generator) -> Bools:
    """Return which labels the training pictures have, shape ``(2000, 10)``; the empty ones are the last."""
    counts = label_counts()[1:]
    counts[-1] -= PAIR
    with_0 = np.rint(counts * SHARE_WITH_0).astype(np.int64)
    first = _fill(MOST, 1, with_0, rng)
    second = _fill(PICTURES - EMPTY - MOST, 2, counts - with_0, rng)
    first[:, 0] = True
    labels = np.concatenate([first, second, np.zeros((EMPTY, LABELS), np.bool_)])
    (free,) = (labels[:, -2] & ~labels[:, -1] & (labels.sum(axis=1) == 2)).nonzero()
    labels[rng.choice(free, PAIR, replace=False), -1] = True
    return labels


def _fill(size: int, least: int, counts: Ints, rng: np.random.Generator) -> Bools:
    """Give labels 1 to 9 to so many pictures each, at random, ``least`` or one more to each of ``size`` pictures."""
    labels = rng.permutation(np.arange(1, LABELS).repeat(counts))
    pictures = np.concatenate([np.arange(size).repeat(least), rng.permutation(size)])[: len(labels)]
    while True:
        _, kept = np.unique(pictures * LABELS + labels, return_index=True)
        twice = np.setdiff1d(np.arange(len(labels)), kept)  # a picture has the label already
        if not len(twice):
            break
        for place, other in zip(twice, rng.integers(len(labels), size=len(twice)), strict=True):
            labels[[place, other]] = labels[[other, place]]
    has_label = np.zeros((size, LABELS), np.bool_)
    has_label[pictures, labels] = True
    return has_label


def even_labels(rng: np.random.Generator) -> Bools:
    """Return which labels the test pictures have, two or three of all, each as likely; the empty ones are the last."""
    sizes = rng.integers(2, 4, size=PICTURES)
    sizes[-EMPTY:] = 0
    return rng.random((PICTURES, LABELS)).argsort(axis=1).argsort(axis=1) < sizes[:, None]


def with_none(labels: Bools) -> Bools:
    """Return labels with one more, of the pictures without any."""
    return np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1)


def reachable_shares(labels: Bools, target: Floats, tolerance: float = 0.1, least: float = 0.05) -> Floats:
    """Return shares of the labels that draws can bring, relative to their target, and as near to 1 as they can be.

    A draw picks a label ``k`` with probability ``p[k] >= least * target[k]``, and a picture that has it, whose other
    labels come along. Of all ``p`` this takes the one whose relative shares are least beyond ``tolerance``, in sum.

    Args:
        labels: Labels of the pictures, each with one at least, shape ``(N, K)``.
        target: Shares of the labels, shape ``(K,)``.
        tolerance: Difference from 1 that does not count.
        least: Part of its target with which each label is drawn for itself.

    Example:
        >>> labels = np.array([[True, False], [True, True]])
        >>> reachable_shares(labels, np.array([0.5, 0.5]), tolerance=0.0).round(3)  # label 1 comes with 0
        array([1.006, 0.994])
    """
    K = len(target)
    together = labels.T.astype(np.float64) @ labels
    comes = (together / together.diagonal()[:, None]).T / target[:, None]  # relative share of a label if k is drawn
    beyond, zero = np.eye(K), np.zeros((K, K))
    floor = least * target[:, None] - np.eye(K)
    result = linprog(
        np.repeat([0.0, 1.0], K),
        np.block([[comes, -beyond], [-comes, -beyond], [floor, zero]]),
        np.concatenate([np.full(K, 1 + tolerance), np.full(K, tolerance - 1), np.zeros(K)]),
        np.concatenate([target @ comes, np.zeros(K)])[None],
        [1.0],  # the shares add up to 1, so that `x` is `p` divided by the labels of a picture
    )
    shares: Floats = comes @ result.x[:K]
    return shares
