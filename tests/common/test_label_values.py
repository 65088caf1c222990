"""Labels in any form, as class numbers."""

import enum
from array import array
from collections import deque

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.common.label_columns import has_repeats, label_column
from lightning_fair.common.label_values import ClassLabels, check_labels, number_labels

Color = enum.Enum("Color", ["RED", "BLUE"])


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 1, 2],
        (0, 1, 1, 2),
        [np.int32(0), 1, 1, np.uint8(2)],
        np.array([0, 1, 1, 2]),
        np.array([0, 1, 1, 2], dtype=np.uint8),
        np.array([0, 1, 1, 2], dtype=np.uint64),
        np.array([0, 1, 1, 2], dtype=object),
        np.array([[0], [1], [1], [2]]),
        [[0], [1], [1], [2]],
        [0.0, 1.0, 1.0, 2.0],
        [0, 1.0, 1, 2],
        np.array([0, 1.0, 1, 2], dtype=object),
        np.array([0, 1, 1, 2], dtype=np.float16),
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([0, 1, 1, 2], dtype=torch.bfloat16),
        torch.tensor([[0], [1], [1], [2]], dtype=torch.int32),
        [torch.tensor(value) for value in (0, 1, 1, 2)],
        [torch.tensor([value]) for value in (0, 1, 1, 2)],
        [np.array(value) for value in (0, 1, 1, 2)],
        [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]],
        [(1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 1)],
        torch.eye(3)[[0, 1, 1, 2]],
        torch.eye(3, dtype=torch.bool)[[0, 1, 1, 2]],
        iter([0, 1, 1, 2]),
        deque([0, 1, 1, 2]),
        array("q", [0, 1, 1, 2]),
        {7: 0, 8: 1, 9: 1, 10: 2}.values(),
    ],
    ids=lambda values: type(values).__name__,
)
def test_class_numbers(values):
    """Whole numbers of any type, and one-hot rows, are class numbers, and have no names."""
    labels = number_labels(values)
    assert labels.numbers.dtype.kind in "iu"
    assert (labels.numbers.tolist(), labels.names, labels.values) == ([0, 1, 1, 2], None, None)


@pytest.mark.parametrize(
    ("values", "numbers", "names"),
    [
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (np.array(["dog", "cat", "dog"]), [1, 0, 1], ("cat", "dog")),
        ([b"dog", b"cat", b"dog"], [1, 0, 1], ("cat", "dog")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
        (torch.tensor([[True], [False], [True]]), [1, 0, 1], ("False", "True")),
        (np.array([True, False, True], dtype=object), [1, 0, 1], ("False", "True")),
        ([7, 3, 7], [1, 0, 1], ("3", "7")),
        ([2**40, 3, 2**40], [1, 0, 1], ("3", str(2**40))),
        ([2**80, 3, 2**80], [1, 0, 1], ("3", str(2**80))),
        ([2**63 + 1, 3, 2**63 + 1], [1, 0, 1], ("3", str(2**63 + 1))),
        ([2**60 + 1, 2**60, 2**60 + 1], [1, 0, 1], (str(2**60), str(2**60 + 1))),
        (np.array([2**63 + 1, 3, 2**63 + 1], np.uint64), [1, 0, 1], ("3", str(2**63 + 1))),
        ([7.0, 3.0, 7.0], [1, 0, 1], ("3", "7")),
        (torch.tensor([2**40, 3, 2**40]), [1, 0, 1], ("3", str(2**40))),
        ([("dog", "snow"), ("cat", "sand"), ("dog", "snow")], [1, 0, 1], ("cat, sand", "dog, snow")),
        ([("dog", 1), ("cat", 2), ("dog", 1)], [1, 0, 1], ("cat, 2", "dog, 1")),
        ([(3, 1), (2, 5), (3, 1)], [1, 0, 1], ("2, 5", "3, 1")),
        ([(1, 1, 0), (1, 0, 0), (1, 1, 0)], [1, 0, 1], ("1, 0, 0", "1, 1, 0")),
        (list(zip(torch.tensor([3, 2, 3]), np.array([1, 5, 1]), strict=True)), [1, 0, 1], ("2, 5", "3, 1")),
        ([frozenset("a"), frozenset("b"), frozenset("a")], None, None),
        (["a", 1, "a"], [1, 0, 1], ("1", "a")),
        (["1", 1, "1"], [1, 0, 1], ("1", "'1'")),
        ([Color.RED, Color.BLUE, Color.RED], [1, 0, 1], ("Color.BLUE", "Color.RED")),
        (np.array(["2020-01-02", "2020-01-01", "2020-01-02"], "M8[D]"), [1, 0, 1], ("2020-01-01", "2020-01-02")),
    ],
    ids=str,
)
def test_values_are_numbered(values, numbers, names):
    """Other values are numbered in sorted order, and name their classes."""
    labels = number_labels(values)
    assert labels.numbers.dtype == np.int64
    assert labels.numbers[0] == labels.numbers[2] != labels.numbers[1]
    if names:
        assert (labels.numbers.tolist(), set(labels.names)) == (numbers, set(names))
    assert len(labels.values) == len(labels.names) == 2


def test_pandas():
    """Columns of pandas are labels, also categories and nullable integers."""
    pd = pytest.importorskip("pandas")
    for dtype in ("int64", "Int64", "float64"):
        assert number_labels(pd.Series([0, 1, 1, 2], index=[5, 3, 2, 8], dtype=dtype)).numbers.tolist() == [0, 1, 1, 2]
    for column in (
        pd.Series(["dog", "cat", "dog"]),
        pd.Series(["dog", "cat", "dog"], dtype="category"),
        pd.Categorical(["dog", "cat", "dog"], categories=["dog", "fox", "cat"]),
        pd.Index(["dog", "cat", "dog"]),
    ):
        labels = number_labels(column)
        assert (labels.numbers.tolist(), labels.names) == ([1, 0, 1], ("cat", "dog"))
    assert number_labels(pd.Series([True, False], dtype="boolean")).names == ("False", "True")
    for column in (
        pd.Series(["a", None]),
        pd.Series(["a", None], dtype="category"),
        pd.Series([1, None], dtype="Int64"),
    ):
        with pytest.raises(ValueError, match="1 samples have none"):
            number_labels(column)


def test_arrow():
    """Columns of Arrow are labels, in one piece or several."""
    pa = pytest.importorskip("pyarrow")
    assert number_labels(pa.array([0, 1, 1, 2])).numbers.tolist() == [0, 1, 1, 2]
    assert number_labels(pa.chunked_array([[0, 1], [1, 2]])).numbers.tolist() == [0, 1, 1, 2]
    assert number_labels(pa.chunked_array([["dog", "cat"], ["dog"]])).names == ("cat", "dog")
    assert number_labels(pa.array(["dog", "cat", "dog"]).dictionary_encode()).numbers.tolist() == [1, 0, 1]
    assert number_labels(pa.array([True, False])).names == ("False", "True")
    with pytest.raises(ValueError, match="1 samples have none"):
        number_labels(pa.array([1, None]))


def test_identifiers_or_class_numbers():
    """Numbers below the number of samples, or of classes that are stated or named, are class numbers."""
    assert number_labels([0, 3, 3, 0]).names is None
    assert number_labels([0, 3, 3]).names == ("0", "3")
    assert number_labels([0, 3, 3], num_classes=5).numbers.tolist() == [0, 3, 3]
    assert number_labels([0, 3, 3], None, 5).numbers.tolist() == [0, 3, 3]
    assert number_labels([0, 9, 9], None, 5).names == ("0", "9")
    with pytest.raises(ValueError, match=r"lie in \[0, 5\), got 1099511627776\. Leave num_classes out"):
        FeedbackBatchSampler([0, 2**40, 0], 2, controller=FeedbackController(5))
    assert FeedbackBatchSampler([0, 2**40, 0], 2).class_names == ("0", str(2**40))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": 0, "b": 1}, r"dict with 2 keys.*labels=\[mapping\[id\] for id in ids\]"),
        (
            [[3, 1], [2, 1]],
            r"got shape \(2, 2\)\. It is not one-hot.*\[set\(row\) for row .*\[tuple\(row\) for row in labels\]",
        ),
        ([(0.3, 0.7), (0.2, 0.8)], r"Of class probabilities"),
        ([(0.3, 1.7), (0.2, 0.8)], r"not one-hot"),
        ([(3, 1), "31"], r"tuples of different lengths"),
        ([(3, 1), (2,)], r"tuples of different lengths\. .*labels=\[set\(row\) for row in labels\]"),
        (
            [["a", "b"], ["c", "d"]],
            r"got shape \(2, 2\).*could be two kinds of labels.*\[set\(row\) for row in labels\]",
        ),
        (torch.tensor([[0.2, 0.8], [0.5, 0.5]]), r"Of class probabilities.*labels=rows\.argmax\(1\)"),
        (
            np.zeros((3, 4, 4), int),
            r"got shape \(3, 4, 4\)\. Of masks.*labels=\[int\(mask\.max\(\)\) for mask in masks\]",
        ),
        ([torch.zeros(4, 4)] * 3, r"Of masks"),
        (3, "one class per sample, got 3"),
        ("cat", "one class per sample, got 'cat'"),
        ({1, 2}, r"in order, got a set\. Pass a list"),
        (TensorDataset(torch.zeros(3)), r"in order, got a TensorDataset\. Pass a list"),
        ([0.5, 1.0], r"whole numbers or names, got 0\.5 for sample 0.*labels=np\.digitize\(numbers, edges\)"),
        (torch.tensor([0.0, float("inf")]), r"got inf for sample 1"),
        ([0, 1, 2.5], r"got 2\.5 for sample 2"),
        (np.array([0, 1.5], dtype=object), r"numbers with fractions"),
        ([1j, 2j], r"complex"),
        (
            [0.0, float("nan")],
            r"1 samples have none \(None or NaN\), the first is sample 1.*Subset\(dataset, indices\)",
        ),
        ([0, None, None], r"2 samples have none"),
        (["a", None], r"1 samples have none"),
        ([0, -1], r"at least 0, got -1\. Remove such samples with torch\.utils\.data\.Subset, or number"),
        (np.array([0, -1], dtype=object), r"at least 0, got -1"),
        (
            [{"boxes": 3}, {"boxes": 4}],
            r"hashable values.*'dict'\. Of several labels .*labels=\[\{0, 2\}, set\(\), \{1\}\]",
        ),
        ([object(), object()], r"got one of type object"),
    ],
)
def test_unusable_labels_are_refused(values, message):
    """Values that are not one class per sample are refused, with a remedy."""
    with pytest.raises(ValueError, match=message):
        number_labels(values)


def test_advice_never_makes_classes_of_columns():
    """Rows that are not one-hot are never to be reduced to the position of their maximum."""
    with pytest.raises(ValueError, match="one-hot") as info:
        number_labels([[3, 1], [2, 1]])
    assert "argmax" not in str(info.value)


@pytest.mark.parametrize(
    ("remedy", "num_classes"),
    [
        (lambda: [{"a": 0, "b": 1}[name] for name in ("b", "a", "b")], 2),
        (lambda: np.array([[3, 0], [2, 1], [2, 0]])[:, 0], 2),
        (lambda: [tuple(values) for values in np.array([[3, 0], [2, 1], [3, 0]])], 2),
        (lambda: [tuple(values) for values in torch.tensor([[3, 0], [2, 1], [3, 0]])], 2),
        (lambda: [tuple(values) for values in [[3, 0], [2, 1], [3, 0]]], 2),
        (lambda: list(zip(["a", "b", "a"], torch.tensor([3, 1, 3]), strict=True)), 2),
        (lambda: torch.tensor([[0.2, 0.8], [0.9, 0.1]]).argmax(1), 2),
        (lambda: [int(mask.max()) for mask in torch.tensor([[[0, 1]], [[0, 0]]])], 2),
        (lambda: np.digitize([0.5, 1.5, 0.2], [1.0]), 2),
        (lambda: np.unique([-1, 1, 1], return_inverse=True)[1], 2),
    ],
)
def test_remedies(remedy, num_classes):
    """What the errors advise is accepted."""
    labels = number_labels(remedy())
    assert len(set(labels.numbers.tolist())) == num_classes
    FeedbackBatchSampler(labels, 2)


def test_memory_map_is_not_copied(tmp_path):
    """A memory map stays one, also in the sampler. Other labels are copied there, so that changes in place show."""
    np.save(tmp_path / "labels.npy", np.array([0, 1, 1, 0] * 100))
    labels = np.load(tmp_path / "labels.npy", mmap_mode="r")
    assert number_labels(labels).numbers is labels
    assert np.shares_memory(FeedbackBatchSampler(labels, 4).labels, labels)
    array = np.array(labels)
    assert number_labels(array).numbers is array
    assert not np.shares_memory(FeedbackBatchSampler(array, 4).labels, array)


def test_tensor_is_copied():
    """Its memory moves when torch shares it with a spawned worker."""
    labels = torch.tensor([0, 1, 1])
    assert not np.shares_memory(number_labels(labels).numbers, labels.numpy())


def test_empty_labels_are_integers():
    assert number_labels([]).numbers.dtype == check_labels([], 2).dtype == np.int64
    assert number_labels(number := ClassLabels(np.array([0]))) is number


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2], False),
        ([0, 1, 1], True),
        ([7, 9, 8], False),
        ([-5, 90, -5], True),
        ([True, False], False),
        (["a", "b"], False),
        (["a", "a"], True),
        ([0.0, np.nan], False),
        ([], False),
    ],
)
def test_repeats(values, expected):
    """Labels have repeats if two samples share one."""
    assert has_repeats(label_column(values)) is expected


def test_every_integer_type_is_accepted():
    """By the sampler and the controller, too."""
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        labels = np.array([0, 1, 1, 0], dtype=dtype)
        controller = FeedbackController(2)
        for batch in FeedbackBatchSampler(labels, 2, 3, controller):
            assert sorted(labels[batch].tolist()) == [0, 1]
            controller.step_update(labels[batch])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1]], r"shape \(N,\), one class per sample, got shape \(1, 2\)"),
        ([0.0, 1.0], r"must be integers, got float64"),
        ([0, -1], r"at least 0, got -1"),
        ([0, 3], r"must lie in \[0, 3\), got 3\. State num_classes=4 or more"),
    ],
)
def test_class_numbers_of_a_batch(labels, message):
    """The labels of a batch are class numbers."""
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 3)
