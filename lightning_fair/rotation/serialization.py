"""The saved form of a rotation, and the checks that anything read from outside must pass."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

LARGEST_NUMBER = 2**53 - 1  # integers beyond it are rounded by JavaScript, and by others that read JSON
LARGEST_COUNT = 10**9

_COUNTS, _INPUTS = "appearance_counts", ("N", "k", "start")
_MOST_DIGITS = 20  # more than any number that is allowed has
_SHOWN = 40  # characters of a wrong value that a message repeats
_INTEGER = re.compile(r"-?[0-9]{1,16}", re.ASCII)  # `int` alone would also take "1_0", " 1" and other digits


@dataclass(frozen=True)
class Saved:
    """What a saved text holds.

    Attributes:
        counts: Appearances of each number that came at least once.
        inputs: ``N``, ``k`` and ``start`` as they stand in the text, unchecked; None for counts alone.
    """

    counts: dict[int, int]
    inputs: tuple[Any, Any, Any] | None


def dump(counts: Mapping[int, int], inputs: tuple[int, int, int] | None = None) -> str:
    """Return counts, and inputs if there are any, as the JSON text that ``parse`` reads.

    Example:
        >>> dump({2: 1, 1: 3})
        '{"1": 3, "2": 1}'
    """
    flat = "{" + ", ".join([f'"{number}": {count}' for number, count in sorted(counts.items())]) + "}"
    if inputs is None:
        return flat
    named = "".join(f', "{name}": {value}' for name, value in zip(_INPUTS, inputs, strict=True))
    return f'{{"{_COUNTS}": {flat}{named}}}'


def parse(text: str) -> Saved:
    """Read what ``dump`` or the published fair batch app saved.

    Args:
        text: A JSON object of counts by number; or one with ``appearance_counts`` (such an object), ``N``,
            ``k`` and ``start``. 10.0 is 10.

    Returns:
        The counts, checked, and the inputs, unchecked.

    Raises:
        ValueError: If it is neither; the message is one sentence that says what is wrong.

    Example:
        >>> parse('{"1": 3, "2": 0}')
        Saved(counts={1: 3}, inputs=None)
        >>> parse('{"appearance_counts": {}, "N": 9, "k": 2, "start": 1}').inputs
        (9, 2, 1)
    """
    content = _object(text)
    if _COUNTS not in content:
        misplaced = [name for name in _INPUTS if name in content]
        if misplaced:
            raise ValueError(f'The JSON has "{misplaced[0]}" but no "{_COUNTS}": save it in full again.')
        return Saved(check_counts(_integer_keys(content)), None)
    counts = content[_COUNTS]
    if not isinstance(counts, dict):
        raise ValueError(f'"{_COUNTS}" must be an object of counts by number, got {show(counts)}.')
    absent = [name for name in _INPUTS if name not in content]
    if absent:
        raise ValueError(f'The JSON has "{_COUNTS}" but no "{absent[0]}": add it, or load the counts alone.')
    n, k, start = (content[name] for name in _INPUTS)
    return Saved(check_counts(_integer_keys(counts)), (n, k, start))


def check_counts(counts: Iterable[tuple[Any, Any]]) -> dict[int, int]:
    """Return the counts that are not zero, if all of them are what counts may be.

    Args:
        counts: Pairs of a number, within ``±(2**53 - 1)``, and its count, in ``[0, 10**9]``.

    Raises:
        ValueError: If a number or a count is not an integer, or out of its range.

    Example:
        >>> check_counts([(1, 3), (2, 0)])
        {1: 3}
    """
    checked: dict[int, int] = {}
    for number, count in counts:
        # The common case in one line: this runs for every count of a file.
        if type(count) is not int or type(number) is not int:
            number, count = _as_integers(number, count)
        if not -LARGEST_NUMBER <= number <= LARGEST_NUMBER:
            raise ValueError(f"Numbers must lie within ±{LARGEST_NUMBER}, got {show(number)}.")
        if count < 0:
            raise ValueError(f"Counts must not be negative, got {show(count)} for number {number}.")
        if count > LARGEST_COUNT:
            raise ValueError(f"Counts must be at most {LARGEST_COUNT:,}, got {show(count)} for number {number}.")
        if count:
            checked[number] = count
    return checked


def whole_number(name: str, value: Any) -> int:
    """Return ``value`` as a plain ``int``; ``name`` is for the message.

    Raises:
        TypeError: If it is not an integer. ``True`` is none, and 2.0 is none either.

    Example:
        >>> whole_number("k", 2.5)
        Traceback (most recent call last):
        TypeError: k must be a whole number, got 2.5.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {show(value)}.") from None


def show(value: Any) -> str:
    """Return a short form of a wrong value, for a message.

    Example:
        >>> show("a" * 100)
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    if isinstance(value, dict | list):  # also one that is too deep or too long to be written out
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _object(text: str) -> dict[str, Any]:
    text = text.removeprefix("\ufeff")  # some editors mark the beginning of UTF-8 with it
    if not text.strip():
        raise ValueError("There is nothing to load: the text is empty.")
    try:
        content = json.loads(text, object_pairs_hook=_no_key_twice, parse_int=_integer, parse_float=_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"The text is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    except RecursionError:
        raise ValueError("The text is no saved rotation: its JSON is nested too deeply.") from None
    if not isinstance(content, dict):
        raise ValueError(f'The JSON must be an object such as {{"1": 3, "2": 2}}, got {show(content)}.')
    return content


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"The JSON names {show(twice)} twice: keep one of them.")
    return content


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:  # `int` takes time that grows with the square of them, and refuses at 4300
        raise ValueError(f"The JSON has an integer of {len(digits)} digits: the largest count is {LARGEST_COUNT:,}.")
    return int(digits)


def _number(digits: str) -> int | float | Decimal:
    value = float(digits)
    if not value.is_integer():
        return value
    try:
        exact = Decimal(digits)  # a float rounds 3.0000000000000000001 to 3
    except InvalidOperation:  # an exponent of twenty digits
        return value
    return int(exact) if exact == exact.to_integral_value() else exact  # other programs write 10 as 10.0


def _integer_keys(content: dict[str, Any]) -> Iterable[tuple[int, Any]]:
    seen: set[int] = set()
    for key, count in content.items():
        if not _INTEGER.fullmatch(key):
            raise ValueError(f"The keys must be integers of at most 16 digits, got {show(key)}.")
        number = int(key)
        if number in seen:
            raise ValueError(f"The JSON names the number {number} twice: keep one of them.")
        seen.add(number)
        yield number, count


def _as_integers(number: Any, count: Any) -> tuple[int, int]:
    try:
        return whole_number("A number", number), whole_number(f"The count of number {show(number)}", count)
    except TypeError as error:
        raise ValueError(str(error)) from None
