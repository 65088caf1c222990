"""Rules of the page for one visitor's rotation: limits, loading, the table and the histogram. Knows no Gradio."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lightning_fair.common.checks import show
from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.rotation.serialization import check_inputs, parse, whole_number

LARGEST_N = 1_000_000
LARGEST_K = 10_000
LARGEST_FILE = 32 * 2**20  # bytes
MAX_COUNTS = 1_000_000  # numbers with a count in a file, and counted numbers out of range
MAX_COPIED = 100_000  # counts in the browser's copy: at most 4.7 of the 5 million characters that a site may store
TABLE_ROWS = 1_000
DEFAULTS = (10, 3, 1)
_MAX_BARS = 16
COPY_LOST = "The counts were too many for your browser to keep, so all are 0: press Load ... for a saved file."
COPY_DAMAGED = "The copy in your browser cannot be read, so all counts are 0: press Load ... for a saved file."
ORDERS = {"Number": 0, "Least used": 1, "Most used": -1}  # factor of the counts that the table is sorted by


@dataclass
class Visit:
    """What the server holds of a visitor.

    Attributes:
        rotation: Range and counts.
        batch: Text of the last batch, while the counts and the range are those that it led to; else empty.
        before: What the last reset, or its undo, has replaced.
    """

    rotation: FairRotation
    batch: str = ""
    before: Visit | None = None


def enter(visit: Visit, n: Any, k: Any, start: Any) -> None:
    """Apply the fields of the page to the rotation; every count is kept.

    Raises:
        ValueError: If a value is out of its range, or too many counts are out of range already.
        TypeError: If a value is not an integer.
    """
    rotation, inputs = visit.rotation, check_fields(n, k, start)
    if inputs == (rotation.n, rotation.k, rotation.start):
        return
    if len(rotation.out_of_range) > MAX_COUNTS:
        raise ValueError(
            f"At most {MAX_COUNTS:,} numbers out of range may have a count, got {len(rotation.out_of_range):,}: "
            "press Clean counts before you change the range."
        )
    rotation.resize(*inputs)
    visit.batch = ""


def check_fields(*fields: Any) -> tuple[int, int, int]:
    """Return ``N``, ``k`` and ``start`` as integers within the limits of the page; raise the errors of ``enter``."""
    n, k, start = map(_integer, ("N", "k", "start"), fields)
    for name, value, largest in (("N", n, LARGEST_N), ("k", k, LARGEST_K)):
        if value > largest:
            raise ValueError(f"{name} must be at most {largest:,} on this page, got {show(value)}.")
    return check_inputs(n, k, start)


def new_rotation(n: Any, k: Any, start: Any, seed: str | None) -> FairRotation:
    """Return a rotation without counts; an empty seed is random. Raise the errors of ``enter``, also for a seed."""
    inputs = check_fields(n, k, start)
    seed = (seed or "").strip()
    if not re.fullmatch("[0-9]{0,20}", seed):
        raise ValueError(
            f"seed must be a whole number of at least 0, got {show(seed)}: leave it empty for a random one."
        )
    return FairRotation(*inputs, seed=int(seed) if seed else None)


def load(visit: Visit, text: str, *, counts_only: bool = False) -> str:
    """Load a saved text into the rotation, and return a sentence that says so.

    Args:
        visit: Visit whose counts are replaced.
        text: JSON text of ``to_json``, with or without ``N``, ``k`` and ``start``.
        counts_only: Ignore ``N``, ``k`` and ``start`` of the text.

    Raises:
        ValueError: If the text is not such JSON or exceeds a limit. Nothing is changed then.
        TypeError: If ``N``, ``k`` or ``start`` is not an integer. Nothing is changed then.

    Example:
        >>> load(Visit(FairRotation(*DEFAULTS)), '{"1": 3, "2": 2}')
        'Counts loaded: 2.'
    """
    # Parsing takes up to fifty times the memory of the text, so count the elements first. An object has one comma
    # less than pairs; the full form has three more commas, for the inputs, and a second brace.
    if isinstance(text, str) and sum(map(text.count, ",[{")) > MAX_COUNTS + 4:
        raise ValueError(f"The JSON must hold the counts of at most {MAX_COUNTS:,} numbers, got more elements.")
    saved = parse(text)
    if len(saved.counts) > MAX_COUNTS:
        raise ValueError(f"The JSON must hold at most {MAX_COUNTS:,} counts, got {len(saved.counts):,}.")
    rotation, message = visit.rotation, f"Counts loaded: {len(saved.counts):,}."
    if saved.inputs is not None and not counts_only:
        rotation.resize(*check_fields(*saved.inputs))
        message += f" N = {rotation.n:,}, k = {rotation.k:,} and start = {rotation.start:,} are loaded, too."
    rotation.load_counts(saved.counts)
    visit.batch = ""
    return message


def clean(visit: Visit) -> str:
    """Drop the counts out of range, and return a sentence that says so."""
    dropped = len(visit.rotation.out_of_range)
    visit.rotation.clean()
    visit.batch = ""
    return f"Dropped the counts out of range: {dropped:,}."


def reset(visit: Visit, n: Any, k: Any, start: Any, seed: str | None) -> Visit:
    """Return a visit without counts, which keeps the one before if that has any; raise what ``new_rotation`` does."""
    rotation = new_rotation(n, k, start, seed)
    if not visit.rotation.to_arrays()[1].any():  # a second press of Reset
        return Visit(rotation, before=visit.before)
    visit.before = None
    return Visit(rotation, before=visit)


def undo(visit: Visit) -> Visit:
    """Return the visit before the last reset, which keeps the given one for the next undo; raise if none was reset."""
    if visit.before is None:
        raise ValueError("No reset can be undone: press Reset first.")
    before, visit.before = visit.before, None
    before.before = visit
    return before


def browser_copy(visit: Visit) -> tuple[str, bool, str]:
    """Return what the browser keeps: JSON, whether the counts are too many and left out, and the batch."""
    rotation = visit.rotation
    if int(np.count_nonzero(rotation.to_arrays()[1])) > MAX_COPIED:
        return FairRotation(rotation.n, rotation.k, rotation.start).to_json(), True, ""
    return rotation.to_json(), False, visit.batch


def restore(saved: Any) -> tuple[Visit, str]:
    """Return a visit from the browser's copy, which may be anything, and a warning if it has none of the counts."""
    visit = Visit(FairRotation(*DEFAULTS))
    if saved is None:
        return visit, ""
    try:
        text, is_lost, batch = saved
        load(visit, text)
    except (ValueError, TypeError):
        return visit, COPY_DAMAGED
    visit.batch = batch if isinstance(batch, str) else ""
    return visit, COPY_LOST if is_lost else ""


def read_file(path: str | Path | None) -> str:
    """Return the text of a file, and delete the file; raise a ``ValueError`` if none, over 32 MB or not UTF-8."""
    if path is None:
        raise ValueError("No file has come: choose one that was saved here.")
    file = Path(path)
    try:
        if (size := file.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"A file must have at most {LARGEST_FILE // 2**20} MB, got {size / 2**20:,.0f} MB.")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("The file must be text in UTF-8, got other bytes: choose a file saved here.") from error
    finally:
        file.unlink(missing_ok=True)


def file_name(now: datetime, *, counts_only: bool = False) -> str:
    """Return the name of a saved file, for example ``fair-rotation-full-2025-01-31-120005.json``."""
    return f"fair-rotation-{'counts' if counts_only else 'full'}-{now:%Y-%m-%d-%H%M%S}.json"


def histogram(rotation: FairRotation) -> tuple[list[str], list[int]]:
    """Return the labels and heights of at most 16 bars: how many numbers of the range have each count.

    The labels are aligned to the right, because the plot sorts them as text.

    Example:
        >>> rotation = FairRotation(n=3, k=1)
        >>> rotation.load_counts({2: 2})
        >>> histogram(rotation)
        (['0', '1', '2'], [2, 0, 1])
    """
    numbers, counts = rotation.to_arrays()
    counts = counts[_in_range(rotation, numbers)].astype(np.int64)
    low, high = int(counts.min()), int(counts.max())
    width = -(-(high - low + 1) // _MAX_BARS)
    lows = range(low, high + 1, width)
    labels = [f"{first:,}" if width == 1 else f"{first:,}-{first + width - 1:,}" for first in lows]
    longest = len(labels[-1])
    return [label.rjust(longest) for label in labels], np.bincount((counts - low) // width).tolist()


def table(rotation: FairRotation, order: str) -> list[tuple[int, int, str]]:
    """Return the first 1,000 rows of number, count and remark, in one of the ``ORDERS``; ties by number.

    Raises:
        ValueError: If the order is none of them.

    Example:
        >>> rotation = FairRotation(n=3, k=1)
        >>> rotation.load_counts({2: 4, 9: 1})
        >>> table(rotation, "Most used")[:2]
        [(2, 4, ''), (9, 1, 'out of range')]
    """
    if order not in [*ORDERS]:  # a list, because an order that no dict can look up is wrong as well
        raise ValueError(f"The order of the table must be {', '.join(ORDERS)}, got {show(order)}.")
    numbers, counts = rotation.to_arrays()
    shown = np.argsort(ORDERS[order] * counts, kind="stable")[:TABLE_ROWS]  # stable: ties stay in ascending order
    numbers, counts = numbers[shown], counts[shown]
    remarks = np.where(_in_range(rotation, numbers), "", "out of range")
    return list(zip(numbers.tolist(), counts.tolist(), remarks.tolist(), strict=True))


def _in_range(rotation: FairRotation, numbers: Any) -> Any:
    return (numbers >= rotation.start) & (numbers < rotation.start + rotation.n)


def _integer(name: str, value: Any) -> int:
    """Return the value of a field as an integer; browsers may send 10 as 10.0."""
    if value is None:
        raise TypeError(f"{name} must be a whole number, got an empty field.")
    return whole_number(name, int(value) if isinstance(value, float) and value.is_integer() else value)
