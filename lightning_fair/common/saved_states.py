"""Checks of states that are loaded, and their checksum.

The specification of a state has its layout: a mapping has that of each key (or a single one under a type, ``str`` or
``int``, for any keys of that type), a list that of each element (or a single one for any number of elements), and a
leaf is a rule: a function that returns what is wrong with a value, or None.
"""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from lightning_fair.common.arrays import to_numpy
from lightning_fair.common.checks import show

Rule: TypeAlias = Callable[[Any], str | None]
Spec: TypeAlias = Any  # a rule, or a mapping or a list of specifications

LARGEST = 2**53  # of a counter: up to it every integer is a float, too
_ROUNDING = 1e-6  # of a sum of probabilities
_FINITE = sys.float_info.max  # compared before a conversion, which an integer beyond it has not


def check_version(owner: str, state: Any, version: int, key: str = "version", hint: str = "") -> None:
    """Refuse the state of another version; ``hint`` says what else it can be."""
    given = state.get(key) if isinstance(state, Mapping) else None
    if type(given) is not int or given != version:
        raise ValueError(
            f"This {owner} reads state version {version}, got {show(given)}{hint}. Resume with the version of "
            "lightning-fair, and the kind of data, that the checkpoint was made with."
        )


def check_state(owner: str, state: Any, spec: Spec, key: str = "") -> None:
    """Refuse a state that does not fit the specification.

    Raises:
        ValueError: If a key is missing, is unknown or has a value that it cannot have. The message names the key.
    """
    problem, parts = None, []
    if callable(spec):
        problem = spec(state)
    elif isinstance(spec, list):
        specs = spec * len(state) if len(spec) == 1 and isinstance(state, list) else spec
        if not isinstance(state, list) or len(state) != len(specs):
            problem = f"must be a list{f' of {len(spec)}' if len(spec) > 1 else ''}, got {show(state)}"
        else:
            parts = [(f"{key}[{i}]", *pair) for i, pair in enumerate(zip(state, specs, strict=True))]
    elif not isinstance(state, Mapping):
        problem = f"must be a mapping, got {show(state)}"
    else:
        kind = next(iter(spec))
        is_open = isinstance(kind, type)
        names = [name for name in state if type(name) is kind] if is_open else list(spec)
        missing, unknown = [x for x in names if x not in state], [x for x in state if x not in names]
        if missing or unknown:
            problem = f"has no {show(missing[0])}" if missing else f"has the unknown key {show(unknown[0])}"
        prefix = f"{key}." if key else ""
        parts = [] if problem else [(f"{prefix}{x}", state[x], spec[kind if is_open else x]) for x in names]
    if problem:
        raise ValueError(describe_damage(owner, f"{key or 'it'} {problem}"))
    for part in parts:
        check_state(owner, part[1], part[2], part[0])


def describe_damage(owner: str, problem: str) -> str:
    """Return the message about a state that is refused."""
    return (
        f"The {owner} state is damaged, edited, or of another version of lightning-fair: {problem}. Resume from "
        "another checkpoint."
    )


def integer(low: int = 0, high: int = LARGEST) -> Rule:
    """Return the rule of an integer in ``[low, high]``."""

    def problem(value: Any) -> str | None:
        is_right = type(value) is int and low <= value <= high
        return None if is_right else f"must be an integer in [{low}, {high}], got {show(value)}"

    return problem


def number(low: float = -math.inf, high: float = math.inf) -> Rule:
    """Return the rule of a finite number in ``[low, high]``."""

    def problem(value: Any) -> str | None:
        is_right = type(value) in (int, float) and max(low, -_FINITE) <= value <= min(high, _FINITE)
        return None if is_right else f"must be a finite number in [{low:g}, {high:g}], got {show(value)}"

    return problem


def array(
    *sizes: int | None,
    dtype: torch.dtype = torch.float64,
    low: float = -math.inf,
    high: float = math.inf,
    nan: bool = False,
    total: float | None = None,
) -> Rule:
    """Return the rule of a vector.

    Args:
        sizes: Sizes that it can have; None stands for any.
        dtype: Its type.
        low: Smallest value.
        high: Largest value.
        nan: Whether values can be NaN; none is infinite.
        total: Their sum, up to rounding.
    """

    def problem(value: Any) -> str | None:
        if not isinstance(value, torch.Tensor):
            return f"must be a tensor, got {show(value)}"
        if value.dtype is not dtype or value.ndim != 1 or not {len(value), None} & set(sizes):
            kind = f"{dtype}, shape ({' or '.join('n' if size is None else str(size) for size in sizes)},)"
            return f"must be a tensor of {kind}, got {value.dtype}, shape {tuple(value.shape)}"
        values = to_numpy(value)
        is_right = np.isfinite(values) & (values >= low - _ROUNDING) & (values <= high + _ROUNDING)
        wrong = ~(is_right | np.isnan(values)) if nan else ~is_right
        if wrong.any():
            place = int(wrong.argmax())
            return f"must be finite{' or NaN' if nan else ''}, in [{low:g}, {high:g}], got {values[place]} at {place}"
        if total is not None and abs(values.sum() - total) > _ROUNDING:
            return f"must have the sum {total:g}, got {values.sum():.9g}"
        return None

    return problem


def mix(num_classes: int) -> Rule:
    """Return the rule of a class mix."""
    return array(num_classes, low=0.0, high=1.0, total=1.0)


def corrected_mix(num_classes: int) -> Rule:
    """Return the rule of a trained mix, which a late correction can carry out of [0, 1] if a target becomes 0."""
    return array(num_classes, low=-1.0, high=2.0, total=1.0)


def counts(num_classes: int) -> Rule:
    """Return the rule of a number for each class."""
    return array(num_classes, dtype=torch.int64, low=0, high=LARGEST)


def one_of(*choices: str | None) -> Rule:
    """Return the rule of one of several words."""

    def problem(value: Any) -> str | None:
        is_right = isinstance(value, str | None) and value in choices
        return None if is_right else f"must be {' or '.join(map(repr, choices))}, got {show(value)}"

    return problem


def of_type(*types: type) -> Rule:
    """Return the rule of a value of one of these types."""

    def problem(value: Any) -> str | None:
        words = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
        return None if isinstance(value, types) else f"must be a {words}, got {show(value)}"

    return problem


def optional(rule: Rule) -> Rule:
    """Return the rule of a value that can be None."""
    return lambda value: None if value is None else rule(value)


def same(name: str, expected: Any) -> Rule:
    """Return the rule of a value that has to be that of this run; ``name`` is for the message."""

    def problem(value: Any) -> None:
        if type(value) is not type(expected) or value != expected:
            raise ValueError(
                f"The checkpoint was made with {name} = {show(value)}, this run has {expected}. Resume with the same "
                "data set and settings, or start without the checkpoint."
            )

    return problem


def check_order(owner: str, key: str, numbers: Sequence[int], limit: str, value: int) -> None:
    """Refuse numbers of draws that do not ascend to at most the ``value``, which ``limit`` describes."""
    if list(numbers) != sorted(numbers) or (numbers and numbers[-1] > value):
        problem = f"{key} must ascend to at most {limit}, {value}, got {show(list(numbers))}"
        raise ValueError(describe_damage(owner, problem))


def checksum(value: Any, crc: int = 0) -> int:
    """Return the CRC32 of nested mappings and lists of tensors and plain values.

    It does not depend on the order of keys, nor on the devices of the tensors; it depends on their types.

    Example:
        >>> checksum({"a": torch.zeros(2), "b": [1, None]}) == checksum({"b": [1, None], "a": torch.zeros(2)})
        True
    """
    if isinstance(value, torch.Tensor):
        values = to_numpy(value)
        return zlib.crc32(values.tobytes(), zlib.crc32(f"{value.dtype}{values.shape}".encode(), crc))
    parts: list[Any] = []
    if isinstance(value, Mapping):
        head, parts = f"mapping {len(value)}", [x for name in sorted(value, key=repr) for x in (name, value[name])]
    elif isinstance(value, list):
        head, parts = f"list {len(value)}", value
    else:
        head = repr(value)
    crc = zlib.crc32(f"{head};".encode(), crc)
    for part in parts:
        crc = checksum(part, crc)
    return crc
