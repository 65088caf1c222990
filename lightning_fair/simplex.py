"""Class mixes: points of the probability simplex, and batches apportioned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

TargetName: TypeAlias = Literal["uniform", "prior", "sqrt"]
Target: TypeAlias = TargetName | Mapping[int, float] | Sequence[float] | ArrayLike | None

_BLOCK, _MOST_DRAWS = 2**16, 256  # random numbers are made for so many samples, at most so many draws, at once
_SHUFFLES = 16  # a block's shuffles are made of so many inner ones and a few outer ones
_MOST_STRANDS = 2**13  # a running sum over more classes than this takes longer than the rest of a draw
_UNITS = 2.0**62  # of a mass, counted in whole numbers
_SUM_TOLERANCE = 1e-3  # float32 vectors and hand-written decimals pass; a forgotten class does not


def to_numpy(values: Any) -> Any:
    """Return a tensor, on any device and of any dtype, as a NumPy array; anything else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return values.float().numpy() if values.dtype is torch.bfloat16 else values.numpy()  # NumPy has no bfloat16


def check_mix(values: ArrayLike, num_classes: int, name: str = "target_probs") -> Floats:
    """Return ``values`` as a class mix: float64, shape ``(num_classes,)``, non-negative, summing to one.

    A sum that is off by rounding (up to 0.001) is scaled to one.

    Raises:
        ValueError: If the shape is wrong, or an entry is negative or not finite, or the sum is not one.

    Example:
        >>> check_mix([0.5, 0.25, 0.25], 3)
        array([0.5 , 0.25, 0.25])
    """
    try:
        mix = np.array(to_numpy(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, got {values!r}.") from error
    if mix.shape != (num_classes,):
        raise ValueError(f"{name} must have one entry per class, shape ({num_classes},), got shape {mix.shape}.")
    if not np.isfinite(mix).all():
        raise ValueError(
            f"{name} must be finite, got {mix[~np.isfinite(mix)][0]} for class {_first(~np.isfinite(mix))}."
        )
    if (mix < 0).any():
        raise ValueError(f"{name} must not be negative, got {mix[mix < 0][0]:g} for class {_first(mix < 0)}.")
    total = mix.sum()
    if abs(total - 1.0) > _SUM_TOLERANCE:
        raise ValueError(f"{name} must sum to one, got a sum of {total:g}. Divide it by its sum.")
    scaled: Floats = mix / total
    return scaled


def resolve_target(target: Target, num_classes: int, class_counts: ArrayLike | None = None) -> Floats:
    """Return the class mix that ``target`` describes.

    Args:
        target: One of

            - ``None`` or ``"uniform"``: every class alike, ``1 / K``;
            - ``"prior"``: the data set's own mix, ``n / sum(n)``;
            - ``"sqrt"``: between the two, ``sqrt(n) / sum(sqrt(n))``;
            - a vector of ``K`` probabilities;
            - a mapping from class to probability. What the named classes leave over is shared by the
              others alike.
        num_classes: Number of classes ``K``.
        class_counts: Samples of each class in the data set, shape ``(K,)``. Needed by the names
            ``"prior"`` and ``"sqrt"``.

    Returns:
        Float64 array of shape ``(K,)``, summing to one.

    Raises:
        ValueError: If the name is unknown, the counts are missing, or the numbers are not a class mix.

    Example:
        >>> resolve_target("sqrt", 2, class_counts=[9, 1])
        array([0.75, 0.25])
        >>> resolve_target({0: 0.5}, 3)
        array([0.5 , 0.25, 0.25])
    """
    if target is None or (isinstance(target, str) and target == "uniform"):
        return np.full(num_classes, 1.0 / num_classes)
    if isinstance(target, str):
        if target not in ("prior", "sqrt"):
            raise ValueError(f"target_probs must be 'uniform', 'prior', 'sqrt', a vector or a mapping, got {target!r}.")
        if class_counts is None:
            raise ValueError(
                f"target_probs={target!r} is computed from the data: "
                "pass class_counts=np.bincount(labels, minlength=num_classes)."
            )
        counts = np.asarray(to_numpy(class_counts), dtype=np.float64)
        share = counts if target == "prior" else np.sqrt(counts)
        return check_mix(share / max(share.sum(), 1.0), num_classes, f"the {target} of class_counts")
    if isinstance(target, Mapping):
        return _from_mapping(target, num_classes)
    return check_mix(target, num_classes)


def apply_floor(shares: Floats, floor: Floats, room: float | None = None) -> Floats:
    """Make a class mix of ``shares``, mixed with a floor so that no class falls below its ``floor``.

    ``p = (1 - sum(floor)) * shares / sum(shares) + floor``. Unlike clipping and dividing by the new sum, this keeps
    the floor exactly and the order of the classes.

    Args:
        shares: Not negative, with a positive sum, shape ``(K,)``. Worked on in place.
        floor: Least probability of each class, summing to less than one, shape ``(K,)``.
        room: ``1 - sum(floor)``, where it is known.

    Example:
        >>> apply_floor(np.array([5.0, 0.0, 0.0]), np.array([0.1, 0.1, 0.0]))
        array([0.9, 0.1, 0. ])
    """
    if room is None:
        room = 1.0 - np.add.reduce(floor)
    shares *= room / np.add.reduce(shares)
    shares += floor
    return shares


def distance(a: ArrayLike, b: ArrayLike) -> float:
    """Total variation distance of two class mixes, ``max_S |a(S) - b(S)| = sum|a - b| / 2``, in [0, 1].

    Example:
        >>> distance([0.99, 0.01], [0.5, 0.5])
        0.49
    """
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).sum() / 2.0)


class Split(NamedTuple):
    """A batch split over the classes, its samples class by class.

    Attributes:
        classes: Classes, each at most once, int64, shape ``(C,)``.
        counts: Samples of each, int64, shape ``(C,)``. None: one of each.
        begins: Place of the first sample of each, int64, shape ``(C,)``. None likewise.
    """

    classes: Ints
    counts: Ints | None
    begins: Ints | None

    @classmethod
    def of(cls, labels: Ints) -> Split:
        """Return the split whose samples have these labels, those of a class side by side.

        Example:
            >>> Split.of(np.array([2, 0, 0])).counts
            array([1, 2])
        """
        (ends,) = (labels[1:] != labels[:-1]).nonzero()
        if ends.size >= labels.size - 1:
            return cls(labels, None, None)
        begins = np.concatenate(([0], ends + 1))
        return cls(labels.take(begins), np.diff(begins, append=labels.size), begins)

    @property
    def sizes(self) -> Ints:
        """Samples of each of the classes, int64, shape ``(C,)``."""
        return np.ones_like(self.classes) if self.counts is None else self.counts

    @property
    def labels(self) -> Ints:
        """Class of each sample, int64, shape ``(size,)``; not to be written to."""
        return self.classes if self.counts is None else self.classes.repeat(self.counts)

    def tally(self, num_classes: int) -> Ints:
        """Return the samples of every class, int64, shape ``(num_classes,)``."""
        tally = np.zeros(num_classes, np.int64)
        tally[self.classes] = self.sizes
        return tally


def apportion(probs: Floats, size: int, order: Ints, start: float) -> Split:
    """Split a batch of ``size`` over the classes by systematic sampling.

    Lay the intervals ``size * p`` end to end in a random order of the classes and see in which the points
    ``u, u + 1, u + 2, ...`` lie, with one ``u`` uniform in [0, 1). Then the count of each class is the floor or
    the ceiling of ``size * p``, its expectation is exactly ``size * p``, and the counts sum to ``size``.
    The random order keeps two classes from always excluding each other.

    Args:
        probs: Class mix, float64, shape ``(K,)``, summing to one.
        size: Samples in the batch.
        order: A random permutation of ``range(K)``. Where classes are many, one of ``range(M)`` with a smaller
            ``M`` will do, and takes less time: it orders the strands of classes ``m, m + M, m + 2 * M, ...``.
        start: The ``u``. Off zero and one by more than rounding, it counts whole numbers alike.

    Returns:
        The split. A class of probability zero has no sample.

    Reference:
        W. G. Madow (1949), "On the theory of systematic sampling, II".

    Example:
        >>> apportion(np.array([0.5, 0.5]), 4, np.array([1, 0]), 0.5).labels
        array([1, 1, 0, 0])
    """
    K = probs.size
    if order.size < K:
        return Split.of(_by_strands(probs, size, order, start))
    if size < K:
        edges, points = _laid_out(probs[order], size, start)
        return Split.of(order.take(edges.searchsorted(points, side="right")))
    spots = np.empty(K + 1)
    spots[0] = (1.0 - start) / size
    probs.take(order, out=spots[1:], mode="clip")
    np.add.accumulate(spots, out=spots)
    spots *= np.array(size, np.float64)  # NumPy's own numbers make for quicker calls
    below = spots.astype(np.int64)  # points below each edge
    begins, ends = below[:-1], below[1:]
    if ends.item(-1) != size:  # by rounding
        np.minimum(ends, size, out=ends)
        ends[ends == ends[-1]] = size
    return Split(order, ends - begins, begins)


def _by_strands(probs: Floats, size: int, order: Ints, start: float) -> Ints:
    K, strands = probs.size, order.size
    whole = K // strands * strands
    masses = np.add.reduce(probs[:whole].reshape(-1, strands))
    masses[: K - whole] += probs[whole:]
    edges, points = _laid_out(masses[order], size, start)
    places = edges.searchsorted(points, side="right")
    # Within a strand the classes come in their own order, each of them a row of this table.
    first, rows = order.take(places), np.arange(0, K, strands)
    within = probs.take(first + rows[:, None], mode="clip")
    within[-1] *= first < K - rows[-1]
    for before, row in pairwise(within):  # a dozen rows for 100,000 classes; `accumulate` goes down column by column
        row += before
    points -= np.where(places > 0, edges[places - 1], 0)
    inside = points * np.array(1.0 / _UNITS)
    # By rounding a point may lie off its strand: then it is in the last class that has a probability.
    np.minimum(inside, np.nextafter(within[-1], 0.0), out=inside)
    labels: Ints = (within > inside).argmax(axis=0)
    labels *= np.array(strands)
    labels += first
    return labels


def _laid_out(masses: Floats, size: int, start: float) -> tuple[Ints, Ints]:
    """Return the upper edges of the intervals laid end to end, and the points, in whole numbers.

    So their sums are exact, and take a fifth of the time that those of floats take.
    """
    masses *= np.array(_UNITS)
    edges = masses.astype(np.int64)
    np.add.accumulate(edges, out=edges)
    step = edges.item(-1) // size
    first = min(int(start * step), step - 1)
    return edges, np.arange(first, first + size * step - step // 2, step)


class Chances:
    """The random numbers of draws, each a function of the seed and the number of the draw alone.

    To set up a generator takes as long as a draw, so they are made for a block of draws at once. The draws of a
    block share the order of the classes; each has its own start and its own shuffle, so its law is that of a draw
    with an order of its own.

    Args:
        seed: Seed, at least 0.
        num_classes: Number of classes ``K``.
        size: Samples of a batch.
        shuffled: Length of the shuffles. Default: ``size``.

    Example:
        >>> order, start, shuffle = Chances(seed=0, num_classes=3, size=4)(7)
        >>> sorted(order.tolist()), 0.0 < start < 1.0, sorted(shuffle.tolist())
        ([0, 1, 2], True, [0, 1, 2, 3])
    """

    def __init__(self, seed: int, num_classes: int, size: int, shuffled: int | None = None) -> None:
        self._seed, self._num_classes = seed, num_classes
        self._shuffled = size if shuffled is None else shuffled
        self._block = min(max(_BLOCK // size, 1), _MOST_DRAWS)
        self._number = self._first = -1
        self._ready: list[tuple[Ints, float, Ints]] = []  # from the first on

    def __call__(self, serial: int) -> tuple[Ints, float, Ints]:
        """Return the order of the classes (see :func:`apportion`), the start, and a shuffle of the batch."""
        ahead = serial - self._first
        if not 0 <= ahead < len(self._ready):
            number, place = divmod(serial, self._block)
            if number != self._number:
                self._roll(number)
            outer, ahead = divmod(place, _SHUFFLES)
            shuffles, starts = self._outer[outer].take(self._inner), self._starts[place - ahead :]
            self._ready = [(self._order, start, shuffle) for start, shuffle in zip(starts, shuffles, strict=False)]
            self._first = serial - ahead
        return self._ready[ahead]

    def _roll(self, number: int) -> None:
        rng = np.random.default_rng([self._seed, number])
        strands = self._num_classes
        if strands > _MOST_STRANDS:  # another number of strands brings other classes together
            strands = int(rng.integers(_MOST_STRANDS // 2, _MOST_STRANDS))
        self._order: Ints = rng.permutation(strands)
        self._starts: list[float] = ((rng.integers(0, 2**32, self._block) + 0.5) / 2**32).tolist()
        # Any two of these are independent: they differ in at least one of two random permutations.
        inner = min(self._block, _SHUFFLES)
        outer = -(-self._block // inner)
        random = rng.integers(0, 2**32, (outer + inner, self._shuffled), dtype=np.uint32).argsort(axis=1)
        self._outer: Ints = random[:outer]
        self._inner: Ints = random[outer:]
        self._number = number


def _from_mapping(target: Mapping[int, float], num_classes: int) -> Floats:
    unknown = [key for key in target if not (isinstance(key, (int, np.integer)) and 0 <= key < num_classes)]
    if unknown:
        raise ValueError(f"target_probs names class {unknown[0]!r}; classes are the integers 0 to {num_classes - 1}.")
    mix = np.full(num_classes, np.nan)
    for label, prob in target.items():
        mix[label] = prob
    others = np.isnan(mix) & ~np.isin(np.arange(num_classes), list(target))
    if others.any():
        rest = 1.0 - np.nansum(mix)
        if rest < -_SUM_TOLERANCE:
            raise ValueError(f"target_probs must sum to one, but the named classes already sum to {1.0 - rest:g}.")
        mix[others] = max(rest, 0.0) / others.sum()
    return check_mix(mix, num_classes)


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])
