"""Random rotations for the tests of ``rotation`` and ``app``, and text that neither may load."""

from hypothesis import strategies as st

from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.rotation.serialization import LARGEST_COUNT, LARGEST_NUMBER

starts = st.one_of(st.integers(-20, 20), st.sampled_from([-LARGEST_NUMBER, LARGEST_NUMBER - 200]))
seeds = st.integers(0, 10_000)


@st.composite
def sizes(draw, largest=40):
    """Arguments ``n``, ``k`` and ``start``."""
    n = draw(st.integers(1, largest))
    return n, draw(st.integers(1, n)), draw(starts)


@st.composite
def rotations(draw):
    """Rotations with counts that are even, uneven, huge, out of range on both sides, or none."""
    n, k, start = draw(sizes())
    numbers = st.integers(max(start - 10, -LARGEST_NUMBER), min(start + n + 10, LARGEST_NUMBER))
    counts = st.one_of(st.integers(0, 3), st.integers(0, 100), st.integers(LARGEST_COUNT - 2, LARGEST_COUNT))
    rotation = FairRotation(n, k, start, seed=draw(seeds))
    rotation.load_counts(draw(st.dictionaries(numbers, counts, max_size=60)))
    return rotation


def numbers_of(rotation):
    """The range that the rotation draws from."""
    return range(rotation.start, rotation.start + rotation.n)


def in_range(rotation):
    """Count of each number of the range."""
    counts = rotation.counts
    return {number: counts[number] for number in numbers_of(rotation)}


BAD_JSON = {
    "empty": ("", r"not JSON that can be loaded: Expecting value"),
    "space": (" \n", r"not JSON that can be loaded"),
    "unquoted key": ("{1: 2}", r"not JSON .* line 1 column 2"),
    "word": ("hello", r"not JSON"),
    "cut off": ('{"1": 2', r"not JSON"),
    "binary": ("\x00\x01", r"not JSON"),
    "list": ("[1, 2]", r"must be an object such as .*, got \[1, 2\]"),
    "number": ("3", r"must be an object .*, got 3"),
    "null": ("null", r"must be an object .*, got None"),
    "text": ('"1"', r"must be an object .*, got '1'"),
    "deep list": ("[" * 100_000, r"not JSON"),
    "deep object": ('{"1": ' * 100_000, r"not JSON"),
    "word key": ('{"cat": 1}', r"The keys must be integers of at most 16 digits, got 'cat'"),
    "float key": ('{"1.5": 1}', r"keys must be integers .* got '1\.5'"),
    "underscore key": ('{"1_0": 1}', r"keys must be integers"),
    "space key": ('{" 1": 1}', r"keys must be integers"),
    "Arabic key": ('{"\u0661": 1}', r"keys must be integers"),
    "empty key": ('{"": 1}', r"keys must be integers"),
    "HTML key": ('{"<img src=x onerror=alert(1)>": 1}', r"keys must be integers"),
    "long key": (f'{{"{"9" * 5000}": 1}}', r"keys must be integers"),
    "large key": ('{"9999999999999999": 1}', r"Numbers must lie within ±9007199254740991, got 9999999999999999"),
    "same key": ('{"1": 2, "1": 3}', r"a key occurs twice"),
    "same number": ('{"1": 2, "01": 3}', r"The number 1 must occur once .* got it twice"),
    "negative": ('{"1": -1}', r"Counts must lie in \[0, 1,000,000,000\], got -1 for number 1"),
    "fraction": ('{"1": 1.5}', r"The count of number 1 must be a whole number, got 1\.5"),
    "1e300": ('{"1": 1e300}', r"must be a whole number, got Decimal"),
    "near 3": ('{"1": 3.0000000000000000001}', r"must be a whole number, got Decimal"),
    "near 0": ('{"1": 1e-400}', r"must be a whole number, got Decimal"),
    "nearer 0": ('{"1": 1e-99999999999999999999}', r"must be a whole number, got Decimal"),
    "true": ('{"1": true}', r"must be a whole number, got True"),
    "null count": ('{"1": null}', r"must be a whole number, got None"),
    "text count": ('{"1": "2"}', r"must be a whole number, got '2'"),
    "object count": ('{"1": {}}', r"must be a whole number, got {}"),
    "NaN": ('{"1": NaN}', r"must be a whole number, got nan"),
    "infinity": ('{"1": 1e400}', r"must be a whole number, got inf"),
    "large count": ('{"1": 1000000001}', r"Counts must lie in .* got 1000000001 for number 1"),
    "5000 digits": (f'{{"1": {"9" * 5000}}}', r"not JSON that can be loaded: Exceeds the limit"),
    "counts number": ('{"appearance_counts": 3, "N": 1, "k": 1, "start": 1}', r"must be an object of counts .* got 3"),
    "no start": ('{"appearance_counts": {}, "N": 1, "k": 1}', r'must have "start"'),
    "no counts": ('{"N": 1, "k": 1, "start": 1}', r'must have "appearance_counts"'),
    "word key of full": ('{"appearance_counts": {"a": 1}, "N": 1, "k": 1, "start": 1}', r"keys must be integers"),
}
BAD_INPUTS = {
    "k above N": ('{"appearance_counts": {}, "N": 2, "k": 3, "start": 1}', r"k must lie in \[1, N\], got k = 3 for N"),
    "N 0": ('{"appearance_counts": {}, "N": 0, "k": 1, "start": 1}', r"N must lie in \[1, 10,000,000\], got 0"),
    "fraction N": ('{"appearance_counts": {}, "N": 2.5, "k": 1, "start": 1}', r"N must be a whole number, got 2\.5"),
    "text k": ('{"appearance_counts": {}, "N": 2, "k": "1", "start": 1}', r"k must be a whole number, got '1'"),
    "fraction start": (
        '{"appearance_counts": {}, "N": 2, "k": 1, "start": 4503599627370497.5000001}',
        r"start must be a whole number, got Decimal",
    ),
    "large start": (
        '{"appearance_counts": {}, "N": 1, "k": 1, "start": 9007199254740992.9999}',
        r"start must be a whole number, got Decimal",
    ),
    "list start": ('{"appearance_counts": {}, "N": 2, "k": 1, "start": [1]}', r"start must be .* got \[1\]"),
}
