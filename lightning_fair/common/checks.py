"""Checks of arguments, and the rules of those that several constructors and functions share.

A value of another type is a ``TypeError``, any other that is not allowed, and any that is none of several words, a
``ValueError``. The message is one sentence: the argument, what is allowed, and a short form of the value.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, to_numpy

LARGEST_NUM_CLASSES = 2**24  # a vector of all classes takes 8 bytes each, and there are dozens of them
_LARGEST_INTEGER = 2**31 - 1

_NUMBERS = {
    "exponent": "[0, 1]",
    "feedback_gain": "[0, inf)",
    "horizon": "[1, inf)",
    "lambda1": "[0, inf)",
    "lambda2": "[0, inf)",
    "loss_ema_decay": "[0, 1)",
    "max_repeats": "[1, inf]",
    "max_w": "(0, inf]",
    "max_weight": "[1, inf]",
    "min_prob": "[0, 1)",
    "progress": "[0, 1]",
}
_INTEGERS = {
    "batch_size": (1, _LARGEST_INTEGER),
    "buffer_size": (1, _LARGEST_INTEGER),
    "epoch": (0, _LARGEST_INTEGER),
    "feedback_delay": (1, _LARGEST_INTEGER),
    "max_reuse": (1, _LARGEST_INTEGER),
    "num_classes": (1, LARGEST_NUM_CLASSES),
    "rank": (0, _LARGEST_INTEGER),
    "reads_per_sample": (1, _LARGEST_INTEGER),
    "seed": (0, None),
    "steps_per_epoch": (1, _LARGEST_INTEGER),
    "world_size": (1, _LARGEST_INTEGER),
}
_CHOICES = {
    "correction": ("weights", "logits", "none"),
    "empty_classes": ("error", "skip"),
    "feedback_mode": ("max", "min"),
    "feedback_to": ("draw", "objective"),
    "resume": ("continue", "restart"),
}
_FLAGS = ("counts_only", "higher_is_better", "normalize", "return_weights", "save_buffers", "several_labels", "warn")
RULES = frozenset((*_NUMBERS, *_INTEGERS, *_CHOICES, *_FLAGS))


def check(name: str, value: Any, *, optional: bool = False) -> Any:
    """Return the value of an argument that is called by one of the ``RULES``, or None, as a plain Python value."""
    if value is None and optional:
        return None
    if name in _NUMBERS:
        return check_number(name, value, _NUMBERS[name])
    if name in _INTEGERS:
        return check_integer(name, value, *_INTEGERS[name])
    if name in _CHOICES:
        return check_choice(name, value, _CHOICES[name])
    assert name in _FLAGS, name
    return check_flag(name, value)


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = _LARGEST_INTEGER) -> int:
    """Return an integer of Python, NumPy or torch, also one in an array without dimensions, as an ``int``.

    Raises:
        TypeError: If it is not an integer; a ``bool`` is not.
        ValueError: If it is out of range.
    """
    number = _to_scalar(value)
    is_integer = isinstance(number, Integral) and not isinstance(number, bool)
    if is_integer and maximum is not None and number > maximum:
        raise ValueError(f"{name} must be an integer of at most {maximum:,}, got {show(value)}.")
    if not is_integer or number < minimum:
        kind = ValueError if is_integer else TypeError
        raise kind(f"{name} must be an integer of at least {minimum}, got {show(value)}.")
    return int(number)


def check_number(name: str, value: Any, interval: str, hint: str = "") -> float:
    """Return a real number, also one in an array without dimensions, as a ``float``.

    Args:
        name: Name of the argument.
        value: Its value.
        interval: What is allowed, for example ``"[0, 1)"``, or ``"(0, inf]"`` with infinity.
        hint: More about it, for the message.

    Raises:
        TypeError: If it is not a number; a ``bool`` is not.
        ValueError: If it is not in the interval.
    """
    number = _to_scalar(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number in {interval}{hint}, got {show(value)}.")
    if not _is_in(number, interval):
        raise ValueError(f"{name} must lie in {interval}{hint}, got {show(value)}.")
    return float(number)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Return the value if it is one of the choices; a ``ValueError`` is raised if it is not."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices[:-1]))
        raise ValueError(f"{name} must be {listed} or {choices[-1]!r}, got {show(value)}.")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return a truth value as a ``bool``; a ``TypeError`` is raised if it is none."""
    flag = _to_scalar(value)
    if not isinstance(flag, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {show(value)}.")
    return bool(flag)


def check_text(name: str, value: Any, words: str) -> None:
    """Refuse what is neither None nor a text that is called ``words``, or is empty."""
    if value is not None and not (isinstance(value, str) and value):
        raise (ValueError if isinstance(value, str) else TypeError)(f"{name} must be {words}, got {show(value)}.")


def check_names(name: str, values: Any) -> list[str]:
    """Return a list of different names, at least one."""
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping, set, frozenset, torch.Tensor)):
        raise TypeError(f"{name} must be a list with a name of each class, got {show(values)}.")
    names = list(map(str, values))
    if not names or len(set(names)) < len(names):  # classes of one name would share their tags
        raise ValueError(f"{name} must be a list with a different name for each class, got {show(values)}.")
    return names


def check_number_of_names(names: Sequence[str] | None, num_classes: int | None) -> None:
    """Refuse ``class_names`` that do not name every class; nothing is compared with None."""
    if names is not None and num_classes is not None and len(names) != num_classes:
        raise ValueError(f"class_names must name every class: got {len(names)} names for {num_classes} classes.")


def check_type(name: str, value: Any, kinds: Any, words: str) -> None:
    """Raise a ``TypeError`` if the value is not of one of the kinds, which are called ``words``."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {words}, got {show(value)}.")


def check_array(name: str, values: Any, words: str = "a list or an array of numbers") -> NDArray[Any]:
    """Return values as an array, not copied if they are one; raise a ``TypeError`` if they cannot be one."""
    try:
        return np.asanyarray(to_numpy(values))
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths, or a tensor without values
        raise TypeError(f"{name} must be {words}, got {show(values)}.") from error


def check_numbers(name: str, values: Any) -> Floats:
    """Return real numbers as an array of float64, a copy.

    Raises:
        TypeError: If they are something else.
        ValueError: If one of them is too large.
    """
    array = check_array(name, values)
    if array.dtype.kind == "O" and array.ndim:
        array = np.array([_to_scalar(value) for value in array.flat], dtype=object).reshape(array.shape)
    is_real = array.dtype.kind == "O" and array.ndim and all(isinstance(value, Real) for value in array.flat)
    if not is_real and array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be a list or an array of numbers, got {show(values)}.")
    try:
        return array.astype(np.float64)
    except OverflowError as error:
        raise ValueError(f"{name} must be numbers that a float can hold, got {show(values)}.") from error


def show(value: Any) -> str:
    """Return a short form of a value, on one line and without addresses, for a message."""
    return re.sub(" at 0x[0-9a-f]+", "", " ".join(_short.repr(value).split()))


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60

    def repr_instance(self, x: Any, level: int) -> str:
        is_bare = getattr(type(x), "__repr__", None) is object.__repr__
        return type(x).__name__ if is_bare else super().repr_instance(x, level)

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of 4,300 digits.
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 128 else super().repr_int(x, level)


_short = _Short()


def _to_scalar(value: Any) -> Any:
    """Return the value of an array or a tensor without dimensions as a Python value; anything else as it is."""
    is_scalar = isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0
    return value.item() if is_scalar and not getattr(value, "is_meta", False) else value


@lru_cache  # some are checked at each batch
def _bounds(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _is_in(number: Any, interval: str) -> bool:
    try:
        number = float(number)
    except OverflowError:  # of an integer beyond every float
        return False
    low, high = _bounds(interval)
    is_inside: bool = low < number < high
    return is_inside or (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")
