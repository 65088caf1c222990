"""The labels of a data set, without loading its samples."""

from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split

from lightning_fair.common.labels import class_names, find_labels, look_up_labels
from lightning_fair.dataloaders.label_scan import find_loader_labels

Y = [0, 1, 1, 2]


class Untouchable(Dataset):
    """A data set whose samples must not be loaded."""

    def __init__(self, size=4, **attributes):
        self.size = size
        self.__dict__.update(attributes)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        raise AssertionError("a sample was loaded")


class Wrapper(Untouchable):
    """A data set around another one."""

    def __init__(self, dataset):
        super().__init__(len(dataset), dataset=dataset)


class GetLabels(Untouchable):
    def get_labels(self):
        return Y


class Lazy(Untouchable):
    @property
    def targets(self):
        raise RuntimeError("not downloaded")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def hugging_face(**columns):
    datasets = pytest.importorskip("datasets")
    features = {name: datasets.Value("int64") for name in columns}
    features["label"] = datasets.ClassLabel(names=["ant", "bee", "cat"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize(
    "dataset",
    [
        Untouchable(targets=Y),
        Untouchable(targets=torch.tensor(Y)),
        Untouchable(labels=np.array(Y)),
        Untouchable(y=Y),
        Untouchable(Y=Y),
        Untouchable(_labels=Y),
        GetLabels(),
        Untouchable(samples=[("a", 0), ("b", 1), ("c", 1), ("d", 2)]),
        Untouchable(_samples=(["a", 0], ["b", 1], ["c", 1], ["d", 2])),
        Untouchable(targets=Y, labels=["a", "b", "b", "c"]),
        TensorDataset(torch.zeros(4, 3), torch.tensor(Y)),
        TensorDataset(torch.zeros(4), torch.tensor(Y)),
        TensorDataset(torch.tensor(Y), torch.zeros(4, 3)),
        TensorDataset(torch.zeros(4, 3), torch.tensor(Y)[:, None]),
        TensorDataset(torch.zeros(4, 3), torch.tensor(Y).float()),
        TensorDataset(torch.zeros(4, 3), torch.eye(3)[Y]),
        TensorDataset(torch.zeros(4, 3), torch.arange(4), torch.tensor(Y)),
        [("a", 0), ("b", 1), ("c", 1), ("d", 2)],
        ({"y": 0}, {"y": 1}, {"y": 1}, {"y": 2}),
        [SimpleNamespace(y=torch.tensor([label])) for label in Y],
        [namedtuple("Sample", "x label")("a", label) for label in Y],
        ConcatDataset([Untouchable(2, targets=[0, 1]), Untouchable(2, labels=torch.tensor([1, 2]))]),
        ConcatDataset([Subset(Untouchable(3, targets=[0, 1, 7]), [0, 1]), [("a", 1), ("b", 2)]]),
        Subset(Subset(Untouchable(6, targets=[2, 1, 0, 1, 0, 0]), [0, 3, 1, 2]), [3, 1, 2, 0]),
        Wrapper(Untouchable(targets=Y)),
        Wrapper(Subset(Wrapper(Untouchable(5, targets=[9, *Y])), [1, 2, 3, 4])),
        Subset(Untouchable(5, targets=[-1, *Y]), [1, 2, 3, 4]),
        Subset(Untouchable(5, targets=[None, *Y]), [1, 2, 3, 4]),
        Subset(Untouchable(5, targets=[float("nan"), *Y]), [1, 2, 3, 4]),
        Subset(Untouchable(targets=[2, 1, 0, 1]), torch.tensor([2, 1, 3, 0])),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_places(dataset):
    """Labels are found in the usual places, at any depth, and no sample is loaded."""
    assert find_labels(dataset).numbers.tolist() == Y
    assert find_loader_labels(DataLoader(dataset)).numbers.tolist() == Y


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": lambda: [1, 2]},
        {"targets": None},
        {"targets": "targets.csv"},
        {"targets": 4},
        {"targets": torch.tensor(4)},
        {"targets": {"a": 0, "b": 1}},
        {"targets": [0, 1]},
        {"targets": np.zeros((4, 3))},
        {"targets": [0.5, 1.0, 1.5, 2.0]},
        {"targets": [{"boxes": 1}] * 4},
        {"targets": ["a.png", "b.png", "c.png", "d.png"]},
        {"targets": [0, 1, 2, 3]},
        {"samples": [("a.png", "a.txt"), ("b.png", "b.txt"), ("c.png", "c.txt"), ("d.png", "d.txt")]},
        {"samples": [("a", 5, 0), ("b", 6, 0), ("c", 7, 1), ("d", 5, 1)]},
        {"samples": ["a", "b", "c", "d"]},
    ],
)
@pytest.mark.parametrize("other", ["_labels", "dataset"])
def test_unusable_place_blocks_no_other(attributes, other):
    """An attribute that is not one class per sample does not hide a later place that is."""
    attributes = {**attributes, other: Y if other == "_labels" else Untouchable(_labels=Y)}
    assert find_labels(Untouchable(**attributes)).numbers.tolist() == Y


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"targets": np.full((4, 3), 2)}, r"not one-hot"),
        ({"targets": {"a": 0, "b": 1}}, r"dict with 2 keys"),
        ({"targets": np.zeros((4, 5, 5))}, r"Of masks"),
        ({"labels": [0, 1, 1]}, r"got 3 for the 4 samples of Untouchable, in its attribute 'labels'"),
        ({"y": [0.5, 1.5, 2.5, 1.0]}, r"to balance|whole numbers"),
        ({"samples": [("a", {"boxes": 3})] * 4}, r"hashable"),
        ({"targets": [0, 1, None, 1]}, r"1 samples have none"),
        ({"targets": [0, 1, -1, 1]}, r"at least 0, got -1"),
    ],
    ids=str,
)
def test_reason_of_refusal(attributes, message):
    """If no place fits, the error says why the first one that looks like labels does not."""
    for dataset in (Untouchable(**attributes), Subset(Untouchable(**attributes), [0, 2, 1, 3])):
        with pytest.raises(ValueError, match=message):
            find_labels(dataset)


def test_property_that_raises():
    """A property that cannot be computed does not hide another place."""
    assert find_labels(Lazy(_labels=Y)).numbers.tolist() == Y
    with pytest.raises(TypeError, match="Lazy has no labels"):
        find_labels(Lazy())


def test_own_labels_of_a_subset_have_priority():
    class Remapped(Subset):
        targets = np.array([1, 0, 0])

    dataset = TensorDataset(torch.zeros(4), torch.tensor([0, 0, 1, 1]))
    assert find_labels(Remapped(dataset, [0, 1, 2])).numbers.tolist() == [1, 0, 0]
    assert find_labels(Remapped(dataset, [2, 3, 0, 1])).numbers.tolist() == [1, 1, 0, 0]


# -- one label per sample, at every depth -----------------------------------------------------------------


class Filtered(Dataset):
    """Leaves samples out after ``targets`` was made."""

    targets = [0, 1, 1, 0, 1, 0]  # noqa: RUF012
    kept = (1, 2, 4)

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, index):
        return self.kept[index] + 0.5, self.targets[self.kept[index]]


class Repeated(Filtered):
    kept = (0, 1, 2, 3, 4, 5) * 2


@pytest.mark.parametrize("dataset", [Filtered(), Repeated()])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: Subset(d, [0, 2, 1]),
        lambda d: random_split(d, [2, len(d) - 2])[0],
        lambda d: Subset(Subset(d, [2, 1, 0]), [0, 1, 2]),
        lambda d: ConcatDataset([d, d]),
        Wrapper,
    ],
)
def test_number_of_labels_at_every_depth(dataset, wrap):
    """Labels that are not those of the samples are refused at the inner data set, and both remedies work."""
    outer = wrap(dataset)
    message = f"got 6 for the {len(dataset)} samples of {type(dataset).__name__}.*labels=<one.*labels='scan'"
    with pytest.raises(ValueError, match=message):
        find_labels(outer)
    if not isinstance(outer, Wrapper):
        expected = [outer[i][1] for i in range(len(outer))]
        assert find_loader_labels(DataLoader(outer), "scan").numbers.tolist() == expected
        assert find_labels(outer, expected).numbers.tolist() == expected


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([("a.png", "a.txt"), ("b.png", "b.txt")], r"no two samples of list have the same label, such as 'a\.txt'"),
        (Wrapper(Untouchable(targets=["a", "b", "c", "d"])), r"no two samples of Wrapper have the same label"),
        ([("a", torch.zeros(4, 4))] * 3, r"sample 0 has a label of shape \(4, 4\)"),
        ([("a", [0, 2, 1])] * 3, r"not one-hot"),
        (
            [("a", ["a.txt", "b.txt"]), ("b", ["c.txt"])],
            r"no two samples of list have the same label, such as 'a\.txt'",
        ),
        ([{"label": {"boxes": 3}}] * 3, r"hashable"),
    ],
)
def test_names_of_samples_are_no_labels(dataset, message):
    with pytest.raises(ValueError, match=message):
        find_labels(dataset)


def test_labels_argument_must_fit_the_data():
    with pytest.raises(ValueError, match=r"one per sample: got 3 for the 4 samples of Untouchable\. Pass labels="):
        find_labels(Untouchable(), labels=[0, 1, 1])


@pytest.mark.parametrize("dataset", [[], np.array([], dtype=int), Subset(Untouchable(targets=Y), [])])
def test_empty_data_set_is_refused(dataset):
    with pytest.raises(ValueError, match=r"data set is empty: there is nothing to draw from"):
        find_labels(dataset)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (TensorDataset(torch.zeros(4, 3)), r"TensorDataset has no labels in the usual places.*Pass labels=.*'scan'"),
        (TensorDataset(torch.arange(4)), r"TensorDataset has no labels"),
        (Untouchable(), r"Untouchable has no labels in the usual places.*Pass labels=.*labels='scan'"),
        (Untouchable(labels=lambda: Y), r"Untouchable has no labels"),
        (Subset(Untouchable(), [0]), r"Untouchable has no labels"),
        (Wrapper(Subset(Untouchable(), [0])), r"Untouchable has no labels"),
        (Stream(), r"Stream is a stream: .* needs a map-style data set"),
        (iter([1]), r"list_iterator is a stream"),
    ],
)
def test_data_set_without_labels_is_refused(dataset, message):
    with pytest.raises(TypeError, match=message):
        find_labels(dataset)


@pytest.mark.parametrize(
    "dataset",
    [range(4), [3, 1, 1, 2], ["a", "b"], np.array(Y), torch.tensor(Y), [torch.zeros(3)] * 4, Subset(range(9), [0, 1])],
    ids=lambda dataset: type(dataset).__name__,
)
def test_samples_are_no_labels(dataset):
    """The elements of a data set that is a range, a list or an array are samples. Labels for them can be given."""
    with pytest.raises(TypeError, match=r"samples and not labels.*labels=\[label_of\[id\] for id in ids\]"):
        find_labels(dataset)
    label_of = dict(enumerate([0, 1, 1, 0, 0, 0, 0, 0, 1]))
    labels = [label_of[index] for index in range(len(dataset))]
    assert find_labels(dataset, labels).numbers.tolist() == labels


def test_error_names_what_there_is():
    """An error names the columns, or the attributes, that may be meant; the example works."""
    datasets = pytest.importorskip("datasets")
    pd = pytest.importorskip("pandas")
    columns = {"text": ["p", "q", "r"], "intent": ["a", "b", "a"]}
    for table in (datasets.Dataset.from_dict(columns), Wrapper(pd.DataFrame(columns))):
        with pytest.raises(TypeError, match=r"Its columns are 'text', 'intent'; for example labels='intent'\. Pass"):
            find_labels(table)
        assert find_labels(table, "intent").names == ("a", "b")
    data = Untouchable(files=list("abcd"), n=torch.tensor(4), kinds=list("aabb"), features=np.zeros((4, 2)))
    with pytest.raises(TypeError, match=r"It has 'kinds'; for example labels='kinds'\."):
        find_labels(Subset(data, [0, 1]), "kind")


# -- several columns ----------------------------------------------------------------------------------------

SEVERAL = TensorDataset(torch.zeros(4, 3), torch.tensor([5, 5, 3, 3]), torch.tensor(Y))


class Swapped(Wrapper):
    """A wrapper whose samples have other elements than those of the inner data set."""

    def __getitem__(self, index):
        return self.dataset[index][::-1]


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: Subset(d, range(4)), lambda d: random_split(d, [3, 1])[0], list]
)
def test_several_columns(wrap):
    """If several columns can be the labels, the error names them, and the position decides."""
    dataset = wrap(SEVERAL)
    with pytest.raises(ValueError, match=r"could be element 1 or 2 of each sample.*labels=2"):
        find_labels(dataset)
    labels = find_loader_labels(DataLoader(dataset), labels=2).numbers.tolist()
    assert labels == [Y[i] for i in getattr(dataset, "indices", range(4))]
    assert look_up_labels(dataset, 3) is None


def test_several_columns_in_a_wrapper():
    """The position is that in the samples of the wrapper."""
    with pytest.raises(ValueError, match="could be element 1 or 2"):
        find_labels(Swapped(SEVERAL))
    assert look_up_labels(Swapped(SEVERAL), 0) is None
    assert find_loader_labels(DataLoader(Swapped(SEVERAL)), 0).numbers.tolist() == Y


def test_negative_column_is_a_column():
    """A column is no better than another one because it is not negative."""
    with pytest.raises(ValueError, match="could be element 1 or 2"):
        find_labels(TensorDataset(torch.zeros(4, 3), torch.tensor([5, 5, 3, 3]), torch.tensor([-1, 1, 1, -1])))


FLOATS = torch.tensor(Y).float()


@pytest.mark.parametrize("y", [FLOATS, FLOATS[:, None], torch.eye(3)[Y], torch.tensor(Y).bool()])
@pytest.mark.parametrize("category", [torch.tensor([5, 5, 3, 3]), torch.tensor([5.0, 5.0, 3.0, 3.0])])
def test_whole_numbers_of_any_type(y, category):
    """A column of integers is no better than one of whole floats or one-hot rows, which are usual for binary losses."""
    data = TensorDataset(torch.rand(4, 3), category, y)
    with pytest.raises(ValueError, match=r"could be element 1 or 2 .*labels=2"):
        find_labels(data)
    assert find_labels(data, 1).numbers.tolist() == find_labels(data, category).numbers.tolist()
    assert find_labels(data, 2).place == "tensor 2"


@pytest.mark.parametrize(
    "other", [torch.ones(4), torch.rand(4), torch.zeros(4, 1), torch.arange(4.0), torch.rand(4, 2)]
)
@pytest.mark.parametrize("y", [torch.tensor(Y), FLOATS])
def test_columns_that_do_not_count(other, y):
    """A weight of 1.0, a real number or an index is no label beside another column."""
    assert find_labels(TensorDataset(torch.rand(4, 3), other, y)).numbers.tolist() == Y
    samples = [("x", *map(torch.Tensor.tolist, row)) for row in zip(other, y, strict=True)]
    if other.ndim == 1:
        assert find_labels(samples).numbers.tolist() == Y


@pytest.mark.parametrize(
    ("dataset", "labels", "place"),
    [
        (Untouchable(targets=Y), None, "attribute 'targets'"),
        (Subset(Wrapper(GetLabels()), [1, 0]), None, "method 'get_labels'"),
        (
            ConcatDataset([Untouchable(y=Y), Untouchable(y=Y), Untouchable(labels=Y)]),
            None,
            "attribute 'y' and attribute 'labels'",
        ),
        (TensorDataset(torch.rand(4, 3), torch.tensor(Y)), None, "tensor 1"),
        ([("x", y) for y in Y], None, "element 1 of the samples"),
        ([("x", 1.0, float(y)) for y in Y], None, "element 2 of the samples"),
        ([{"x": 1.0, "label": y} for y in Y], None, "'label' of the samples"),
        (Untouchable(site=Y), "site", "attribute 'site'"),
        (Untouchable(), Y, "labels="),
        (Untouchable(site=Y), lambda data: data.site, "labels="),
    ],
)
def test_place(dataset, labels, place):
    """The labels know where they are from."""
    assert find_labels(dataset, labels).place == place


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0.5, 1.5, 1.0, 2.0]), "whole numbers"),
        (torch.full((4, 2), 2), "not one-hot"),
        (torch.zeros(4, 5, 5), "Of masks"),
        (torch.tensor([0, -1, -1, 1]), "at least 0"),
    ],
)
def test_tensors_that_are_no_labels(y, message):
    """The second tensor is refused with its own reason."""
    with pytest.raises(ValueError, match=message):
        find_labels(TensorDataset(torch.zeros(4, 3), y))


# -- several labels of a sample -----------------------------------------------------------------------------

M = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]]
SETS = [[0, 2], [3], [1], [0, 1]]
TAGS = [{0, 2}, set(), {1}, {0, 1}]


def sets(labels):
    """Return the classes of each sample."""
    return [row.nonzero()[0].tolist() for row in labels.numbers.to_dense()]


class GetMatrix(Untouchable):
    def get_labels(self):
        return M


@pytest.mark.parametrize(
    "dataset",
    [
        Untouchable(targets=M),
        Untouchable(labels=torch.tensor(M)),
        Untouchable(y=TAGS),
        Untouchable(_labels=np.array(M, dtype=np.float32)),
        GetMatrix(),
        Untouchable(samples=[("path", row) for row in M]),
        Untouchable(samples=[("path", torch.tensor(row)) for row in M]),
        Untouchable(samples=[("path", row) for row in TAGS]),
        TensorDataset(torch.rand(4, 3), torch.tensor(M)),
        TensorDataset(torch.rand(4, 3), torch.tensor(M).float()),
        TensorDataset(torch.rand(4, 3, 3), torch.tensor(M), torch.arange(4)),
        TensorDataset(torch.rand(4, 3), torch.ones(4), torch.tensor(M)),
        TensorDataset(torch.tensor([[1, 1], [0, 1], [0, 0], [1, 1]]), torch.tensor(M)),
        TensorDataset(torch.rand(4, 3), torch.tensor(M).to_sparse()),
        [("x", row) for row in M],
        [("x", torch.tensor(row)) for row in M],
        [("x", np.array(row, dtype=float), i) for i, row in enumerate(M)],
        [("x", 1.0, torch.tensor(row)) for row in M],
        [(torch.tensor([1, 1]), torch.tensor(row)) for row in M],
        [("x", list(row)) for row in TAGS],
        [("x", torch.tensor(list(row), dtype=torch.int64)) for row in TAGS],
        [{"x": 0.5, "labels": torch.tensor(row)} for row in M],
        [SimpleNamespace(y=row) for row in TAGS],
        ConcatDataset([Untouchable(2, targets=M[:2]), Untouchable(2, labels=torch.tensor(M[2:]))]),
        ConcatDataset([Untouchable(3, targets=np.array(M)[:3]), Untouchable(1, targets=[{0, 1}])]),
        Subset(Untouchable(5, targets=[[1, 1, 1], *M]), [1, 2, 3, 4]),
        Subset(Subset(Untouchable(targets=TAGS[::-1]), [2, 3, 1, 0]), [1, 0, 2, 3]),
        Wrapper(Subset(Wrapper(Untouchable(5, targets=[{9}, *TAGS])), [1, 2, 3, 4])),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_several_labels(dataset):
    """Several labels of a sample are where single ones are, and no sample is loaded."""
    if isinstance(dataset, Wrapper):  # the labels of all samples, of which one has another class
        assert sets(find_labels(dataset)) == SETS
        return
    labels = find_labels(dataset)
    assert sets(labels) == SETS
    assert labels.place
    assert sets(find_loader_labels(DataLoader(dataset))) == SETS


def test_samples_without_a_label_in_one_part():
    """A part of a concatenation may have background only, or single labels."""
    parts = [
        Untouchable(2, targets=np.zeros((2, 3))),
        Untouchable(targets=M),
        Untouchable(targets=np.eye(3)[[2, 0, 0, 1]]),
    ]
    assert sets(find_labels(ConcatDataset(parts))) == [[3], [3], *SETS, [2], [0], [0], [1]]
    with pytest.raises(ValueError, match="no sample has one"):
        find_labels(parts[0])


@pytest.mark.parametrize("labels", ["attr", M, TAGS, lambda data: data.attr, lambda data: "attr", np.array(M)])
def test_several_labels_that_are_given(labels):
    """As values, by the name of an attribute as of CelebA, or by a function."""
    assert sets(find_labels(Untouchable(attr=torch.tensor(M)), labels)) == SETS
    sparse = pytest.importorskip("scipy.sparse").csr_array(M)
    for dataset, given in ((Untouchable(), sparse), (Untouchable(attr=sparse), "attr"), (Untouchable(y=sparse), None)):
        assert sets(find_labels(dataset, given)) == SETS
    with pytest.raises(TypeError, match=r"It has 'attr'; for example labels='attr'"):
        find_labels(Untouchable(attr=torch.tensor(M)))


def test_single_labels_go_before_several():
    """An attribute with one class per sample is what the labels have always been."""
    assert find_labels(Untouchable(targets=M, labels=Y)).numbers.tolist() == Y
    assert find_labels(Untouchable(targets=M, labels=Y)).place == "attribute 'labels'"


BINARY = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 1]])


@pytest.mark.parametrize(
    ("tensors", "place"),
    [
        ((BINARY, torch.tensor(Y)), "tensor 1"),
        ((torch.rand(4, 3), BINARY, torch.tensor(Y)), "tensor 2"),
        ((torch.rand(4, 3), torch.tensor(Y), BINARY), "tensor 1"),
        ((torch.eye(4), torch.rand(4)[:, None, None], torch.tensor(Y)), "tensor 2"),
    ],
)
def test_binary_features_and_masks_are_no_labels(tensors, place):
    """Beside single labels, a matrix of zeros and ones is what it has always been."""
    labels = find_labels(TensorDataset(*tensors))
    assert (labels.numbers.tolist(), labels.place) == (Y, place)
    assert find_labels(list(TensorDataset(*tensors))).numbers.tolist() == Y


@pytest.mark.parametrize(
    "make", [lambda *tensors: TensorDataset(*tensors), lambda *tensors: list(TensorDataset(*tensors))]
)
def test_matrices_that_can_be_labels(make):
    """If it is not clear which columns are the labels, the error says so, and the position decides."""
    other = torch.tensor(M)
    for first in (torch.tensor(Y), torch.eye(3)[Y]):
        with pytest.raises(ValueError, match=r"could be element 0 or 1 of each sample.*labels=1"):
            find_labels(make(first, other))
    with pytest.raises(ValueError, match=r"could be element 1 or 2 of each sample.*labels=2"):
        find_labels(make(torch.rand(4, 3), BINARY, other))
    assert sets(find_loader_labels(DataLoader(make(torch.rand(4, 3), BINARY, other)), 2)) == SETS
    with pytest.raises(ValueError, match="whole numbers or names, got 0"):  # and not its binary features
        find_labels(make(BINARY, torch.full((4,), 0.5)))
    assert sets(find_loader_labels(DataLoader(make(other, torch.full((4,), 0.5))), 0)) == SETS


# -- labels= ---------------------------------------------------------------------------------------------------


def last_labels(dataset):
    return dataset.dataset.groups[dataset.indices]


@pytest.mark.parametrize(
    "labels", [[1, 0], "groups", lambda d: last_labels(d), partial(last_labels), lambda d: "groups"]
)
def test_labels_argument(labels):
    """Labels are values, the name of an attribute, or a function of the data set of the loader."""
    dataset = Subset(Untouchable(targets=[0, 0, 0, 0], groups=np.array([0, 1, 0, 0])), [1, 2])
    assert find_labels(dataset, labels).numbers.tolist() == [1, 0]


def test_function_of_a_subset():
    """A function that forgets the ``Subset`` gets a hint, and the remedy works."""
    data = Untouchable(y=Y)
    with pytest.raises(TypeError, match=r"a Subset, and raised AttributeError\(.*data\.dataset.*data\.indices") as info:
        find_labels(Subset(data, [3, 0]), lambda data: data.y)
    assert isinstance(info.value.__cause__, AttributeError)
    labels = find_labels(Subset(data, [3, 0]), lambda data: [data.dataset.y[i] for i in data.indices])
    assert labels.names == ("0", "2")
    with pytest.raises(AttributeError, match="'Untouchable' object has no attribute 'z'"):
        find_labels(data, lambda data: data.z)


def test_name_through_wrappers():
    """A name is that of an attribute or column with one value per sample, at any depth."""
    inner = Untouchable(domain=["snow", "sand", "sand", "snow"])
    concat = ConcatDataset([Wrapper(inner), Subset(inner, [0, 1])])
    labels = find_labels(concat, "domain")
    assert (labels.names, labels.numbers.tolist()) == (("sand", "snow"), [1, 0, 0, 1, 1, 0])
    for dataset in (
        Untouchable(),
        Untouchable(domain="photo"),
        Untouchable(domain=lambda: Y),
        TensorDataset(torch.ones(3)),
        [("x", 0), ("y", 0)],
    ):
        assert look_up_labels(dataset, "domain") is None
        with pytest.raises(TypeError, match="has no labels at 'domain'"):
            find_labels(dataset, "domain")
    with pytest.raises(ValueError, match="got 2 for the 4 samples of Untouchable, in its attribute 'domain'"):
        find_labels(Untouchable(domain=["snow", "sand"]), "domain")


@pytest.mark.parametrize("labels", [True, 2.5, b"y"])
def test_what_labels_is_not(labels):
    with pytest.raises(ValueError, match="labels must have shape"):
        find_labels(Untouchable(targets=Y), labels)


def test_parts_of_a_concatenation():
    """Strings and numbers of different parts are different classes."""
    dataset = ConcatDataset([Untouchable(2, targets=["1", "b"]), Untouchable(3, targets=[1, 2, 1])])
    assert find_labels(dataset).numbers.tolist() == [2, 3, 0, 1, 0]


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(["a", "b"], ["a", "b"]), (("a", "b"), ["a", "b"]), ([7, 8], ["7", "8"]), ("ab", None), (None, None)],
)
def test_class_names(classes, expected):
    data = TensorDataset(torch.zeros(2))
    data.classes = classes
    assert class_names(data) == class_names(Subset(data, [0])) == expected


def test_named_numbers_are_class_numbers():
    """If the data set names so many classes, a subset with fewer samples than classes has class numbers, not ids."""
    dataset = Subset(Untouchable(targets=[0, 1, 3, 3], classes=["a", "b", "c", "d"]), [2, 3])
    assert find_labels(dataset).numbers.tolist() == [3, 3]
    assert find_labels(dataset.dataset, labels=[2**40, 3, 3, 3]).names == ("3", str(2**40))
    assert find_labels(dataset, labels=[3, 3]).names == ("3",)


# -- Hugging Face and pandas ------------------------------------------------------------------------------------


def test_hugging_face():
    """The column is read, not its rows, in the order of the samples, and has class names."""
    dataset = hugging_face(label=[0, 1, 1, 2, 2], x=[1, 2, 3, 4, 5])
    labels = find_labels(dataset)
    assert (labels.numbers.tolist(), labels.names) == ([0, 1, 1, 2, 2], ("ant", "bee", "cat"))
    assert labels.place == "column 'label'"
    for view in (
        dataset.shuffle(seed=1),
        dataset.select([4, 0, 1]),
        dataset.filter(lambda row: row["x"] > 2),
        dataset.shuffle(seed=1).select([3, 1]).with_format("torch"),
        dataset.sort("x", reverse=True),
    ):
        assert find_labels(view).numbers.tolist() == list(view["label"])
        assert find_labels(Subset(view, [1, 0])).names == ("ant", "bee", "cat")
    assert find_labels(dataset, labels=dataset["label"]).numbers.tolist() == [0, 1, 1, 2, 2]
    assert find_labels(dataset, "x").names == ("1", "2", "3", "4", "5")
    assert find_labels(ConcatDataset([dataset, dataset])).names == ("ant", "bee", "cat")
    with pytest.raises(
        TypeError, match=r"^datasets\.Dataset has no labels at 'z'\. Its columns are .*; for example labels='label'"
    ):
        find_labels(dataset, "z")


def test_hugging_face_strings_and_lists():
    """A column of strings is numbered, and so is one of lists, if no other column has single labels."""
    datasets = pytest.importorskip("datasets")
    assert find_labels(datasets.Dataset.from_dict({"label": ["b", "a", "b"]})).names == ("a", "b")
    assert find_labels(datasets.Dataset.from_dict({"label": [True, False, True]})).names == ("False", "True")
    both = datasets.Dataset.from_dict({"label": [[0, 1], [1]], "labels": [0, 0]})
    assert find_labels(both).numbers.tolist() == [0, 0]
    assert sets(find_labels(both, "label")) == sets(find_labels(both.remove_columns("labels"))) == [[0, 1], [1]]
    tags = datasets.Dataset.from_dict({"labels": [["b", "a"], [], ["b"]]})
    labels = find_labels(tags.select([2, 1, 0]))
    assert (labels.names, sets(labels)) == (("a", "b", "none"), [[1], [2], [0, 1]])
    zeros_and_ones = datasets.Dataset.from_dict({"labels": [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]})
    assert sets(find_labels(zeros_and_ones)) == [[0, 2], [1, 2]]
    with pytest.raises(ValueError, match="at least 0, got -1"):
        find_labels(hugging_face(label=[-1, -1]))


@pytest.mark.parametrize("kind", ["Sequence", "List", "LargeList"])
def test_hugging_face_lists_of_named_classes(kind):
    """Lists of classes are lists, even if they all have the length of a row of zeros and ones."""
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, kind):
        pytest.skip(f"This version has no {kind}.")
    feature = getattr(datasets, kind)(datasets.ClassLabel(names=["ant", "bee", "cat"]))
    features = datasets.Features({"labels": feature})

    def make(rows):
        return datasets.Dataset.from_dict({"labels": rows}, features=features)

    labels = find_labels(make([[0, 1], [1, 0], [1, 2]]))
    assert (labels.names, sets(labels), labels.numbers.num_classes) == (
        ("ant", "bee", "cat"),
        [[0, 1], [0, 1], [1, 2]],
        3,
    )
    labels = find_labels(Subset(make([["cat"], [], ["ant", "cat"], ["bee"]]), [0, 1, 2]))
    assert (labels.names, sets(labels)) == (("ant", "bee", "cat", "none"), [[2], [3], [0, 2]])
    assert find_labels(make([[1], [0], [1]])).numbers.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"1 samples have None, the first is sample 0"):
        find_labels(make([None, [0], [0, 1]]))
    with pytest.raises(ValueError, match=r"at least 0, got -1\. If it stands for no label"):
        find_labels(make([[-1, 0], [0]]))


@pytest.mark.slow
def test_hugging_face_images_are_not_decoded(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": b"not an image", "path": None}] * 4, "label": [0, 1, 1, 0]}
    assert find_labels(datasets.Dataset.from_dict(rows, features=features)).numbers.tolist() == [0, 1, 1, 0]


def test_data_frame():
    """The column of a DataFrame, also inside a wrapper."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": list("abcd"), "label": ["dog", "cat", "cat", "dog"], "site": [7, 9, 7, 7]})
    assert find_labels(frame).names == ("cat", "dog")
    assert find_labels(Wrapper(frame)).numbers.tolist() == [1, 0, 0, 1]
    assert find_labels(Subset(Wrapper(frame), [1, 0]), "site").names == ("7", "9")
    assert find_labels(Wrapper(frame), lambda dataset: dataset.dataset["site"]).names == ("7", "9")
    frame["label"] = [["dog"], [], ["cat", "dog"], ["dog"]]
    labels = find_labels(Subset(Wrapper(frame), [2, 1, 0]))
    assert (labels.names, sets(labels)) == (("cat", "dog", "none"), [[0, 1], [2], [1]])
    frame[["cat", "dog"]] = [[0, 1], [0, 0], [1, 1], [0, 1]]
    labels = find_labels(Wrapper(frame), lambda dataset: dataset.dataset[["cat", "dog"]])
    assert (labels.names, sets(labels)) == (("cat", "dog", "none"), [[1], [2], [0, 1], [1]])


# -- torchvision ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_images_are_not_read(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    for name, count in (("cat", 3), ("dog", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            image.new("RGB", (2, 2)).save(tmp_path / name / f"{i}.png")

    def unreadable(path):
        raise AssertionError(f"{path} was read")

    folder = torchvision.datasets.ImageFolder(tmp_path, loader=unreadable)
    assert find_labels(folder).numbers.tolist() == [0, 0, 0, 1]
    assert find_labels(Subset(folder, [3, 0])).numbers.tolist() == [1, 0]
    assert find_labels(torchvision.datasets.DatasetFolder(tmp_path, unreadable, ("png",))).numbers.tolist() == [
        0,
        0,
        0,
        1,
    ]
