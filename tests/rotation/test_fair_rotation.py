import contextlib
import gc
import itertools
import json
import random
import re
import subprocess
import sys
import threading
import time
import warnings
import weakref
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.app.charts import bar_chart, bin_counts, line_chart
from lightning_fair.app.session import (
    LARGEST_FILE,
    MOST_COUNTS,
    ORDERS,
    Session,
    Sessions,
    file_name,
    file_text,
    pack_counts,
    table,
    unpack_counts,
)
from lightning_fair.app.simulation import CLASSES, Settings, shares, simulate
from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.rotation.serialization import LARGEST_COUNT, LARGEST_NUMBER, dump, parse
from lightning_fair.rotation.sparse_counts import LazyShuffle, SparseCounts

starts = st.one_of(st.integers(-20, 20), st.sampled_from([-LARGEST_NUMBER, LARGEST_NUMBER - 200]))
seeds = st.integers(0, 10_000)


@st.composite
def sizes(draw, most=40):
    n = draw(st.integers(1, most))
    return n, draw(st.integers(1, n)), draw(starts)


@st.composite
def loaded(draw):
    """Rotations with counts of every kind: even, uneven, huge, out of range on both sides, or none."""
    n, k, start = draw(sizes())
    numbers = st.integers(max(start - 10, -LARGEST_NUMBER), min(start + n + 10, LARGEST_NUMBER))
    some = st.one_of(st.integers(0, 3), st.integers(0, 100), st.integers(LARGEST_COUNT - 2, LARGEST_COUNT))
    rotation = FairRotation(n, k, start, seed=draw(seeds))
    rotation.load_counts(draw(st.dictionaries(numbers, some, max_size=60)))
    return rotation


def inside(rotation):
    return {number: rotation.counts[number] for number in rotation.numbers}


def spread(rotation):
    counts = inside(rotation).values()
    return max(counts) - min(counts)


# -- the draw ------------------------------------------------------------------------------------------


@given(size=sizes(), seed=seeds, batches=st.integers(1, 30))
def test_counts_never_differ_by_more_than_one_from_a_fresh_start(size, seed, batches):
    rotation = FairRotation(*size, seed=seed)
    for _ in range(batches):
        rotation.next_batch()
        assert spread(rotation) <= 1
    assert sum(rotation.counts.values()) == batches * rotation.k


@given(rotation=loaded(), batches=st.integers(1, 10))
def test_spread_never_grows_from_any_counts(rotation, batches):
    for _ in range(batches):
        before = spread(rotation)
        rotation.next_batch(warn=False)
        # Counts that are all alike cannot stay so where a batch is smaller than the range.
        assert spread(rotation) <= max(before, 1)


@given(rotation=loaded(), batches=st.integers(1, 10))
def test_batch_is_what_a_scan_of_the_range_would_take(rotation, batches):
    for _ in range(batches):
        before = inside(rotation)
        batch = rotation.next_batch(warn=False)
        assert len(set(batch)) == len(batch) == rotation.k
        assert set(batch) <= set(rotation.numbers)
        taken = [before[number] for number in batch]
        assert taken == sorted(taken)
        assert taken == sorted(before.values())[: rotation.k]
        after = inside(rotation)
        assert {n for n in after if after[n] != before[n]} <= set(batch)
        assert all(after[n] == min(before[n] + 1, LARGEST_COUNT) for n in batch)


@given(rotation=loaded(), batches=st.integers(0, 5))
def test_tallies_count_the_range(rotation, batches):
    for _ in range(batches):
        rotation.next_batch(warn=False)
    values = list(inside(rotation).values())
    assert rotation.tallies == {count: values.count(count) for count in sorted(set(values))}
    assert list(rotation.tallies) == sorted(rotation.tallies)


@pytest.mark.parametrize("counts", [{}, {1: 1, 2: 1, 3: 1, 4: 1}, {1: 7, 2: 7, 3: 7, 4: 7}])
def test_ties_are_broken_at_random_evenly(counts):
    first, order, draws = np.zeros(4), np.zeros(4), 4000
    for seed in range(draws):
        rotation = FairRotation(n=4, k=2, seed=seed)
        rotation.load_counts(counts)
        batch = rotation.next_batch()
        first[batch[0] - 1] += 1
        order[[number - 1 for number in batch]] += 1
    # Binomials of 1/4 and 1/2: four standard errors of eight comparisons fail in one of 2000 runs; seeds are fixed.
    assert (np.abs(first / draws - 0.25) < 4 * np.sqrt(0.25 * 0.75 / draws)).all()
    assert (np.abs(order / draws - 0.5) < 4 * np.sqrt(0.25 / draws)).all()


def test_same_seed_gives_the_same_batches_and_no_global_state_is_used():
    def batches(seed):
        rotation = FairRotation(n=50, k=7, seed=seed)
        return [rotation.next_batch() for _ in range(20)]

    assert batches(1) == batches(1) != batches(2)
    assert batches(None) != batches(None)


def test_whole_range_can_be_a_batch():
    rotation = FairRotation(n=5, k=5, start=-2)
    assert sorted(rotation.next_batch()) == [-2, -1, 0, 1, 2]
    assert rotation.tallies == {1: 5}


@pytest.mark.parametrize("n", [1_000_000, 2**53])
def test_batch_from_a_million_numbers_takes_milliseconds(n):
    begin = time.process_time()
    rotation = FairRotation(n, k=10, start=1 - n // 2, seed=0)
    batches = [rotation.next_batch() for _ in range(1000)]
    # 1000 batches in 0.02 s of computing; a scan of a million numbers for each would take over 10 s.
    assert time.process_time() - begin < 1.0
    assert len({number for batch in batches for number in batch}) == 10_000


@given(size=sizes(), seed=seeds, data=st.data())
def test_lazy_shuffle_hands_out_every_other_number_once(size, seed, data):
    n, k, start = size
    numbers = range(start, start + n)
    without = data.draw(st.sets(st.sampled_from(numbers)))
    never, taken = LazyShuffle(numbers, without), []
    while never.size:
        taken += never.take(k, random.Random(seed))
    assert sorted(taken) == sorted(set(numbers) - without)


def test_counts_are_read_only_and_know_every_number():
    rotation = FairRotation(n=3, k=1)
    rotation.load_counts({2: 5})
    assert rotation.counts == {2: 5}
    assert rotation.counts[1] == rotation.counts.get(99) == 0
    assert 2 in rotation.counts
    assert 1 not in rotation.counts
    assert "2" not in rotation.counts
    with pytest.raises(TypeError):
        rotation.counts[1] = 3  # type: ignore[index]
    assert not {"set", "discard", "clear", "pop"} & set(dir(rotation.counts))
    assert rotation.counts.get("a") is rotation.counts.get(None) is rotation.counts.get(2.5) is None
    assert rotation.counts.get("a", 4) == 4
    with pytest.raises(KeyError):
        rotation.counts["a"]
    assert repr(SparseCounts({9: 1, 3: 2})) == "{3: 2, 9: 1}"


# -- range and counts ----------------------------------------------------------------------------------


@given(rotation=loaded(), size=sizes())
def test_resize_keeps_every_count(rotation, size):
    before = dict(rotation.counts)
    rotation.resize(*size)
    assert (rotation.n, rotation.k, rotation.start) == size
    assert rotation.counts == before
    assert rotation.out_of_range == sorted(number for number in before if number not in rotation.numbers)
    batch = rotation.next_batch(warn=False)
    assert set(batch) <= set(rotation.numbers)


@given(rotation=loaded(), size=sizes())
def test_clean_then_next_batch_never_warns(rotation, size):
    rotation.resize(*size)
    kept = {number: count for number, count in rotation.counts.items() if number in rotation.numbers}
    rotation.clean()
    assert rotation.counts == kept
    assert rotation.out_of_range == []
    assert rotation.mismatch is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rotation.next_batch()


def test_next_batch_warns_of_counts_out_of_range_and_names_them():
    rotation = FairRotation(n=3, k=1)
    rotation.load_counts(dict.fromkeys(range(8, 0, -1), 2))
    with pytest.warns(UserWarning, match=r"The counts of 5 numbers outside 1 to 3 are ignored: 4, 5, 6, 7, 8\. clean"):
        rotation.next_batch()
    rotation.load_counts(dict.fromkeys(range(1200), 1))
    assert rotation.mismatch == "The counts of 1,197 numbers outside 1 to 3 are ignored: 0, 4, 5, 6, 7 and 1,192 more."


def test_reset_forgets_every_count_and_keeps_the_range():
    rotation = FairRotation(n=3, k=2, start=5)
    rotation.load_counts({5: 1, 99: 4})
    rotation.reset()
    assert rotation.counts == {}
    assert rotation.mismatch is None
    assert (rotation.n, rotation.k, rotation.start) == (3, 2, 5)
    assert rotation.tallies == {0: 3}


def test_numbers_that_come_back_into_the_range_have_their_counts():
    rotation = FairRotation(n=4, k=4, seed=0)
    rotation.next_batch()
    rotation.resize(n=2, k=2)
    rotation.next_batch(warn=False)
    rotation.resize(n=5, k=3)
    assert sorted(rotation.next_batch()) == [3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 1), ValueError, r"N must be at least 1, got 0"),
        ((5, 0), ValueError, r"k must be at least 1, got 0"),
        ((5, 6), ValueError, r"k must be at most N, got k = 6 for N = 5: a batch never holds a number twice"),
        ((2.5, 1), TypeError, r"N must be a whole number, got 2\.5"),
        ((5, True), TypeError, r"k must be a whole number, got True"),
        ((5, 1, "1"), TypeError, r"start must be a whole number, got '1'"),
        ((5, 1, None), TypeError, r"start must be a whole number, got None"),
        ((5, 1, 2**53), ValueError, r"must lie within ±9007199254740991, got 9007199254740992 to"),
        ((10**5000, 1), ValueError, r"must lie within"),
    ],
)
def test_bad_arguments_are_refused_with_the_rule(arguments, error, message):
    with pytest.raises(error, match=message):
        FairRotation(*arguments)


def test_refused_change_changes_nothing():
    rotation = FairRotation(n=5, k=2)
    rotation.load_counts({1: 3})
    with pytest.raises(ValueError, match="k must be at most N"):
        rotation.resize(n=1)
    with pytest.raises(ValueError, match="must not be negative"):
        rotation.load_counts({2: 1, 3: -1})
    assert (rotation.n, rotation.k, rotation.start, dict(rotation.counts)) == (5, 2, 1, {1: 3})


def test_numpy_integers_are_integers():
    rotation = FairRotation(np.int64(5), np.int32(2), np.int8(1))
    rotation.load_counts({np.int64(1): np.int64(3)})
    assert json.loads(rotation.to_json()) == {"appearance_counts": {"1": 3}, "N": 5, "k": 2, "start": 1}


# -- saving ----------------------------------------------------------------------------------------------


@given(rotation=loaded(), batches=st.integers(0, 5))
def test_save_and_load_round_trip(rotation, batches):
    for _ in range(batches):
        rotation.next_batch(warn=False)
    again = FairRotation.from_json(rotation.to_json())
    assert (again.n, again.k, again.start) == (rotation.n, rotation.k, rotation.start)
    assert again.counts == rotation.counts
    assert again.to_json() == rotation.to_json()
    assert again.tallies == rotation.tallies
    flat = parse(rotation.to_json(counts_only=True))
    assert (flat.counts, flat.inputs) == (dict(rotation.counts), None)


@given(rotation=loaded())
def test_saved_text_is_what_json_would_write(rotation):
    flat = {str(number): rotation.counts[number] for number in sorted(rotation.counts)}
    assert rotation.to_json(counts_only=True) == json.dumps(flat)
    inputs = {"N": rotation.n, "k": rotation.k, "start": rotation.start}
    assert rotation.to_json() == json.dumps({"appearance_counts": flat} | inputs)


def test_files_of_the_published_app_load():
    # It writes every number of its range, with two spaces of indent.
    full = json.dumps({"appearance_counts": {"1": 2, "2": 0, "3": 1}, "N": 3, "k": 2, "start": 1}, indent=2)
    rotation = FairRotation.from_json(full)
    assert (dict(rotation.counts), rotation.n, rotation.k) == ({1: 2, 3: 1}, 3, 2)
    assert parse(json.dumps({"7": 2, "2": 0}, indent=2)).counts == {7: 2}


def test_whole_numbers_written_as_floats_load():
    full = '{"appearance_counts": {"1": 2.0, "2": -0.0, "3": 1e1}, "N": 3.0, "k": 2.0, "start": 1.0}'
    rotation = FairRotation.from_json(full)
    assert rotation.to_json() == '{"appearance_counts": {"1": 2, "3": 10}, "N": 3, "k": 2, "start": 1}'
    session = Session()
    session.load(full, full=True)
    assert session.rotation.to_json() == rotation.to_json()


BAD_JSON = [
    ("", r"There is nothing to load: the text is empty"),
    (" \n", r"There is nothing to load"),
    ("{1: 2}", r"The text is not JSON: .* in line 1, column 2"),
    ("hello", r"The text is not JSON"),
    ('{"1": 2', r"The text is not JSON"),
    ("\x00\x01", r"The text is not JSON"),
    ("[1, 2]", r"must be an object such as .*, got a list"),
    ("3", r"must be an object .*, got 3"),
    ("null", r"must be an object .*, got None"),
    ('"1"', r"must be an object .*, got '1'"),
    ("[" * 100_000, r"nested too deeply|not JSON"),
    ('{"1": ' * 100_000, r"nested too deeply|not JSON"),
    ('{"cat": 1}', r"The keys must be integers of at most 16 digits, got 'cat'"),
    ('{"1.5": 1}', r"keys must be integers .* got '1\.5'"),
    ('{"1_0": 1}', r"keys must be integers"),
    ('{" 1": 1}', r"keys must be integers"),
    ('{"\u0661": 1}', r"keys must be integers"),
    ('{"": 1}', r"keys must be integers"),
    ('{"<img src=x onerror=alert(1)>": 1}', r"keys must be integers"),
    (f'{{"{"9" * 5000}": 1}}', r"keys must be integers"),
    ('{"9999999999999999": 1}', r"Numbers must lie within ±9007199254740991, got 9999999999999999"),
    ('{"1": 2, "1": 3}', r"The JSON names '1' twice"),
    ('{"1": 2, "01": 3}', r"The JSON names the number 1 twice"),
    ('{"1": -1}', r"Counts must not be negative, got -1 for number 1"),
    ('{"1": 1.5}', r"The count of number 1 must be a whole number, got 1\.5"),
    ('{"1": 1e300}', r"Counts must be at most 1,000,000,000, got an integer of 997 bits"),
    ('{"1": true}', r"must be a whole number, got True"),
    ('{"1": null}', r"must be a whole number, got None"),
    ('{"1": "2"}', r"must be a whole number, got '2'"),
    ('{"1": {}}', r"must be a whole number, got an object"),
    ('{"1": NaN}', r"must be a whole number, got nan"),
    ('{"1": 1e400}', r"must be a whole number, got inf"),
    ('{"1": 3.0000000000000000001}', r"must be a whole number, got 3\.0000000000000000001"),
    ('{"1": 1e-400}', r"must be a whole number, got 1E-400"),
    ('{"1": 1e-99999999999999999999}', r"must be a whole number, got 0\.0"),
    ('{"1": 1000000001}', r"Counts must be at most 1,000,000,000, got 1000000001 for number 1"),
    (f'{{"1": {"9" * 5000}}}', r"an integer of 5000 digits: the largest count is 1,000,000,000"),
    ('{"appearance_counts": 3, "N": 1, "k": 1, "start": 1}', r'"appearance_counts" must be an object .* got 3'),
    ('{"appearance_counts": {}, "N": 1, "k": 1}', r'has "appearance_counts" but no "start"'),
    ('{"N": 1, "k": 1, "start": 1}', r'has "N" but no "appearance_counts"'),
    ('{"appearance_counts": {"a": 1}, "N": 1, "k": 1, "start": 1}', r"keys must be integers"),
]
BAD_INPUTS = [
    ('{"appearance_counts": {}, "N": 2, "k": 3, "start": 1}', r"k must be at most N, got k = 3 for N = 2"),
    ('{"appearance_counts": {}, "N": 0, "k": 1, "start": 1}', r"N must be at least 1"),
    ('{"appearance_counts": {}, "N": 2.5, "k": 1, "start": 1}', r"N must be a whole number, got 2\.5"),
    ('{"appearance_counts": {}, "N": 2, "k": "1", "start": 1}', r"k must be a whole number, got '1'"),
    (
        '{"appearance_counts": {}, "N": 2, "k": 1, "start": 4503599627370497.5000001}',
        r"start must be a whole number, got 4503599627370497\.5000001",
    ),
    (
        '{"appearance_counts": {}, "N": 1, "k": 1, "start": 9007199254740992.9999}',
        r"start must be a whole number, got 9007199254740992\.9999",
    ),
    ('{"appearance_counts": {}, "N": 2, "k": 1, "start": [1]}', r"start must be a whole number, got a list"),
]


@pytest.mark.parametrize(("text", "message"), BAD_JSON + BAD_INPUTS)
def test_bad_text_is_refused_with_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        FairRotation.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_counts_alone_are_no_rotation_and_the_message_says_what_to_do():
    remedy = r"counts alone .* make a FairRotation\(n, k, start\) and pass the text to its load_counts\.$"
    with pytest.raises(ValueError, match=remedy):
        FairRotation.from_json('{"1": 2}')
    rotation = FairRotation(n=3, k=1)
    rotation.load_counts('{"1": 2}')
    assert rotation.counts == {1: 2}


@given(rotation=loaded(), counts_only=st.booleans())
def test_counts_load_from_saved_text_of_either_kind(rotation, counts_only):
    again = FairRotation(n=3, k=2, start=7)
    again.load_counts(rotation.to_json(counts_only=counts_only))
    assert again.counts == rotation.counts
    assert (again.n, again.k, again.start) == (3, 2, 7)


@pytest.mark.parametrize("counts", [[1, 2], None, 5, b"{}"])
def test_counts_that_are_no_mapping_are_refused_with_what_is_one(counts):
    rotation = FairRotation(n=3, k=2)
    rotation.load_counts({1: 4})
    with pytest.raises(TypeError, match=r"^The counts must be a mapping such as \{1: 3, 2: 2\} or its JSON, got .+\.$"):
        rotation.load_counts(counts)
    with pytest.raises(ValueError, match="not JSON"):
        rotation.load_counts("1, 2")
    assert rotation.counts == {1: 4}


def test_rotation_shows_itself_in_short():
    rotation = FairRotation(n=1_000_000, k=2_000, start=-5)
    rotation.next_batch()
    assert repr(rotation) == "<FairRotation n=1000000, k=2000, start=-5: 2,000 with a count>"


@pytest.mark.parametrize("text", [b"{}", None, 5, {"1": 2}])
def test_what_is_no_text_is_refused_with_the_remedy(text):
    with pytest.raises(ValueError, match=r"must be a str of JSON, got .*: decode or read it first\.$"):
        FairRotation.from_json(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        parse(text)


# -- a visitor's session -----------------------------------------------------------------------------------


@given(rotation=loaded())
def test_what_the_browser_keeps_brings_the_session_back(rotation):
    session = Session()
    session.rotation = rotation
    again = Session.unpack(json.loads(json.dumps(session.pack())))
    assert again.rotation.to_json() == rotation.to_json()


def test_half_of_a_million_random_counts_fit_into_the_browser():
    numbers = np.random.default_rng(0).permutation(1_000_000)[:500_000].tolist()
    packed = pack_counts(dict.fromkeys(numbers, 1))
    assert len(packed) < 300_000
    assert len(unpack_counts(packed)) == 500_000


def test_counts_too_many_for_the_browser_leave_a_mark_that_says_so():
    session = Session()
    session.enter(20, 4, -3)
    numbers = np.random.default_rng(0).integers(1, 10**9, MOST_COUNTS).tolist()
    session.rotation.load_counts(dict(enumerate(numbers)))
    mark = {"version": 1, "N": 20, "k": 4, "start": -3, "too_many": True}
    assert session.pack() == mark
    again = Session.unpack(json.loads(json.dumps(mark)))
    assert again is not None
    assert (again.inputs, dict(again.rotation.counts), again.lost) == ((20, 4, -3), {}, True)
    assert not Session.unpack(again.pack()).lost
    # Few characters, and yet more counts than are read back.
    session.rotation.load_counts(dict.fromkeys(range(MOST_COUNTS + 1), 1))
    assert session.pack() == mark


GOOD = {"version": 1, "N": 5, "k": 2, "start": 1, "counts": pack_counts({1: 2})}


@pytest.mark.parametrize(
    "kept",
    [
        None,
        3,
        "text",
        [],
        {},
        GOOD | {"version": 2},
        GOOD | {"N": 2_000_000},
        GOOD | {"k": 9},
        GOOD | {"start": "1"},
        GOOD | {"counts": None},
        GOOD | {"counts": 3},
        GOOD | {"counts": "###"},
        GOOD | {"counts": "é"},
        GOOD | {"counts": b64encode(b"no zlib").decode()},
        GOOD | {"counts": b64encode(zlib.compress(b"12345")).decode()},
        GOOD | {"counts": b64encode(zlib.compress(bytes(20_000_000))).decode()},
        GOOD | {"counts": pack_counts({1: -3})},
        GOOD | {"too_many": True, "N": 0},
    ],
)
def test_browser_storage_that_is_not_sound_gives_no_session(kept):
    assert Session.unpack(kept) is None


def test_sound_browser_storage_is_taken():
    session = Session.unpack(GOOD)
    assert (session.inputs, dict(session.rotation.counts)) == ((5, 2, 1), {1: 2})


def test_sessions_used_last_are_kept_and_no_other_stays_in_memory():
    sessions, made = Sessions(most=3), []

    def get(visitor):
        session = sessions.get(visitor, Session)
        made.append(weakref.ref(session))
        return session

    gc.disable()  # so that a cycle would keep them
    try:
        for visitor in "abcadeafa":
            get(visitor)
            assert len({id(one()) for one in made if one()}) <= 3
        assert len({id(one()) for one in made if one()}) == 3
    finally:
        gc.enable()
    kept, again = made[-1](), get("a")
    assert kept is again  # of the first: it was used again and again
    for visitor in "xyz":
        get(visitor)
    assert get("a") is again  # it made room, and is in use
    assert get("b") is not get("c")
    for _ in range(2):
        assert sessions.get("nobody", lambda: None) is None
    assert sessions.get(None, Session) is not sessions.get(None, Session)


def test_events_that_overlap_bring_a_session_back_once():
    sessions, begin = Sessions(most=2), threading.Barrier(8)

    def slow():
        time.sleep(0.05)
        return Session()

    def event(_):
        begin.wait()
        return sessions.get("one", slow)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(event, range(8)))) == 1


BAD_FIELDS = [
    ((2, 3, 1), r"k must be at most N"),
    ((0, 1, 1), r"N must be at least 1, got 0"),
    ((2.5, 1, 1), r"N must be a whole number, got 2\.5"),
    ((None, 1, 1), r"N must be a whole number, and its field is empty"),
    ((5, float("nan"), 1), r"k must be a whole number, got nan"),
    ((5, 1, float("inf")), r"start must be a whole number, got inf"),
    ((1_000_001, 1, 1), r"N must be at most 1,000,000 on this page, got 1000001"),
    ((1e300, 1, 1), r"^N must be at most 1,000,000 on this page, got an integer of 997 bits\.$"),
    ((float("9" * 26), 1, 1), r"^N must be at most 1,000,000 on this page"),
    ((10, 1e300, 1), r"^k must be at most 10,000 on this page"),
    ((20_000, 10_001, 1), r"k must be at most 10,000 on this page"),
    (("<b>", 1, 1), r"N must be a whole number, got '<b>'"),
    (([1], {}, 1), r"N must be a whole number, got a list"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS)
def test_bad_fields_are_refused_and_change_nothing(fields, message):
    session = Session(seed=0)
    session.generate(6, 2, 1)
    before = session.rotation.to_json()
    for action in (session.enter, session.generate):
        with pytest.raises((ValueError, TypeError), match=message):
            action(*fields)
    assert session.rotation.to_json() == before


@pytest.mark.parametrize(("text", "message"), BAD_JSON)
@pytest.mark.parametrize("full", [True, False])
def test_bad_loads_are_refused_and_change_nothing(text, message, full):
    session = Session(seed=0)
    session.generate(6, 2, 1)
    before = session.rotation.to_json()
    with pytest.raises(ValueError, match=message):
        session.load(text, full=full)
    assert session.rotation.to_json() == before


@pytest.mark.parametrize(("text", "message"), BAD_INPUTS)
def test_full_load_with_bad_inputs_changes_nothing(text, message):
    session = Session(seed=0)
    before = session.rotation.to_json()
    with pytest.raises((ValueError, TypeError), match=message):
        session.load(text, full=True)
    assert session.rotation.to_json() == before


def test_quick_load_takes_the_counts_and_full_load_the_inputs_too():
    text = '{"appearance_counts": {"5": 2, "6": 1}, "N": 4, "k": 2, "start": 5}'
    session = Session()
    assert session.load(text, full=False) == "Loaded the counts of 2 numbers."
    assert (session.inputs, session.rotation.counts) == ((10, 3, 1), {5: 2, 6: 1})
    assert session.load(text, full=True) == "Loaded the counts of 2 numbers, and the inputs N = 4, k = 2, start = 5."
    assert session.inputs == (4, 2, 5)
    assert (
        session.load('{"7": 1}', full=True) == "Loaded the count of 1 number; there were no inputs to load with them."
    )
    assert (session.inputs, session.rotation.counts) == ((4, 2, 5), {7: 1})


def test_session_holds_no_more_counts_than_it_says():
    session = Session()
    many = "{" + ",".join(f'"{number}":1' for number in range(MOST_COUNTS + 1)) + "}"
    with pytest.raises(ValueError, match=r"at most 1,000,000 numbers, the JSON has 1,000,001"):
        session.load(many, full=False)
    session.rotation.load_counts(dict.fromkeys(range(MOST_COUNTS), 1))
    with pytest.raises(ValueError, match=r"this one has 1,000,000: Clean counts drops those that are out of range"):
        session.generate(10, 3, MOST_COUNTS)
    assert len(session.generate(10, 3, 1)) == 3  # adds none
    assert session.clean() == "Dropped the counts of 999,990 numbers out of range."
    assert len(session.generate(10, 3, 1)) == 3


def test_limit_is_of_what_the_draw_adds_under_the_new_inputs():
    session = Session()
    session.generate(1_000_000, 5, 1)
    session.rotation.load_counts(dict.fromkeys(range(1, MOST_COUNTS + 1), 1))
    before = session.inputs
    # All in range so far, none in the range that comes with the click: the draw would add five more.
    with pytest.raises(ValueError, match=r"at most 1,000,000 numbers, this one has 1,000,000"):
        session.generate(10, 5, 2_000_000)
    assert (session.inputs, len(session.rotation.counts)) == (before, MOST_COUNTS)
    # 1,000,001 alone has no count, so the draw would take it.
    with pytest.raises(ValueError, match=r"this one has 1,000,000"):
        session.generate(20, 1, MOST_COUNTS - 18)
    assert len(session.generate(10, 5, 7)) == 5
    assert len(session.rotation.counts) == MOST_COUNTS


def test_every_full_save_of_a_million_counts_loads_again():
    counts = dict.fromkeys(range(1 - LARGEST_NUMBER, 1 - LARGEST_NUMBER + MOST_COUNTS), LARGEST_COUNT)
    text = dump(counts, (1_000_000, 10_000, -LARGEST_NUMBER))
    assert len(text) <= LARGEST_FILE
    session = Session()
    session.load(text, full=True)
    assert len(session.rotation.counts) == MOST_COUNTS
    # The published app writes every number, with two spaces of indent.
    old = {"appearance_counts": dict.fromkeys(range(1, MOST_COUNTS + 1), 1), "N": MOST_COUNTS, "k": 3, "start": 1}
    session.load(json.dumps(old, indent=2), full=True)
    assert session.inputs == (MOST_COUNTS, 3, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
def test_session_of_a_million_counts_takes_as_little_memory_as_the_space_says():
    code = """
import resource
from lightning_fair.app.session import MOST_COUNTS, Session
from lightning_fair.rotation.serialization import dump
session, text = Session(), dump({number: number + 1000 for number in range(MOST_COUNTS)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session.load(text, full=False)
session.pack()
session.to_json(counts_only=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    peak = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert peak < 450_000  # kilobytes, of which some 300,000 stay: a bucket for each count is the worst case


@pytest.mark.parametrize(
    "junk",
    [
        "[" + ",".join(["[]"] * 1_500_000) + "]",
        "[" + ",".join(["[" * 500 + "]" * 500] * 3_000) + "]",
        "{" + ",".join(f'"{number}":0' for number in range(1_000_010)) + "}",
    ],
    ids=["wide", "deep", "many"],
)
def test_junk_is_refused_before_it_is_parsed(junk, monkeypatch):
    monkeypatch.setattr("lightning_fair.app.session.parse", lambda text: pytest.fail("parsed"))
    with pytest.raises(
        ValueError, match=r"The JSON lists \d,\d+,\d+ things: a session keeps .* at most 1,000,000 numbers"
    ):
        Session().load(junk, full=False)


def test_files_that_are_no_text_or_too_large_are_refused():
    assert file_text("{}", 2) == "{}"
    with pytest.raises(ValueError, match=r"A file must have at most 32 MB, got 50 MB"):
        file_text(None, 50 * 2**20)
    with pytest.raises(ValueError, match=r"The file is not text \(UTF-8\)"):
        file_text(None, 10)
    with pytest.raises(ValueError, match=r"The text must have at most 33,554,432 characters"):
        Session().load(" " * (LARGEST_FILE + 1), full=True)


def test_saved_files_are_named_and_dated():
    assert file_name("full", datetime(2025, 12, 1, 8, 5, 9)) == "fair-rotation-full-2025-12-01-080509.json"


@given(rotation=loaded(), order=st.sampled_from(ORDERS), size=st.integers(1, 12))
def test_table_pages_hold_every_number_once_in_order(rotation, order, size):
    pages = [table(rotation, order, page + 1, size) for page in range(table(rotation, order, 1, size).pages)]
    rows = [row for page in pages for row in page.rows]
    everything = sorted(set(rotation.numbers) | set(rotation.out_of_range))
    key = {
        ORDERS[0]: lambda number: number,
        ORDERS[1]: lambda number: -number,
        ORDERS[2]: lambda number: (rotation.counts[number], number),
        ORDERS[3]: lambda number: (-rotation.counts[number], number),
    }[order]
    assert [number for number, _, _ in rows] == sorted(everything, key=key)
    for number, count, note in rows:
        assert count == rotation.counts[number]
        assert note == ("" if number in rotation.numbers else "out of range")
    assert all(len(page.rows) <= size for page in pages)


@pytest.mark.parametrize(
    ("page", "shown"), [(0, 1), (-5, 1), (99, 4), (2.0, 2), (None, 1), ("x", 1), (float("nan"), 1)]
)
def test_a_page_that_is_not_there_is_the_nearest_one(page, shown):
    assert table(FairRotation(n=8, k=1), ORDERS[0], page, size=2).page == shown


@pytest.mark.parametrize("order", ORDERS)
def test_table_and_histogram_of_a_million_numbers_are_quick(order):
    rotation = FairRotation(1_000_000, k=10_000, seed=0)
    for _ in range(10):
        rotation.next_batch()
    begin = time.process_time()
    table(rotation, order, 5000)
    bar_chart(*bin_counts(rotation.tallies), "t", "x", "y")
    assert time.process_time() - begin < 1.0  # some 0.05 s


# -- charts and simulation -----------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 10**9), st.integers(1, 10**6), max_size=50), st.integers(1, 30))
def test_histogram_counts_every_number_in_few_bars(tallies, most):
    labels, heights = bin_counts(tallies, most)
    assert len(labels) == len(heights) <= most
    assert sum(heights) == sum(tallies.values())
    assert "nan" not in bar_chart(labels, heights, "title", "x", "y")


@pytest.mark.parametrize("bars", [1, 2, 24])
def test_long_labels_are_within_the_chart_and_do_not_meet(bars):
    labels = ["999,000,001-999,041,667"] * bars
    places = re.findall(r'<text x="([\d.]+)"[^>]*>999,000,001-', bar_chart(labels, [1] * bars, "t", "x", "y"))
    middles, half = [float(place) for place in places], 92  # of such a label at the phone's font size
    assert half <= middles[0] <= middles[-1] <= 480 - half
    assert all(right - left > 2 * half for left, right in itertools.pairwise(middles))


def test_value_that_is_missing_leaves_a_gap_in_its_line():
    values = np.array([1.0, 1.0, np.nan, 1.0, np.nan, np.inf, 1.0, 1.0, 1.0])
    chart = line_chart({"a": values[values < 2], "b": np.where(values < 2, values, np.nan)}, "A", "batch", "share")
    lines = [len(points.split()) for points in re.findall(r'<polyline points="([^"]*)"', chart)]
    assert lines == [6, 2, 2, 3]  # the one between two gaps is a dot: from itself to itself
    first, last = (re.findall(r'<polyline points="([^"]*)"', chart)[place] for place in (2, 3))
    assert len(set(first.split())) == 1
    assert len(set(last.split())) == 3
    assert line_chart({"a": np.full(3, np.nan)}, "A", "batch", "share").count('points=""') == 1


def test_charts_escape_what_they_are_told():
    evil = "<img src=x onerror=alert(1)>"
    for chart in (
        bar_chart([evil], [1], evil, evil, evil),
        line_chart({evil: np.array([1.0, np.nan, 2.0])}, evil, evil, evil),
    ):
        assert "<img" not in chart


def test_feedback_holds_the_rare_class_up_and_answers_a_turn():
    free = simulate(Settings(imbalance=8.0, alpha=0.0))
    np.testing.assert_allclose(free.trained[-20:].mean(0), shares(8.0) / shares(8.0).sum(), atol=0.03)
    np.testing.assert_allclose(free.weights, 1.0)
    held = simulate(Settings(imbalance=8.0, alpha=8.0), turns=1)
    assert held.turns == [60]
    for rarest, span in ((3, slice(30, 60)), (0, slice(90, 120))):
        assert held.trained[span, rarest].mean() > 0.2 > 2 * held.unsteered[span, rarest].mean()
        assert held.weights[span, rarest].max() < 1.0  # drawn more often than its target


def test_floor_and_loss_emphasis_show_in_the_weights():
    floored = simulate(Settings(imbalance=50.0, alpha=30.0, horizon=32.0, floor=0.1))
    assert floored.weights.max() <= 0.25 / 0.1 + 1e-9
    plain, keen = (simulate(Settings(loss_emphasis=loss_score)).trained[-60:].mean(0) for loss_score in (0.0, 0.5))
    assert keen[3] > plain[3] + 0.05  # the class of which least comes through has the highest loss


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 10, 1001])
def test_simulation_shows_the_last_spans_whatever_the_turns(turns):
    trace = simulate(Settings(), turns)
    assert trace.first == max(0, turns - 2) * 60
    assert trace.arrived.shape == trace.weights.shape == (60 * min(turns + 1, 3), CLASSES)
    assert trace.turns == [60 * turn for turn in range(max(1, turns - 1), turns + 1)]
    assert int(trace.unsteered[-1].argmin()) == (0 if turns % 2 else 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(imbalance=0.5), r"imbalance must be at least 1, got 0\.5"),
        (
            Settings(alpha=31.0, horizon=16.0, loss_emphasis=0.5),
            r"^Alpha 31 is too high for horizon 16 and loss emphasis 0\.5, the class mix oscillates: lower alpha",
        ),
        (Settings(floor=0.25), r"min_prob must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        simulate(settings)


def test_simulation_answers_within_a_second():
    begin = time.process_time()
    simulate(Settings(), turns=100)
    assert time.process_time() - begin < 1.0  # some 0.1 s


# -- the package -----------------------------------------------------------------------------------------------


def test_importing_the_package_or_the_rotation_does_not_import_gradio():
    code = (
        "import lightning_fair.rotation.fair_rotation, lightning_fair.app.session, lightning_fair.app.simulation, sys"
    )
    subprocess.run([sys.executable, "-c", f"{code}; assert 'gradio' not in sys.modules"], check=True)
