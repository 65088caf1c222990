"""JSON text of a rotation, and the checks of numbers that come from outside."""

from __future__ import annotations

import json
import operator
import re
import reprlib
from collections.abc import Iterable, Mapping
from decimal import Decimal, ExtendedContext
from typing import Any, NamedTuple

LARGEST_NUMBER = 2**53 - 1  # JavaScript and other readers of JSON round integers beyond it
LARGEST_COUNT = 10**9

_COUNTS, _INPUTS = "appearance_counts", ("N", "k", "start")
_INTEGER = re.compile(r"-?[0-9]{1,16}", re.ASCII)  # `int` alone would also read "1_0", " 1" and other digits


class Saved(NamedTuple):
    """Contents of a saved text: counts by number, and the unchecked ``N``, ``k``, ``start`` or None."""

    counts: dict[int, int]
    inputs: tuple[Any, Any, Any] | None


def dump(counts: Mapping[int, int], inputs: tuple[int, int, int] | None = None) -> str:
    """Return counts, and inputs if given, as the JSON text that ``parse`` reads."""
    return json.dumps(counts if inputs is None else {_COUNTS: counts, **dict(zip(_INPUTS, inputs, strict=True))})


def parse(text: str) -> Saved:
    """Read JSON text that ``dump`` or the published fair batch app saved.

    Args:
        text: A JSON object of counts by number; or one with ``appearance_counts`` (such an object), ``N``,
            ``k`` and ``start``. 10.0 is read as 10.

    Raises:
        ValueError: If the text is neither; the message is one sentence.

    Example:
        >>> parse('{"1": 3, "2": 0}')
        Saved(counts={1: 3, 2: 0}, inputs=None)
        >>> parse('{"appearance_counts": {}, "N": 9, "k": 2, "start": 1}').inputs
        (9, 2, 1)
    """
    if not isinstance(text, str):
        raise ValueError(f"The saved rotation must be a str of JSON, got {show(text)}: decode or read it first.")
    try:
        # The byte order mark, which some editors write first, is not JSON.
        content = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique_keys, parse_float=_parse_float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The text is not JSON that can be loaded: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f'The JSON must be an object such as {{"1": 3, "2": 2}}, got {show(content)}.')
    names = (_COUNTS, *_INPUTS)
    if not any(name in content for name in names):
        return Saved(_counts_by_text(content), None)
    for name in names:
        if name not in content:
            raise ValueError(f'The JSON must have "{name}" beside its other keys: add it, or load the counts alone.')
    if not isinstance(content[_COUNTS], dict):
        raise ValueError(f'"{_COUNTS}" must be an object of counts by number, got {show(content[_COUNTS])}.')
    n, k, start = (content[name] for name in _INPUTS)
    return Saved(_counts_by_text(content[_COUNTS]), (n, k, start))


def check_counts(counts: Iterable[tuple[Any, Any]]) -> dict[int, int]:
    """Return the counts of pairs of a number, within ``±(2**53 - 1)``, and its count, in ``[0, 10**9]``.

    Raises:
        ValueError: If a number or a count is not an integer or out of its range, or a number occurs twice.
    """
    checked: dict[int, int] = {}
    for number, count in counts:
        if type(number) is not int or type(count) is not int:  # skipped for speed with most files
            try:
                number, count = whole_number("A number", number), whole_number("A count", count)
            except TypeError as error:  # a wrong type in a mapping or a file is a wrong value
                raise ValueError(str(error)) from None
        if abs(number) > LARGEST_NUMBER:
            raise ValueError(f"Numbers must lie within ±{LARGEST_NUMBER}, got {show(number)}.")
        if not 0 <= count <= LARGEST_COUNT:
            raise ValueError(f"Counts must lie in [0, {LARGEST_COUNT:,}], got {show(count)} for number {number}.")
        if number in checked:
            raise ValueError(f"The number {number} must occur once in the counts, got it twice: keep one of them.")
        checked[number] = count
    return checked


def whole_number(name: str, value: Any) -> int:
    """Return ``value`` as a plain ``int``; raise a ``TypeError`` about ``name`` if it is not one. ``True`` is not."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {show(value)}.")
    return operator.index(value)


def show(value: Any) -> str:
    """Return a short form of a wrong value, for a message."""
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to write integers of 4,300 digits
        return f"an integer of {value.bit_length()} bits"
    return reprlib.repr(value)


def _counts_by_text(content: dict[str, Any]) -> dict[int, int]:
    for key in content:
        if not _INTEGER.fullmatch(key):
            raise ValueError(f"The keys must be integers of at most 16 digits, got {show(key)}.")
    return check_counts((int(key), count) for key, count in content.items())


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return content


def _parse_float(digits: str) -> int | float | Decimal:
    """Return 10.0 as 10, because other programs write integers so."""
    value = float(digits)
    if not value.is_integer():
        return value
    exact = Decimal(digits, ExtendedContext)  # the float of 3.0000000000000000001 is 3
    return int(value) if exact == value else exact
