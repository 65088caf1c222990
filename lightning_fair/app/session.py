"""One visitor of the page: their rotation, what they typed, and what their browser keeps of it."""

from __future__ import annotations

import base64
import binascii
import math
import threading
import zlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Literal, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from lightning_fair.rotation.fair_rotation import FairRotation, check_inputs
from lightning_fair.rotation.serialization import check_counts, parse, show, whole_number

LARGEST_N = 1_000_000
LARGEST_K = 10_000
MOST_COUNTS = 1_000_000  # numbers with a count, in range or not: what a visitor can make the server hold
LARGEST_FILE = 32 * 2**20  # bytes; a full save of a million counts, all as long as can be, has 33,000,077
PAGE_ROWS = 100
DEFAULTS = (10, 3, 1)

Order: TypeAlias = Literal["Number, up", "Number, down", "Least used", "Most used"]
ORDERS: tuple[Order, ...] = ("Number, up", "Number, down", "Least used", "Most used")

# Browsers keep about 5 million characters for a site; Gradio's encryption makes 4 of 3.
_LARGEST_KEPT = 3_000_000
_PACKED_VERSION = 1


class Session:
    """A visitor's rotation behind a lock: two clicks of one visitor can arrive at the same time.

    Every method that can refuse raises ``ValueError`` or ``TypeError`` with one sentence, and has then changed
    nothing.

    Attributes:
        rotation: The rotation.
        lock: To be held while reading the rotation.
        lost: Whether the counts were too many for the browser to keep, and the visitor is still to be told.

    Example:
        >>> session = Session()
        >>> len(session.generate(5, 2, 1)), session.rotation.n
        (2, 5)
    """

    def __init__(self, seed: int | None = None) -> None:
        self.rotation = FairRotation(*DEFAULTS, seed=seed)
        self.lock = threading.RLock()
        self.lost = False

    @property
    def inputs(self) -> tuple[int, int, int]:
        """``N``, ``k`` and ``start``."""
        return self.rotation.n, self.rotation.k, self.rotation.start

    def enter(self, n: Any, k: Any, start: Any) -> None:
        """Take over the inputs as they were typed; every count is kept."""
        inputs = check_entered(entered("N", n), entered("k", k), entered("start", start))
        with self.lock:
            if inputs != self.inputs:
                self.rotation.resize(*inputs)

    def generate(self, n: Any, k: Any, start: Any) -> list[int]:
        """Take over the inputs, draw a batch and return it."""
        inputs = check_entered(entered("N", n), entered("k", k), entered("start", start))
        with self.lock:
            n, k, start = inputs
            held = len(self.rotation.counts)
            if held + k > MOST_COUNTS:
                numbers = range(start, start + n)
                added = min(k, n - sum(number in numbers for number in self.rotation.counts))
                if held + added > MOST_COUNTS:
                    raise ValueError(
                        f"A session keeps the counts of at most {MOST_COUNTS:,} numbers, this one has {held:,}: "
                        "Clean counts drops those that are out of range."
                    )
            self.enter(*inputs)
            return self.rotation.next_batch(warn=False)  # the page shows `mismatch` instead

    def load(self, text: str, *, full: bool) -> str:
        """Load a saved text: its counts alone, or with its inputs. Return what was done, in one sentence."""
        if len(text) > LARGEST_FILE:
            raise ValueError(f"The text must have at most {LARGEST_FILE:,} characters, got {len(text):,}.")
        # Before it is parsed, which takes up to fifty times the room of the text. An object has one comma less
        # than pairs; a full save has three more, for the inputs, and a second brace.
        things = sum(map(text.count, ",[{"))
        if things > MOST_COUNTS + 4:
            raise ValueError(
                f"The JSON lists {things:,} things: a session keeps the counts of at most {MOST_COUNTS:,} numbers."
            )
        saved = parse(text)
        if len(saved.counts) > MOST_COUNTS:
            raise ValueError(
                f"A session keeps the counts of at most {MOST_COUNTS:,} numbers, the JSON has {len(saved.counts):,}."
            )
        what = f"Loaded {_counts_of(len(saved.counts))}"
        if not full or saved.inputs is None:
            with self.lock:
                self.rotation.load_counts(saved.counts)
            return f"{what}; there were no inputs to load with them." if full else f"{what}."
        n, k, start = check_entered(*saved.inputs)
        with self.lock:
            self.rotation.load_counts(saved.counts)
            self.rotation.resize(n, k, start)
        return f"{what}, and the inputs N = {n:,}, k = {k:,}, start = {start}."

    def clean(self) -> str:
        """Drop the counts out of range. Return what was done, in one sentence."""
        with self.lock:
            dropped = len(self.rotation.out_of_range)
            self.rotation.clean()
        return f"Dropped {_counts_of(dropped)} out of range."

    def reset(self) -> None:
        """Forget every count."""
        with self.lock:
            self.rotation.reset()

    def to_json(self, *, counts_only: bool) -> str:
        """Return what is saved; see :meth:`FairRotation.to_json`."""
        with self.lock:
            return self.rotation.to_json(counts_only=counts_only)

    # -- what the browser keeps ----------------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """Return the session in the form the browser keeps: the inputs and ``counts``, or ``too_many`` for these."""
        with self.lock:
            n, k, start = self.inputs
            kept = {"version": _PACKED_VERSION, "N": n, "k": k, "start": start}
            packed, held = pack_counts(self.rotation.counts), len(self.rotation.counts)
        if held > MOST_COUNTS or len(packed) > _LARGEST_KEPT:
            return kept | {"too_many": True}  # not nothing at all: an older copy would stay, and come back
        return kept | {"counts": packed}

    @classmethod
    def unpack(cls, kept: Any) -> Session | None:
        """Return the session that the browser kept; None where it kept none, or none that is sound."""
        session = cls()
        try:
            if kept["version"] != _PACKED_VERSION:
                return None
            inputs = check_entered(kept["N"], kept["k"], kept["start"])
            session.lost = bool(kept.get("too_many"))
            session.rotation.load_counts({} if session.lost else unpack_counts(kept["counts"]))
            session.rotation.resize(*inputs)
        except (ValueError, TypeError, KeyError):
            return None  # a browser can send anything: nothing of it is used
        return session


class Sessions:
    """The sessions that were used last, by visitor; any thread may ask.

    Args:
        most: Sessions to keep. Of the others none stays in memory, except for as long as it is in use.

    Example:
        >>> sessions = Sessions(most=1)
        >>> one = sessions.get("one", Session)
        >>> one is sessions.get("one", Session), sessions.get("two", lambda: None) is None
        (True, True)
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: OrderedDict[str, Session] = OrderedDict()
        # With those that made room but are in use: an event that overlaps must not bring them back a second time.
        self._alive: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._lock, self._making = threading.Lock(), threading.Lock()

    def get(self, visitor: str | None, make: Callable[[], Session | None]) -> Session | None:
        """Return the visitor's session; where there is none, what ``make`` returns. A visitor of None has none."""
        if visitor is None:
            return make()
        session = self._alive.get(visitor)
        if session is None:
            with self._making:  # one after the other: a million counts take a while, and memory
                session = self._alive.get(visitor)
                if session is None:
                    self._leave(self._most - 1)
                    session = make()
                    if session is None:
                        return None
                    self._alive[visitor] = session
        with self._lock:
            self._used[visitor] = session
            self._used.move_to_end(visitor)
        self._leave(self._most)
        return session

    def _leave(self, most: int) -> None:
        with self._lock:
            while len(self._used) > most:
                self._used.popitem(last=False)


@dataclass(frozen=True)
class Table:
    """A page of the table of counts.

    Attributes:
        rows: Number, count and remark of each row.
        page: Number of the page, from 1.
        pages: Number of pages.
    """

    rows: list[tuple[int, int, str]]
    page: int
    pages: int


def table(rotation: FairRotation, order: str = ORDERS[0], page: Any = 1, size: int = PAGE_ROWS) -> Table:
    """Return a page of the counts: every number of the range, and those out of range that have a count.

    By number it costs ``O(size)`` and a copy of the numbers out of range; by count, a sort of all rows' counts.

    Args:
        rotation: The rotation.
        order: One of ``ORDERS``; anything else is the first of them. Equal counts lie by rising number.
        page: Number of the page, from 1; the nearest there is, where there is no such page.
        size: Rows of a page.

    Example:
        >>> rotation = FairRotation(n=3, k=1)
        >>> rotation.load_counts({2: 4, 9: 1})
        >>> table(rotation, "Most used", size=2).rows
        [(2, 4, ''), (9, 1, 'out of range')]
    """
    numbers, outside, counts = rotation.numbers, rotation.out_of_range, rotation.counts
    total = len(numbers) + len(outside)
    pages = max(1, -(-total // size))
    chosen = int(page) if isinstance(page, int | float) and math.isfinite(page) else 1
    chosen = min(max(chosen, 1), pages)
    places = range((chosen - 1) * size, min(chosen * size, total))
    below = bisect_left(outside, numbers.start)

    def at(place: int) -> int:
        """Return the number at a place among all of them by rising number."""
        if place < below:
            return outside[place]
        return numbers[place - below] if place - below < len(numbers) else outside[place - len(numbers)]

    if order in ORDERS[2:]:
        column = np.zeros(total, dtype=np.int64)
        known, values = _columns(counts)
        inside = (known >= numbers.start) & (known < numbers.stop)
        column[below + known[inside] - numbers.start] = values[inside]
        column[:below] = [counts[number] for number in outside[:below]]
        column[below + len(numbers) :] = [counts[number] for number in outside[below:]]
        key = column if order == ORDERS[2] else column.max() - column
        # NumPy sorts 16-bit integers by radix, ten times as fast as wide ones.
        ranks = np.argsort(key.astype(np.min_scalar_type(key.max())), kind="stable")
        shown = [at(int(place)) for place in ranks[places.start : places.stop]]
    else:
        shown = [at(total - 1 - place if order == ORDERS[1] else place) for place in places]
    rows = [(number, counts[number], "" if number in numbers else "out of range") for number in shown]
    return Table(rows, chosen, pages)


def entered(name: str, value: Any) -> int:
    """Return what was typed into a field as an integer; browsers send 10 as 10.0 at times.

    Raises:
        TypeError: If it is not an integer.
    """
    if value is None:
        raise TypeError(f"{name} must be a whole number, and its field is empty.")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return whole_number(name, value)


def check_entered(n: Any, k: Any, start: Any) -> tuple[int, int, int]:
    """Return inputs that a rotation can have and the page has room for.

    Raises:
        ValueError: If one is out of its range.
        TypeError: If one is not an integer.
    """
    for name, value, largest in (("N", n, LARGEST_N), ("k", k, LARGEST_K)):
        if whole_number(name, value) > largest:
            raise ValueError(f"{name} must be at most {largest:,} on this page, got {show(value)}.")
    return check_inputs(n, k, start)


def file_text(text: str | None, size: float) -> str:
    """Return the text of a file that the browser read.

    Args:
        text: The text; None where the file is not UTF-8, or too large to have been read.
        size: Size of the file, in bytes.

    Raises:
        ValueError: If there is no text; the message says why.
    """
    if size > LARGEST_FILE:
        raise ValueError(f"A file must have at most {LARGEST_FILE // 2**20} MB, got {size / 2**20:,.0f} MB.")
    if text is None:
        raise ValueError("The file is not text (UTF-8): choose a JSON file that was saved here.")
    return text


def file_name(kind: str, now: datetime) -> str:
    """Return the name of a saved file, with its date and time.

    Example:
        >>> file_name("counts", datetime(2025, 1, 31, 12, 0, 5))
        'fair-rotation-counts-2025-01-31-120005.json'
    """
    return f"fair-rotation-{kind}-{now:%Y-%m-%d-%H%M%S}.json"


def pack_counts(counts: Mapping[int, int]) -> str:
    """Return counts as a short text: steps between rising numbers, and counts, compressed byte by byte.

    Half of a million numbers, drawn at random, take some 200,000 characters; as JSON it would be 7 million.

    Example:
        >>> unpack_counts(pack_counts({7: 2, 3: 1}))
        {3: 1, 7: 2}
    """
    numbers, values = _columns(counts)
    order = np.argsort(numbers)
    columns = np.stack([np.diff(numbers[order], prepend=0), values[order]])
    # The high bytes of all values, nearly all zero, lie together: it halves the text.
    planes = np.ascontiguousarray(columns.astype("<i8").view(np.uint8).reshape(-1, 8).T)
    return base64.b64encode(zlib.compress(planes.tobytes(), level=1)).decode("ascii")


def unpack_counts(packed: str) -> dict[int, int]:
    """Return the counts that ``pack_counts`` packed.

    Raises:
        ValueError: If it is not that, or has more counts than a session keeps.
        TypeError: If it is not text.
    """
    try:
        unzip = zlib.decompressobj()
        planes = unzip.decompress(base64.b64decode(packed, validate=True), MOST_COUNTS * 16)
    except (zlib.error, binascii.Error) as error:
        raise ValueError("The packed counts are damaged.") from error
    if unzip.unconsumed_tail or len(planes) % 16:
        raise ValueError("The packed counts are damaged.")
    columns = np.frombuffer(planes, np.uint8).reshape(8, -1).T.copy().view("<i8").reshape(2, -1)
    return check_counts(zip(np.cumsum(columns[0]).tolist(), columns[1].tolist(), strict=True))


def _counts_of(many: int) -> str:
    return "the count of 1 number" if many == 1 else f"the counts of {many:,} numbers"


def _columns(counts: Mapping[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = np.fromiter(chain.from_iterable(counts.items()), np.int64, 2 * len(counts))
    return pairs[0::2], pairs[1::2]
