"""JSON text of a rotation, and the checks of arguments and of loaded numbers."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal, ExtendedContext
from typing import Any, NamedTuple

from lightning_fair.common.checks import show

LARGEST_N = 10_000_000
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
    missing = [name for name in names if name not in content]
    if len(missing) == len(names):
        return Saved(_counts_by_text(content), None)
    if missing:
        raise ValueError(f'The JSON must have "{missing[0]}" beside its other keys: add it, or load the counts alone.')
    if not isinstance(content[_COUNTS], dict):
        raise ValueError(f'"{_COUNTS}" must be an object of counts by number, got {show(content[_COUNTS])}.')
    n, k, start = (content[name] for name in _INPUTS)
    return Saved(_counts_by_text(content[_COUNTS]), (n, k, start))


def read_counts(counts: Mapping[int, int] | str) -> dict[int, int]:
    """Return the checked counts of a mapping or a saved text; raise the errors of ``FairRotation.load_counts``."""
    if isinstance(counts, str):
        return parse(counts).counts
    if not hasattr(counts, "items"):
        raise TypeError(f"counts must be a mapping such as {{1: 3, 2: 2}} or its JSON, got {show(counts)}.")
    return _check_counts(counts.items())


def check_inputs(n: Any, k: Any, start: Any) -> tuple[int, int, int]:
    """Return ``n``, ``k`` and ``start`` as plain integers; raise the errors of ``FairRotation``."""
    n, k, start = whole_number("N", n), whole_number("k", k), whole_number("start", start)
    if not 1 <= n <= LARGEST_N:
        raise ValueError(
            f"N must lie in [1, {LARGEST_N:,}], got {show(n)}: a count is held for every number. Use a smaller range."
        )
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in [1, N], got k = {show(k)} for N = {n}: no number occurs twice in a batch.")
    if max(abs(start), abs(start + n - 1)) > LARGEST_NUMBER:
        raise ValueError(
            f"start to start + N - 1 must lie within ±{LARGEST_NUMBER}, got {show(start)} to {show(start + n - 1)}: "
            "programs that read JSON may round integers beyond that."
        )
    return n, k, start


def whole_number(name: str, value: Any, error: type[Exception] = TypeError) -> int:
    """Return ``value`` as a plain ``int``; raise ``error`` about ``name`` if it is not an integer. A bool is not."""
    with suppress(TypeError):
        if not isinstance(value, bool):
            return operator.index(value)
    raise error(f"{name} must be a whole number, got {show(value)}.")


def _counts_by_text(content: dict[str, Any]) -> dict[int, int]:
    for key in content:
        if not _INTEGER.fullmatch(key):
            raise ValueError(f"The keys must be integers of at most 16 digits, got {show(key)}.")
    return _check_counts((int(key), count) for key, count in content.items())


def _check_counts(counts: Iterable[tuple[Any, Any]]) -> dict[int, int]:
    """Return the counts of pairs of a number and its count. A wrong type in a mapping or a file is a wrong value."""
    checked: dict[int, int] = {}
    for number, count in counts:
        if type(number) is not int or type(count) is not int:  # skipped for speed with most files
            number, count = (
                whole_number("A number", number, ValueError),
                whole_number(f"The count of number {show(number)}", count, ValueError),
            )
        if abs(number) > LARGEST_NUMBER:
            raise ValueError(f"Numbers must lie within ±{LARGEST_NUMBER}, got {show(number)}.")
        if not 0 <= count <= LARGEST_COUNT:
            raise ValueError(f"Counts must lie in [0, {LARGEST_COUNT:,}], got {show(count)} for number {number}.")
        if number in checked:
            raise ValueError(f"The number {number} must occur once in the counts, got it twice: keep one of them.")
        checked[number] = count
    return checked


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
