"""Labels of samples that can have several, in any form, as sets of class numbers."""

import warnings

import numpy as np
import pytest
import torch

from lightning_fair.common.label_columns import has_repeats, label_column
from lightning_fair.common.label_set_values import SetColumn, is_constant, join_columns, same_columns, take_samples
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.common.label_values import number_labels

MATRIX = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]])
SETS = [[0, 2], [3], [1], [0, 1]]  # class 3 is that of the samples without a label


def sets(labels):
    """Return the classes of each sample."""
    assert isinstance(labels.numbers, LabelSets)
    return [row.nonzero()[0].tolist() for row in labels.numbers.to_dense()]


def frame(matrix=MATRIX, **settings):
    return pytest.importorskip("pandas").DataFrame(matrix, **settings)


def sparse(kind, matrix=MATRIX):
    return getattr(pytest.importorskip("scipy.sparse"), kind)(matrix)


def to_sparse_csr(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a beta state
        return tensor.to_sparse_csr()


FORMS = {
    "int": lambda: MATRIX,
    "bool": lambda: MATRIX.astype(bool),
    "uint8": lambda: MATRIX.astype(np.uint8),
    "float16": lambda: MATRIX.astype(np.float16),
    "object": lambda: MATRIX.astype(object),
    "tensor": lambda: torch.tensor(MATRIX),
    "float tensor": lambda: torch.tensor(MATRIX).float(),
    "bfloat16": lambda: torch.tensor(MATRIX).bfloat16(),
    "bool tensor": lambda: torch.tensor(MATRIX).bool(),
    "nested list": lambda: MATRIX.tolist(),
    "nested list of floats": lambda: MATRIX.astype(float).tolist(),
    "list of arrays": lambda: list(MATRIX),
    "tuple of arrays": lambda: tuple(MATRIX),
    "list of tensors": lambda: list(torch.tensor(MATRIX)),
    "iterator": lambda: iter(MATRIX.tolist()),
    "frame": lambda: frame(),
    "frame of two types": lambda: frame().astype({0: bool}),
    "nullable frame": lambda: frame().astype("Int64"),
    "numpy.matrix": lambda: sparse("csr_matrix").todense(),
    "dok": lambda: sparse("dok_matrix"),
    "csr": lambda: sparse("csr_matrix"),
    "csc": lambda: sparse("csc_array"),
    "coo": lambda: sparse("coo_array"),
    "lil": lambda: sparse("lil_matrix"),
    "sparse bool": lambda: sparse("csr_array").astype(bool),
    "torch coo": lambda: torch.tensor(MATRIX).to_sparse(),
    "torch csr": lambda: to_sparse_csr(torch.tensor(MATRIX).float()),
    "torch coo bool": lambda: torch.tensor(MATRIX).bool().to_sparse(),
    "lists": lambda: [[2, 0], [], [1], [1, 0]],
    "lists with repeats": lambda: [[0, 2, 2], [], [1], [1, 0, 1]],
    "list of sets": lambda: [{0, 2}, set(), {1}, {0, 1}],
    "list of frozensets": lambda: [frozenset(row) for row in ([0, 2], [], [1], [0, 1])],
    "lists and sets": lambda: [[0, 2], set(), {1}, [0, 1]],
    "list of ragged arrays": lambda: [np.array([0, 2]), np.array([], int), np.array([1]), np.array([0, 1])],
    "list of ragged tensors": lambda: [torch.tensor(row) for row in ([0, 2], [], [1], [0, 1])],
    "floats": lambda: [[0.0, 2.0], [], [1.0], [0.0, 1.0]],
    "sets of tensors": lambda: [set(torch.tensor([0, 2])), set(), {torch.tensor(1)}, set(torch.tensor([0, 1]))],
    "numbers beside lists": lambda: [[0, 2], [], 1, [0, 1]],
    "array of lists": lambda: np.array([[0, 2], [], [1], [0, 1]], dtype=object),
    "Series of lists": lambda: pytest.importorskip("pandas").Series([[0, 2], [], [1], [0, 1]], index=[3, 1, 2, 7]),
    "Series of sets": lambda: pytest.importorskip("pandas").Series([{0, 2}, set(), {1}, {0, 1}]),
    "Arrow": lambda: pytest.importorskip("pyarrow").array([[0, 2], [], [1], [0, 1]]),
    "Arrow in pieces": lambda: pytest.importorskip("pyarrow").chunked_array([[[0, 2], []], [[1], [0, 1]]]),
    "Arrow matrix": lambda: pytest.importorskip("pyarrow").array(MATRIX.tolist()),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    """Zeros and ones, sparse matrices and lists of classes are the same labels."""
    labels = number_labels(FORMS[form]())
    assert sets(labels) == SETS
    assert labels.numbers.has_unlabeled
    assert labels.numbers.counts.tolist() == [2, 2, 1, 1]
    if "frame" not in form:
        assert labels.names is labels.values is None


@pytest.mark.parametrize(
    "values",
    [
        [["dog", "cat"], [], ["cat"]],
        [{"dog", "cat"}, set(), {"cat"}],
        [np.array(["dog", "cat"]), np.array([], str), np.array(["cat"])],
        [["dog", "cat"], [], "cat"],
        [[b"dog", b"cat"], [], [b"cat"]],
        [{("dog",), ("cat",)}, set(), {("cat",)}],
    ],
    ids=["lists", "sets", "arrays", "string beside lists", "bytes", "tuples"],
)
def test_names(values):
    """Labels that are no numbers are numbered in sorted order, and name the classes; the last one is "none"."""
    labels = number_labels(values)
    assert sets(labels) == [[0, 1], [2], [0]]
    assert labels.names == ("cat", "dog", "none")
    assert labels.values[2] == "none"


def test_other_names():
    """A label "none" of the data keeps its name; identifiers and columns of a frame are names; a matrix has none."""
    labels = number_labels([["none", "cat"], [], ["cat"]])
    assert labels.names == ("cat", "none", "(none)")
    assert number_labels([["cat", "dog"], ["cat"]]).names == ("cat", "dog")
    labels = number_labels([[70, 2**40], [70], []])
    assert (labels.names, sets(labels)) == (("70", str(2**40), "none"), [[0, 1], [0], [2]])
    labels = number_labels(frame(columns=["car", "dog", "cat"]))
    assert (labels.names, sets(labels)) == (("car", "dog", "cat", "none"), SETS)
    assert number_labels(frame(MATRIX[:1], columns=list("abc"))).values == ("a", "b", "c")


@pytest.mark.parametrize(
    "values",
    [
        np.eye(3)[[0, 2, 2]],
        pytest.param(lambda: sparse("csr_array")[[2, 2]], id="sparse"),
        pytest.param(lambda: torch.eye(3).to_sparse(), id="torch"),
        [[0], [2], [2]],
        [{0}, {2}, {2}],
        [["a"], ["b"], ["b"]],
        np.array([[0], [1], [1]]),
        pytest.param(lambda: torch.tensor([[0], [1], [1]]).to_sparse(), id="column"),
        pytest.param(lambda: sparse("csr_array", [[0], [1], [1]]), id="sparse column"),
    ],
    ids=lambda values: type(values).__name__,
)
def test_one_label_each(values):
    """If every sample has exactly one label, they are single labels."""
    labels = number_labels(values() if callable(values) else values)
    assert isinstance(labels.numbers, np.ndarray)
    assert labels.numbers.ndim == 1


@pytest.mark.parametrize(
    ("values", "num_classes", "num_named", "expected"),
    [
        (MATRIX, None, 0, (4, True)),
        (MATRIX, 3, 0, (4, True)),
        (MATRIX, 4, 0, (4, True)),
        (MATRIX[[0, 2]], None, 9, (3, False)),
        (MATRIX[[0, 2]], 3, 0, (3, False)),
        (MATRIX[[0, 2]], 4, 0, (4, True)),
        ([[0, 2], [1]], None, 0, (3, False)),
        ([[0, 2], [1]], None, 5, (5, False)),
        ([[0, 2], []], None, 5, (6, True)),
        ([[0, 7], []], None, 8, (9, True)),
        ([[0, 2], [1]], 5, 0, (5, False)),
        ([[0, 2], []], 3, 0, (4, True)),
        ([["b", "a"], []], 2, 0, (3, True)),
        ([["b", "a"], []], 3, 0, (3, True)),
        ([["b", "a"], ["a"]], None, 7, (2, False)),
    ],
)
def test_number_of_classes(values, num_classes, num_named, expected):
    """Samples without a label are one class more."""
    labels = number_labels(values, num_classes, num_named)
    assert (labels.numbers.num_classes, labels.numbers.has_unlabeled) == expected
    assert labels.names is None or len(labels.names) == expected[0]


def test_last_class_that_can_be_two_things():
    """That of samples without a label, or a label without samples. Rows have a column for each label."""
    lists, rows = [[0, 2], []], [[1, 0, 1], [0, 0, 0]]
    with pytest.raises(ValueError, match=r"is 4: no sample has label 3, and 1 samples have no label.*rows of zeros"):
        number_labels(lists, 4)
    assert number_labels(rows, 4).numbers.counts.tolist() == [1, 0, 1, 1]
    assert number_labels([[*row, 0] for row in rows], 4).numbers.counts.tolist() == [1, 0, 1, 0, 1]


UNKNOWN = [[1, 0, -1], [0, 1, 1]]
IS_ONE, IS_KNOWN = "(np.asarray(labels) == 1)", [[0], [1, 2]]
AS_SETS = "[set(row) for row in labels]"
PRESENT = "[{label for label in row if label >= 0} for row in labels]"
KNOWN = "[{label for label in row if label == label and label is not None} for row in labels]"


@pytest.mark.parametrize(
    ("values", "message", "remedy", "expected"),
    [
        (UNKNOWN, r"not of zeros and ones: got -1 for sample 0, column 2\. If that means", IS_ONE, IS_KNOWN),
        (torch.tensor(UNKNOWN).float(), r"got -1\.0 for sample 0, column 2", IS_ONE, IS_KNOWN),
        ([[1, 0, float("nan")], [0, 1, 1]], r"got nan for sample 0, column 2", IS_ONE, IS_KNOWN),
        (lambda: frame(UNKNOWN), r"got -1 for sample 0, column 2", IS_ONE, IS_KNOWN),
        (lambda: sparse("csr_array", UNKNOWN), r"got -1 for sample 0, column 2", "(labels == 1)", IS_KNOWN),
        (lambda: torch.tensor(UNKNOWN).to_sparse(), r"got -1 for", "(labels.to_dense() == 1)", IS_KNOWN),
        (np.array([[0.9, 0.2], [0.7, 0.6]]), r"got 0\.9 ", "(np.asarray(labels) > 0.5)", [[0], [0, 1]]),
        ([[0, 2], [1, 2]], r"other numbers than 0 and 1", AS_SETS, [[0, 2], [1, 2]]),
        (np.array([[0, 2], [1, 2]]), r"other numbers than 0 and 1", AS_SETS, [[0, 2], [1, 2]]),
        (torch.tensor([[0, 2], [1, 2]]), r"other numbers than 0 and 1", AS_SETS, [[0, 2], [1, 2]]),
        ([["a", "b"], ["c", "b"]], r"could be two kinds of labels", AS_SETS, [[0, 1], [1, 2]]),
        (
            lambda: frame([["a", "b"], ["c", "b"]]),
            r"could be two kinds of labels",
            "[set(row) for row in labels.to_numpy()]",
            [[0, 1], [1, 2]],
        ),
        (
            lambda: frame([[0, 2], [1, 2]]),
            r"other numbers than 0 and 1",
            "[set(row) for row in labels.to_numpy()]",
            [[0, 2], [1, 2]],
        ),
        (lambda: frame([[1, 0, None], [0, 1, 1]]), r"has missing values", "labels.fillna(0)", IS_KNOWN),
        (
            lambda: frame([[1, 0, None], [0, 1, 1]], dtype="Int64"),
            r"has missing values",
            "labels.fillna(0)",
            IS_KNOWN,
        ),
        ([(0, 2), (1,)], r"tuples of different lengths", AS_SETS, [[0, 2], [1]]),
        ([{-1, 0, 2}, {-1, 1}], r"at least 0, got -1\. If it stands for no label", PRESENT, [[0, 2], [1]]),
        ([[0, 1], None], r"1 samples have None, the first is sample 1", "[row or [] for row in labels]", [[0, 1], [2]]),
        ([None, {0, 1}], r"1 samples have None, the first is sample 0", "[row or [] for row in labels]", [[2], [0, 1]]),
        ([["a", None], ["a", "b", "c"]], r"1 labels are None or NaN", KNOWN, [[0], [0, 1, 2]]),
        ([[1, float("nan")], [1, 0, 2]], r"1 labels are None or NaN", KNOWN, [[1], [0, 1, 2]]),
    ],
)
def test_refusals_with_a_remedy(values, message, remedy, expected):
    """What are no labels is refused, and the remedy that the error names works."""
    labels = values() if callable(values) else values
    with pytest.raises(ValueError, match=message) as info:
        number_labels(labels)
    assert f"labels={remedy}" in str(info.value)
    assert sets(number_labels(eval(remedy, {"labels": labels, "np": np}))) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda: pytest.importorskip("pyarrow").array([[0, 1], None, [2]]), "1 samples have None"),
        ([{"labels": [1, 2]}, {"labels": []}], r"'dict'\. Of several labels a sample, pass the set of each"),
        ([[[0, 1]], [[1, 1], [0, 1]]], r"got lists in lists\. Of several labels a sample, pass the set of each"),
        (
            torch.tensor([[-0.4, 1.5], [0.3, 0.2]]),
            r"got -0\.4.* for sample 0, column 0\. Of several labels a sample, pass",
        ),
        (
            lambda: sparse("csr_array", [[1, 0], [2, 1]]),
            r"zeros and ones: got 2 for sample 1, column 0\. Of several labels",
        ),
        ([range(2), range(3)], r"got one of type range\. Of several labels a sample, pass the set of each"),
        ([[0.5, 1], [1]], r"whole numbers or names, got 0\.5"),
        (torch.zeros(3, 5), r"no sample has one"),
        ([[], []], r"no sample has one"),
        (torch.zeros(2, 3, 2).to_sparse(), r"sparse tensor of shape \(2, 3, 2\)"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(ValueError, match=message):
        number_labels(values() if callable(values) else values)


@pytest.mark.parametrize(
    "rows", [[[0, 2], [1, 2], [0, 2]], torch.tensor([[0, 2], [1, 2], [0, 2]])], ids=["list", "tensor"]
)
def test_a_class_for_each_combination(rows):
    """The other remedy for rows of classes."""
    with pytest.raises(ValueError, match=r"tuples: labels=\[tuple\(row\) for row in labels\]"):
        number_labels(rows)
    assert number_labels([tuple(row) for row in rows]).numbers.tolist() == [0, 1, 0]


def test_stated_number_of_classes():
    """It must fit, and what the error names does."""
    with pytest.raises(ValueError, match=r"must lie in \[0, 4\), got 9\. State num_classes=10 or more"):
        number_labels([[0, 9], [1]], 4)
    assert number_labels([[0, 9], [1]], 10).numbers.num_classes == 10
    with pytest.raises(
        ValueError, match=r"must be 3, as the labels have 3 columns, or 4 with a class for samples with"
    ):
        number_labels(MATRIX, 5)


@pytest.mark.parametrize("values", [MATRIX, [["b", "a"], [], ["c"], ["a"]]], ids=["matrix", "lists"])
def test_columns(values):
    """Parts of columns, and parts that are put together, have the labels of their samples."""
    column = label_column(values)
    assert isinstance(column, SetColumn)
    expected = sets(number_labels(column))
    part = take_samples(column, [3, 0, 1, 2])
    assert len(part) == 4
    assert sets(number_labels(part)) == [expected[i] for i in (3, 0, 1, 2)]
    both = join_columns([part, column])
    assert sets(number_labels(both)) == [expected[i] for i in (3, 0, 1, 2, 0, 1, 2, 3)]
    assert same_columns(take_samples(both, range(4, 8)), column)
    assert not same_columns(part, column)
    assert has_repeats(both)


def test_parts_of_several_kinds():
    """Single labels beside several are labels, too; matrices must have as many columns as each other."""
    single, column = label_column([2, 0]), label_column(MATRIX)
    assert sets(number_labels(join_columns([single, column]))) == [[2], [0], *SETS]
    assert same_columns(single, take_samples(join_columns([column, single]), [4, 5]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\), got 5"):
        number_labels(join_columns([label_column([5, 0]), column]))
    with pytest.raises(ValueError, match=r"columns\. Pass labels=<a matrix"):
        join_columns([column, label_column(MATRIX[:, :2])])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 1], [0, 1]], True),
        (np.zeros((3, 2)), True),
        (np.ones((3, 2)), True),
        ([[1, 1], [0, 0]], False),
        ([[1, 1, 0], [1, 0, 1]], False),
        ([2, 2], True),
        ([2, 1], False),
        ([{1, 2}, {1}], False),
    ],
)
def test_constant(values, expected):
    assert is_constant(label_column(values)) is expected
