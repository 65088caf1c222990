import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rotation_helpers import BAD_INPUTS, BAD_JSON, rotations

from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.rotation.serialization import parse


@given(rotation=rotations(), batches=st.integers(0, 5))
def test_saved_rotation_loads(rotation, batches):
    for _ in range(batches):
        rotation.next_batch(warn=False)
    loaded = FairRotation.from_json(rotation.to_json())
    assert (loaded.n, loaded.k, loaded.start, loaded.counts) == (
        *(rotation.n, rotation.k, rotation.start),
        rotation.counts,
    )
    assert loaded.to_json() == rotation.to_json()


@given(rotation=rotations())
def test_saved_text_is_sorted_json(rotation):
    counts = {str(number): rotation.counts[number] for number in sorted(rotation.counts)}
    assert rotation.to_json(counts_only=True) == json.dumps(counts)
    inputs = {"N": rotation.n, "k": rotation.k, "start": rotation.start}
    assert rotation.to_json() == json.dumps({"appearance_counts": counts} | inputs)


@given(rotation=rotations(), counts_only=st.booleans())
def test_load_counts_reads_both_forms(rotation, counts_only):
    """``load_counts`` takes the counts of either form of text, and leaves the range and ``k`` alone."""
    other = FairRotation(n=3, k=2, start=7)
    other.load_counts(rotation.to_json(counts_only=counts_only))
    assert other.counts == rotation.counts
    assert (other.n, other.k, other.start) == (3, 2, 7)


def test_published_app_files_load():
    """The earlier fair batch app writes every number of its range, with an indent of two spaces."""
    full = json.dumps({"appearance_counts": {"1": 2, "2": 0, "3": 1}, "N": 3, "k": 2, "start": 1}, indent=2)
    rotation = FairRotation.from_json(full)
    assert (rotation.counts, rotation.n, rotation.k) == ({1: 2, 3: 1}, 3, 2)
    rotation.load_counts(json.dumps({"7": 2, "2": 0}, indent=2))
    assert rotation.counts == {7: 2}


def test_whole_floats_load():
    full = '\ufeff{"appearance_counts": {"1": 2.0, "2": -0.0, "3": 1e1}, "N": 3.0, "k": 2.0, "start": 1.0}'
    rotation = FairRotation.from_json(full)
    assert rotation.to_json() == '{"appearance_counts": {"1": 2, "3": 10}, "N": 3, "k": 2, "start": 1}'


@pytest.mark.parametrize("name", [*BAD_JSON, *BAD_INPUTS])
def test_bad_text_is_refused(name):
    """The error is one short sentence."""
    text, message = (BAD_JSON | BAD_INPUTS)[name]
    with pytest.raises(ValueError, match=message) as caught:
        FairRotation.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_counts_alone_are_refused():
    with pytest.raises(ValueError, match=r"make a FairRotation\(n, k, start\) and pass the text to its load_counts\.$"):
        FairRotation.from_json('{"1": 2}')


@pytest.mark.parametrize("text", [b"{}", None, 5, {"1": 2}])
def test_from_json_needs_text(text):
    with pytest.raises(ValueError, match=r"must be a str of JSON, got .*: decode or read it first\.$"):
        FairRotation.from_json(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ValueError):
        parse(text)
