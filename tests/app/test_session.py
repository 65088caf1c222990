import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rotation_helpers import BAD_INPUTS, BAD_JSON, in_range, numbers_of, rotations

from lightning_fair.app import session
from lightning_fair.app.session import LARGEST_FILE, MAX_COUNTS, ORDERS, TABLE_ROWS
from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.rotation.serialization import LARGEST_COUNT, LARGEST_NUMBER, dump

BAD_FIELDS = {
    "k above N": ((2, 3, 1), r"k must lie in \[1, N\]"),
    "N 0": ((0, 1, 1), r"N must lie in .* got 0"),
    "fraction": ((2.5, 1, 1), r"N must be a whole number, got 2\.5"),
    "empty": ((None, 1, 1), r"N must be a whole number, got an empty field"),
    "NaN": ((5, float("nan"), 1), r"k must be a whole number, got nan"),
    "infinity": ((5, 1, float("inf")), r"start must be a whole number, got inf"),
    "large N": ((1_000_001, 1, 1), r"N must be at most 1,000,000 on this page, got 1000001"),
    "1e300": ((1e300, 1, 1), r"^N must be at most 1,000,000 on this page, got an integer of 997 bits\.$"),
    "large k": ((20_000, 10_001, 1), r"k must be at most 10,000 on this page"),
    "HTML": (("<b>", 1, 1), r"N must be a whole number, got '<b>'"),
    "list": (([1], {}, 1), r"N must be a whole number, got \[1\]"),
}


@pytest.fixture
def visit():
    rotation = FairRotation(6, 2, 1, seed=0)
    return session.Visit(rotation, str(rotation.next_batch()))


@pytest.fixture
def rotation(visit):
    return visit.rotation


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields_change_nothing(visit, rotation, name):
    fields, message = BAD_FIELDS[name]
    before, batch = rotation.to_json(), visit.batch
    with pytest.raises((ValueError, TypeError), match=message):
        session.enter(visit, *fields)
    with pytest.raises((ValueError, TypeError), match=message):
        session.new_rotation(*fields, "")
    assert (rotation.to_json(), visit.batch) == (before, batch)


def test_whole_float_fields_are_entered(visit, rotation):
    counts = rotation.counts
    session.enter(visit, 5.0, 3.0, -2)
    assert (rotation.n, rotation.k, rotation.start, rotation.counts) == (5, 3, -2, counts)


CHANGES = {
    "other range": (lambda visit: session.enter(visit, 5, 2, 1), False),
    "same range": (lambda visit: session.enter(visit, 6, 2, 1.0), True),
    "load": (lambda visit: session.load(visit, "{}"), False),
    "clean": (session.clean, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_batch_stays_with_its_counts(visit, name):
    """A batch is kept, over a reload too, until the counts or the range are others than it led to."""
    change, is_kept = CHANGES[name]
    batch = visit.batch
    change(visit)
    restored, _ = session.restore(session.browser_copy(visit))
    assert visit.batch == restored.batch == (batch if is_kept else "")
    assert restored.rotation.to_json() == visit.rotation.to_json()


def test_reset_keeps_the_counts_before(visit):
    """Only those of the last reset that had any: the server's memory is bounded, and a second press loses nothing."""
    once = session.reset(visit, 5, 1, 1, "")
    with pytest.raises(ValueError, match="seed must be a whole number"):
        session.reset(once, 5, 1, 1, "x")
    twice = session.reset(once, 4, 1, 1, "")
    assert (once.before, twice.before, twice.batch, twice.rotation.counts) == (visit, visit, "", {})
    twice.rotation.next_batch()
    last = session.reset(twice, 4, 1, 1, "")
    assert last.before is twice
    assert twice.before is None


def test_undo_exchanges_the_visits(visit):
    """What was drawn or loaded since the reset comes back with a second undo, and no third visit is kept."""
    later = session.reset(visit, 5, 1, 1, "")
    session.load(later, '{"2": 7}')
    back = session.undo(later)
    assert (back, back.before, later.before) == (visit, later, None)
    assert session.undo(back).rotation.counts == {2: 7}
    assert visit.before is None
    with pytest.raises(ValueError, match="No reset can be undone"):
        session.undo(visit)


def test_batch_is_left_out_with_its_counts(visit, monkeypatch):
    monkeypatch.setattr(session, "MAX_COPIED", 1)
    restored, warning = session.restore(session.browser_copy(visit))
    assert (restored.batch, restored.rotation.counts, warning) == ("", {}, session.COPY_LOST)


@pytest.mark.parametrize("copy", ["x", 3, {}, ["{}", False], ["{}", False, "", 3], ['{"1": -1}', False, ""]], ids=str)
def test_damaged_copy_is_told(copy):
    """The copy in the browser can be anything; a damaged one gives the default rotation, and a new visitor has none."""
    visit, warning = session.restore(copy)
    assert (visit.rotation.counts, warning) == ({}, session.COPY_DAMAGED)
    assert session.restore(None)[1] == ""


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", "<b>", "9" * 21])
def test_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number of at least 0, got '.*': leave it empty"):
        session.new_rotation(10, 3, 1, seed)


def test_seed_field_determines_the_batches():
    batches = [session.new_rotation(100, 5, 1, seed).next_batch() for seed in (" 7", "7", "8", "", "")]
    assert batches[0] == batches[1]
    assert len(set(map(tuple, batches))) == 4


@pytest.mark.parametrize("name", [*BAD_JSON, *BAD_INPUTS])
def test_bad_load_changes_nothing(visit, rotation, name):
    text, message = (BAD_JSON | BAD_INPUTS)[name]
    before, batch = rotation.to_json(), visit.batch
    with pytest.raises((ValueError, TypeError), match=message):
        session.load(visit, text)
    assert (rotation.to_json(), visit.batch) == (before, batch)


def test_load_takes_inputs_if_asked(visit, rotation):
    text = '{"appearance_counts": {"5": 2, "6": 1}, "N": 4, "k": 2, "start": 5}'
    assert session.load(visit, text, counts_only=True) == "Counts loaded: 2."
    assert (rotation.n, rotation.k, rotation.start, rotation.counts) == (6, 2, 1, {5: 2, 6: 1})
    message = "Counts loaded: 2. N = 4, k = 2 and start = 5 are loaded, too."
    assert session.load(visit, text) == message
    assert (rotation.n, rotation.k, rotation.start) == (4, 2, 5)
    assert session.load(visit, '{"7": 1}') == "Counts loaded: 1."
    assert (rotation.n, rotation.k, rotation.start, rotation.counts) == (4, 2, 5, {7: 1})


def test_load_keeps_the_limits_of_the_page(visit, rotation):
    """A file may have ``N`` above the page's limit although a rotation may not; nothing is changed then."""
    before = rotation.to_json()
    with pytest.raises(ValueError, match="N must be at most 1,000,000 on this page"):
        session.load(visit, '{"appearance_counts": {"1": 1}, "N": 2000000, "k": 2, "start": 5}')
    assert rotation.to_json() == before


@pytest.mark.slow
def test_million_counts_load(visit, rotation):
    """A million counts with the longest numbers and counts fit a file, and one more is refused."""
    first = 1 - LARGEST_NUMBER
    text = dump(dict.fromkeys(range(first, first + MAX_COUNTS), LARGEST_COUNT), (1_000_000, 10_000, -LARGEST_NUMBER))
    assert len(text) <= LARGEST_FILE
    session.load(visit, text)
    assert len(rotation.counts) == MAX_COUNTS
    # The earlier app writes every number of its range, with an indent of two spaces.
    old = {"appearance_counts": dict.fromkeys(range(1, MAX_COUNTS + 1), 1), "N": MAX_COUNTS, "k": 3, "start": 1}
    session.load(visit, json.dumps(old, indent=2))
    assert rotation.n == MAX_COUNTS
    with pytest.raises(ValueError, match=r"must hold at most 1,000,000 counts, got 1,000,001"):
        session.load(visit, dump(dict.fromkeys(range(MAX_COUNTS + 1), 1)))


@pytest.mark.parametrize(
    "junk",
    [
        "[" + ",".join(["[]"] * 1_500_000) + "]",
        "[" + ",".join(["[" * 500 + "]" * 500] * 3_000) + "]",
        "{" + ",".join(f'"{number}":0' for number in range(1_000_010)) + "}",
    ],
    ids=["wide", "deep", "long"],
)
def test_junk_is_refused_before_parsing(visit, junk, monkeypatch):
    monkeypatch.setattr(session, "parse", lambda text: pytest.fail("parsed"))
    with pytest.raises(ValueError, match=r"counts of at most 1,000,000 numbers, got more elements"):
        session.load(visit, junk)


def test_range_is_fixed_with_a_million_outside(visit, rotation, monkeypatch):
    """With too many counts out of range, the range cannot change until they are dropped; memory stays bounded."""
    monkeypatch.setattr(session, "MAX_COUNTS", 3)
    rotation.load_counts(dict.fromkeys(range(10, 14), 1))
    with pytest.raises(ValueError, match=r"At most 3 numbers out of range .* got 4: press Clean counts"):
        session.enter(visit, 7, 2, 1)
    session.enter(visit, 6, 2, 1)
    rotation.clean()
    session.enter(visit, 7, 2, 1)


def test_file_is_read_and_deleted(tmp_path):
    path = tmp_path / "counts.json"
    for content, message in ((b"\xff\xfe", "must be text in UTF-8"), (b" " * (LARGEST_FILE + 1), "at most 32 MB, got")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            session.read_file(path)
        assert not path.exists()
    path.write_text("{}")
    assert session.read_file(path) == "{}"
    assert not path.exists()


def test_missing_values_get_a_sentence(rotation):
    with pytest.raises(ValueError, match="No file has come"):
        session.read_file(None)
    for order in (None, "x", [1]):
        with pytest.raises(ValueError, match=r"The order of the table must be Number, Least used, Most used, got "):
            session.table(rotation, order)
    assert session.new_rotation(10, 3, 1, None).n == 10  # an empty field: any seed


def test_file_name_has_the_date():
    assert session.file_name(datetime(2025, 12, 1, 8, 5, 9)) == "fair-rotation-full-2025-12-01-080509.json"


@given(rotation=rotations(), order=st.sampled_from([*ORDERS]))
def test_table_has_every_number(rotation, order):
    rows = session.table(rotation, order)
    counts = rotation.counts
    key = {
        "Number": lambda number: number,
        "Least used": lambda number: (counts[number], number),
        "Most used": lambda number: (-counts[number], number),
    }[order]
    assert [number for number, _, _ in rows] == sorted({*numbers_of(rotation), *rotation.out_of_range}, key=key)
    for number, count, remark in rows:
        assert count == counts[number]
        assert remark == ("" if number in numbers_of(rotation) else "out of range")


def test_table_is_cut_after_ordering():
    rotation = FairRotation(1_000_000, k=3, seed=0)
    batch = rotation.next_batch()
    assert [row[0] for row in session.table(rotation, "Number")] == list(range(1, TABLE_ROWS + 1))
    assert [row[0] for row in session.table(rotation, "Most used")[:3]] == sorted(batch)
    assert len(session.table(rotation, "Least used")) == TABLE_ROWS


@given(rotation=rotations())
def test_histogram_counts_the_range(rotation):
    labels, heights = session.histogram(rotation)
    counts = list(in_range(rotation).values())
    assert len(labels) == len(heights) <= 16
    assert sum(heights) == rotation.n
    assert labels == sorted(labels)  # the order in which the plot shows them
    for label, height in zip(labels, heights, strict=True):
        first, _, last = label.strip().replace(",", "").partition("-")
        assert height == sum(int(first) <= count <= int(last or first) for count in counts)
