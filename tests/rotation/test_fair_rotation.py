import json
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rotation_helpers import in_range, numbers_of, rotations, seeds, sizes

from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.rotation.serialization import LARGEST_COUNT, LARGEST_N, LARGEST_NUMBER


@given(size=sizes(), seed=seeds, batches=st.integers(1, 30))
def test_counts_differ_by_at_most_one(size, seed, batches):
    """From a fresh start no two counts ever differ by more than one."""
    rotation = FairRotation(*size, seed=seed)
    for _ in range(batches):
        rotation.next_batch()
        counts = in_range(rotation).values()
        assert max(counts) - min(counts) <= 1
    assert sum(rotation.counts.values()) == batches * rotation.k


@given(rotation=rotations(), batches=st.integers(1, 10))
def test_spread_never_grows(rotation, batches):
    """From any counts, the difference of the largest and the smallest count does not grow beyond one."""
    for _ in range(batches):
        before = in_range(rotation).values()
        spread = max(before) - min(before)
        rotation.next_batch(warn=False)
        after = in_range(rotation).values()
        assert max(after) - min(after) <= max(spread, 1)


@given(rotation=rotations(), batches=st.integers(1, 10))
def test_batch_takes_the_lowest_counts(rotation, batches):
    """A batch holds different numbers with the lowest counts, in ascending order of count, and counts only them."""
    for _ in range(batches):
        before = in_range(rotation)
        batch = rotation.next_batch(warn=False)
        assert len(set(batch)) == len(batch) == rotation.k
        assert [before[number] for number in batch] == sorted(before.values())[: rotation.k]
        expected = before | {number: min(before[number] + 1, LARGEST_COUNT) for number in batch}
        assert in_range(rotation) == expected


@pytest.mark.parametrize("count", [0, 1, 7])
def test_ties_are_random(count):
    """Numbers with equal counts are equally likely to be in a batch and to be its first."""
    first, chosen, draws = np.zeros(4), np.zeros(4), 4000
    rotation = FairRotation(n=4, k=2, seed=0)
    for _ in range(draws):
        rotation.load_counts(dict.fromkeys(range(1, 5), count))
        batch = rotation.next_batch()
        first[batch[0] - 1] += 1
        chosen[[number - 1 for number in batch]] += 1
    # Binomials of 1/4 and 1/2: one of eight comparisons exceeds four standard errors in one of 2000 runs.
    assert (np.abs(first / draws - 0.25) < 4 * np.sqrt(0.25 * 0.75 / draws)).all()
    assert (np.abs(chosen / draws - 0.5) < 4 * np.sqrt(0.25 / draws)).all()


@given(seed=seeds)
def test_lower_counts_are_shuffled(seed):
    """Equal counts below the highest count of a batch are in random order, too."""
    rotation = FairRotation(n=9, k=8, seed=seed)
    rotation.load_counts(dict.fromkeys(range(5, 10), 1))
    batch = rotation.next_batch()
    assert set(batch[:4]) == {1, 2, 3, 4}
    orders = set()
    for _ in range(40):  # all 40 draws in one of 24 orders: probability below 1e-50
        rotation.load_counts(dict.fromkeys(range(5, 10), 1))
        orders.add(tuple(rotation.next_batch()[:4]))
    assert len(orders) > 1


def test_seed_determines_the_batches():
    """The same seed gives the same batches; None gives new ones each time."""

    def batches(seed):
        rotation = FairRotation(n=50, k=7, seed=seed)
        return [rotation.next_batch() for _ in range(20)]

    assert batches(1) == batches(1) != batches(2)
    assert batches(None) != batches(None)


def test_batch_can_be_the_range():
    rotation = FairRotation(n=5, k=5, start=-2)
    assert sorted(rotation.next_batch()) == [-2, -1, 0, 1, 2]
    assert set(rotation.counts.values()) == {1}


def test_million_numbers_are_used_evenly():
    rotation = FairRotation(1_000_000, k=10_000, start=-500_000, seed=0)
    batches = [rotation.next_batch() for _ in range(5)]
    assert len({number for batch in batches for number in batch}) == 50_000


def test_counts_are_a_copy():
    """``counts`` holds the nonzero counts, in ascending order of number, and changes to it have no effect."""
    rotation = FairRotation(n=3, k=1)
    rotation.load_counts({2: 5, -1: 1, 1: 0, 7: 3})
    assert rotation.counts == {-1: 1, 2: 5, 7: 3}
    assert list(rotation.counts) == [-1, 2, 7]
    assert rotation.counts[1] == rotation.counts[99] == 0
    counts = rotation.counts
    counts[2] = 0
    assert rotation.counts[2] == 5


@given(rotation=rotations())
def test_arrays_hold_all_counts(rotation):
    """``to_arrays`` lists the range and the counted numbers outside, ascending, with their counts."""
    numbers, counts = rotation.to_arrays()
    assert numbers.tolist() == sorted({*numbers_of(rotation), *rotation.out_of_range})
    assert Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True))) == rotation.counts


@given(rotation=rotations(), size=sizes())
def test_resize_keeps_counts(rotation, size):
    before = rotation.counts
    rotation.resize(*size)
    assert (rotation.n, rotation.k, rotation.start) == size
    assert rotation.counts == before
    assert rotation.out_of_range == sorted(number for number in before if number not in numbers_of(rotation))
    assert set(rotation.next_batch(warn=False)) <= set(numbers_of(rotation))


@pytest.mark.parametrize("name", ["n", "k", "start"])
def test_sizes_are_read_only(name):
    """The counts belong to the sizes, so only ``resize`` changes them."""
    with pytest.raises(AttributeError):
        setattr(FairRotation(3, 2), name, 10)


def test_resize_changes_only_given_values():
    rotation = FairRotation(n=4, k=4, start=3, seed=0)
    rotation.next_batch()
    rotation.resize(n=2, k=2)
    rotation.next_batch(warn=False)
    rotation.resize(n=5, k=3)
    assert sorted(rotation.next_batch()) == [5, 6, 7]


@given(rotation=rotations(), size=sizes())
def test_clean_drops_counts_out_of_range(rotation, size):
    rotation.resize(*size)
    kept = {number: count for number, count in rotation.counts.items() if number in numbers_of(rotation)}
    rotation.clean()
    assert rotation.counts == kept
    assert rotation.out_of_range == []
    assert rotation.mismatch is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rotation.next_batch()


def test_counts_out_of_range_warn():
    """``next_batch`` warns of counts out of range, and names the first five."""
    rotation = FairRotation(n=3, k=1)
    rotation.load_counts(dict.fromkeys(range(8, 0, -1), 2))
    with pytest.warns(UserWarning, match=r"numbers outside 1 to 3 are ignored: 4, 5, 6, 7, 8\. clean\(\) drops them"):
        rotation.next_batch()
    rotation.load_counts(dict.fromkeys(range(1200), 1))
    assert rotation.mismatch == "Counts of numbers outside 1 to 3 are ignored: 0, 4, 5, 6, 7 and 1,192 more."


def test_reset_sets_all_counts_to_zero():
    rotation = FairRotation(n=3, k=2, start=5)
    rotation.load_counts({5: 1, 99: 4})
    rotation.reset()
    assert rotation.counts == {}
    assert rotation.mismatch is None
    assert (rotation.n, rotation.k, rotation.start) == (3, 2, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1), ValueError, r"N must lie in \[1, 10,000,000\], got 0"),
        ((5, 0), ValueError, r"k must lie in \[1, N\], got k = 0 for N = 5"),
        ((5, 6), ValueError, r"k must lie in \[1, N\], got k = 6 for N = 5: no number occurs twice in a batch"),
        ((2.5, 1), TypeError, r"N must be a whole number, got 2\.5"),
        ((5, True), TypeError, r"k must be a whole number, got True"),
        ((5, 1, "1"), TypeError, r"start must be a whole number, got '1'"),
        ((5, 1, None), TypeError, r"start must be a whole number, got None"),
        ((5, 1, 2**53), ValueError, r"must lie within ±9007199254740991, got 9007199254740992 to"),
        ((LARGEST_N + 1, 1), ValueError, r"got 10000001: a count is held for every number"),
        ((10**5000, 1), ValueError, r"got an integer of 16610 bits"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FairRotation(*arguments)


def test_refused_change_changes_nothing():
    rotation = FairRotation(n=5, k=2)
    rotation.load_counts({1: 3})
    with pytest.raises(ValueError, match="k must lie in"):
        rotation.resize(n=1)
    with pytest.raises(ValueError, match="got -1 for number 3"):
        rotation.load_counts({2: 1, 3: -1})
    assert (rotation.n, rotation.k, rotation.start, rotation.counts) == (5, 2, 1, {1: 3})


@pytest.mark.parametrize("counts", [[1, 2], None, 5, b"{}"])
def test_counts_must_be_mapping_or_text(counts):
    rotation = FairRotation(n=3, k=2)
    rotation.load_counts({1: 4})
    with pytest.raises(TypeError, match=r"^counts must be a mapping such as \{1: 3, 2: 2\} or its JSON, got .+\.$"):
        rotation.load_counts(counts)
    with pytest.raises(ValueError, match="not JSON"):
        rotation.load_counts("1, 2")
    assert rotation.counts == {1: 4}


def test_numpy_integers_are_integers():
    rotation = FairRotation(np.int64(5), np.int32(2), np.int8(1))
    rotation.load_counts({np.int64(1): np.int64(3)})
    assert json.loads(rotation.to_json()) == {"appearance_counts": {"1": 3}, "N": 5, "k": 2, "start": 1}


def test_largest_numbers_and_counts_are_exact():
    rotation = FairRotation(n=3, k=3, start=LARGEST_NUMBER - 2)
    rotation.load_counts({LARGEST_NUMBER: LARGEST_COUNT, -LARGEST_NUMBER: LARGEST_COUNT})
    rotation.next_batch(warn=False)
    assert rotation.counts[LARGEST_NUMBER] == rotation.counts[-LARGEST_NUMBER] == LARGEST_COUNT
    assert FairRotation.from_json(rotation.to_json()).counts == rotation.counts


def test_repr_is_short():
    rotation = FairRotation(n=1_000_000, k=2_000, start=-5)
    rotation.next_batch()
    assert repr(rotation) == "<FairRotation n=1000000, k=2000, start=-5: 2,000 with a count>"


@pytest.mark.slow
def test_import_does_not_import_gradio():
    code = "import lightning_fair.rotation.fair_rotation, lightning_fair.app.session, lightning_fair.app.simulation"
    subprocess.run([sys.executable, "-c", f"{code}, sys; assert 'gradio' not in sys.modules"], check=True)
