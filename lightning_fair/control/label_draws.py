"""Draws of samples that have several labels: the mix of labels that they bring, and the weights of the samples.

A place of a batch is a class ``c``, drawn with probability ``p[c]``, and one of the ``n[c]`` samples of that class. So
a sample ``x`` is drawn with the probability ``pi(x) = sum of p[k] / n[k] over its labels k``, and it brings all of its
labels along.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.control.law import reciprocal

# Each label is drawn for itself with at least this fraction of its target, so that its samples are reached even if it
# comes along with others often enough.
_OWN_DRAWS = 0.05
# A step takes about a nanosecond for each pair of labels, and for some targets the last steps hardly change anything.
_TOLERANCE, _MAX_WORK, _MAX_STEPS = 1e-6, 4_000_000_000, 20_000


class RestingDraw:
    """The draws whose samples bring a mix of labels that is as near as possible to a target.

    A class ``c`` that is drawn brings ``A[c, j] = n[c, j] / n[c]`` labels ``j`` on average, with the number ``n[c, j]``
    of samples that have both. The label mix of draws with ``p`` is ``r = p A / sum(p A)``. This finds the ``p`` with
    the smallest relative entropy ``sum(q * log(q / r))``, and with ``p >= 0.05 * q``. It is that of a mixture whose
    components are known, so the steps of expectation maximization end at the best one.

    Args:
        target: Label mix ``q`` that is asked for, shape ``(K,)``.
        cooccurrence: ``n``, shape ``(K, K)``, with the samples of each class on its diagonal.
        start: Mix from which the steps begin, of any sum, shape ``(K,)``. None: the target.
        tolerance: How far the relative entropy may be above the smallest one.
        max_steps: Largest number of steps.

    Attributes:
        mix: Class mix ``p`` of the draws, shape ``(K,)``.
        labels: Label mix ``r`` that they bring, shape ``(K,)``.
        labels_per_draw: Mean number of labels of a drawn sample; one without a label counts as one.

    Reference:
        A. Dempster, N. Laird and D. Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (1977).

    Example:
        >>> rest = RestingDraw(np.array([0.5, 0.5]), np.array([[3, 1], [1, 1]]))  # label 1 comes with 0
        >>> rest.mix.round(3), rest.labels.round(3)
        (array([0.025, 0.975]), array([0.504, 0.496]))
    """

    def __init__(
        self,
        target: Floats,
        cooccurrence: Ints,
        *,
        start: Floats | None = None,
        tolerance: float = _TOLERANCE,
        max_steps: int = _MAX_STEPS,
    ) -> None:
        wanted, n = target > 0, cooccurrence.diagonal()
        brings = np.where(n[:, None] > 0, cooccurrence * reciprocal(n.astype(np.float64))[:, None], np.eye(n.size))
        component = (1.0 - _OWN_DRAWS) * brings + _OWN_DRAWS * (target @ brings)
        size = component.sum(axis=1)
        component /= size[:, None]
        to_wanted, asked = np.ascontiguousarray(component[:, wanted]), target[wanted]
        start = target if start is None else start
        share = start * size / (start @ size)
        for _ in range(min(_MAX_WORK // n.size**2, max_steps)):
            step = to_wanted @ (asked / (share @ to_wanted))
            if step[wanted].max() < 1.0 + tolerance:  # the relative entropy is at most so much above the smallest
                break
            share = share * step
        own = share / size
        self.mix: Floats = (1.0 - _OWN_DRAWS) * own / own.sum() + _OWN_DRAWS * target
        labels = self.mix @ brings
        self.labels_per_draw = float(labels.sum())
        self.labels: Floats = labels / self.labels_per_draw


@dataclass(frozen=True, eq=False)
class SampleWeights:
    """The weights ``w = ref(x) / pi(x)`` of samples that can have several labels.

    ``ref(x)`` is the share of a sample in what the loss stands for. With a reference mix ``m`` it is the probability of
    the sample in draws with ``m``: ``sum of m[k] / n[k]`` over its labels. ``reference="target"`` is the mix of the
    draws at rest (see :class:`RestingDraw`), whose labels have the target. With ``reference="prior"`` it is ``1 / N``:
    the weighted mean over the draws is the mean over all samples. If feedback multiplies the classes of the prior by
    ``f[k]``, it is the mean of ``f`` over the labels of the sample, divided by ``N``.

    The weights are unbiased for every ``p`` that the draws had, as far as each sample of a class is equally likely. It
    is, because the samples of a class come in passes of random order, unless ``p`` follows the samples within a pass.

    Attributes:
        counts: Samples ``n`` of each class, shape ``(K,)``.
        num_samples: Number of samples ``N``.
        prior: Share of each class if a sample counts for each of its labels in part, shape ``(K,)``; None unless the
            reference is the prior.
    """

    counts: Ints
    num_samples: int
    prior: Floats | None = None

    @classmethod
    def of(cls, labels: LabelSets, *, is_prior: bool) -> SampleWeights:
        """Return the weights of the samples of a data set; ``is_prior`` says that the reference is the prior."""
        return cls(labels.counts, labels.size, label_prior(labels) if is_prior else None)

    def rates(self, probs: Floats, reference: Floats) -> tuple[Floats, Floats]:
        """Return ``N * p / n`` and, of the reference, what :meth:`weigh` takes, both of shape ``(K,)``."""
        per_sample = self.num_samples * reciprocal(self.counts.astype(np.float64))
        if self.prior is None:
            return probs * per_sample, reference * per_sample
        return probs * per_sample, reference * reciprocal(self.prior)

    def weigh(self, labels: LabelSets, probs: Floats, reference: Floats) -> Floats:
        """Return the weight of each sample, shape ``(N,)``; 0 if it cannot be drawn."""
        drawn, wanted = (labels.sums(rates) for rates in self.rates(probs, reference))
        if self.prior is not None:
            wanted = wanted / labels.lengths
        return np.divide(wanted, drawn, out=np.zeros_like(wanted), where=drawn > 0)


def label_prior(labels: LabelSets) -> Floats:
    """Return the share of each class in the data if a sample counts for each of its labels in part, shape ``(K,)``."""
    parts = (1.0 / labels.lengths).repeat(labels.lengths)
    return np.bincount(labels.classes, weights=parts, minlength=labels.num_classes) / labels.size


def reached_classes(labels: LabelSets, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether each sample of a class has a class that is ``drawn``, shape ``(K,)``; true without samples."""
    is_lacking = (labels.sums(drawn.astype(np.float64)) == 0).repeat(labels.lengths)
    reached: NDArray[np.bool_] = np.bincount(labels.classes[is_lacking], minlength=labels.num_classes) == 0
    return reached
