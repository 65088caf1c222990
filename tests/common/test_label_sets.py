"""Label sets do what a matrix of zeros and ones does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.common.label_sets import (
    LabelSets,
    label_rows,
    labels_checksum,
    name_unlabeled,
    same_labels,
)
from lightning_fair.common.label_values import check_label_sets


@st.composite
def matrices(draw, min_size=0):
    """Matrices of zeros and ones."""
    size, num_labels = draw(st.integers(min_size, 8)), draw(st.integers(1, 5))
    values = draw(st.lists(st.booleans(), min_size=size * num_labels, max_size=size * num_labels))
    return np.array(values, dtype=bool).reshape(size, num_labels)


def with_last_class(matrix, *, always=False):
    """Return the matrix with a column for rows of zeros, if there are any."""
    empty = ~matrix.any(axis=1)
    return np.column_stack([matrix, empty]) if always or empty.any() else matrix


@given(matrix=matrices(), always=st.booleans(), seed=st.integers(0, 99))
def test_every_form_is_the_matrix(matrix, always, seed):
    dense, (size, num_labels) = with_last_class(matrix, always=always), matrix.shape
    samples, classes = matrix.nonzero()
    order = np.random.default_rng(seed).permutation(2 * samples.size) % max(samples.size, 1)  # each pair twice
    lists = [row.nonzero()[0][::-1].tolist() * 2 for row in matrix]
    for sets in (
        LabelSets.from_matrix(matrix, with_unlabeled=always),
        LabelSets.from_lists(lists, num_labels, with_unlabeled=always),
        LabelSets.from_pairs(samples[order], classes[order], size, num_labels, with_unlabeled=always),
    ):
        np.testing.assert_array_equal(sets.to_dense(), dense)
        assert sets.has_unlabeled == (dense.shape[1] > num_labels)
        assert (len(sets), sets.size, sets.num_classes) == (size, *dense.shape)
        assert sets.equals(LabelSets.from_matrix(dense))
        assert labels_checksum(sets) == labels_checksum(LabelSets.from_matrix(dense))


@given(matrix=matrices(), seed=st.integers(0, 99))
def test_statistics_are_those_of_the_matrix(matrix, seed):
    sets, dense = LabelSets.from_matrix(matrix), with_last_class(matrix).astype(int)
    values = np.random.default_rng(seed).normal(size=sets.num_classes)
    np.testing.assert_array_equal(sets.counts, dense.sum(axis=0))
    np.testing.assert_array_equal(sets.lengths, dense.sum(axis=1))
    np.testing.assert_array_equal(sets.cooccurrence(), dense.T @ dense)
    np.testing.assert_allclose(sets.sums(values), dense @ values, atol=1e-12)
    np.testing.assert_array_equal(np.column_stack([sets.samples, sets.classes]), np.argwhere(dense))


@given(matrix=matrices(min_size=1), data=st.data())
def test_samples_are_taken_like_rows(matrix, data):
    """In any order and several times; the classes stay the same, also if none of them lacks a label."""
    sets = LabelSets.from_matrix(matrix)
    indices = data.draw(st.lists(st.integers(0, len(matrix) - 1), max_size=10))
    taken = sets.take(indices)
    np.testing.assert_array_equal(taken.to_dense(), sets.to_dense()[indices])
    assert (taken.num_classes, taken.has_unlabeled) == (sets.num_classes, sets.has_unlabeled)


@given(matrix=matrices(min_size=1), data=st.data())
def test_one_other_label_is_noticed(matrix, data):
    matrix[:, 0] = True  # no sample lacks a label, before and after
    matrix = np.column_stack([matrix, matrix[:, 0]])
    other = matrix.copy()
    place = data.draw(st.integers(0, len(matrix) - 1)), data.draw(st.integers(0, matrix.shape[1] - 2))
    other[place] ^= True
    sets, others = LabelSets.from_matrix(matrix), LabelSets.from_matrix(other)
    assert not same_labels(sets, others)
    assert same_labels(sets, LabelSets.from_matrix(matrix))
    assert not same_labels(sets, np.zeros(len(matrix), int))
    assert not same_labels(np.zeros(len(matrix), int), sets)
    assert labels_checksum(sets) != labels_checksum(others)


def test_names_of_samples_without_a_label():
    assert name_unlabeled(["a", "b"]) == ("a", "b", "none")
    assert name_unlabeled(["a", "none"]) == ("a", "none", "(none)")


def test_too_many_classes_for_pairs_are_refused():
    with pytest.raises(ValueError, match=r"at most 10000 classes, got 10001\. Leave out labels that are rare"):
        LabelSets.from_lists([[0], [10_000]], 10_001).cooccurrence()


def test_other_label_sets_are_refused():
    sets = LabelSets.from_lists([[0], []], 2)
    assert check_label_sets(sets, 3) is sets
    with pytest.raises(
        ValueError,
        match=r"has 3 classes, with that of samples without a label, but num_classes is 2\. Set num_classes=3",
    ):
        check_label_sets(sets, 2)
    with pytest.raises(TypeError, match=r"label_sets must be several labels for each sample"):
        check_label_sets(sets.to_dense(), 3)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda rows: torch.tensor(rows).float()])
@pytest.mark.parametrize("width", [2, 3])
def test_rows_of_a_batch(convert, width):
    """The class of samples without a label can be left out; an empty batch has any shape."""
    kind = LabelSets.from_lists([[0], []], 2)
    rows = [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(label_rows(convert([row[:width] for row in rows]), kind), rows)
    assert label_rows(convert([]), kind).shape == (0, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1], r"zeros and ones, shape \(batch, 3 or 2\).*Got shape \(2,\)"),
        ([[1, 0, 0, 0]], r"Got shape \(1, 4\)"),
        ([[2, 0, 0]], r"must be zeros and ones"),
        ([[1, 0], [0, np.nan]], r"must be zeros and ones"),
        ([[1, 0, 0], [0, 0, 0]], r"sample 1 of the batch has no label, and no class stands for that"),
        ([[1, 0, 1]], r"has labels, and the class of samples without a label too"),
    ],
)
def test_bad_rows_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        label_rows(rows, LabelSets.from_lists([[0], []], 2))
