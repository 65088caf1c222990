"""Labels that are read from the samples."""

import logging
import random
import warnings
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from lightning_fair.dataloaders import label_scan
from lightning_fair.dataloaders.label_scan import find_loader_labels

Y = [0, 2, 1, 2, 0, 1] * 5


class Samples(Dataset):
    """A data set that does not show its labels."""

    def __init__(self, samples):
        self.parts = samples
        self.reads = []

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.parts[index]


@dataclass
class Sample:
    label: Any


Named = namedtuple("Named", "image target")


def scan(samples, labels="scan", num_classes=None, **settings):
    return find_loader_labels(DataLoader(Samples(samples), **settings), labels, num_classes)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: ("x", y),
        lambda y: ["x", np.int64(y)],
        lambda y: ("x", torch.tensor(y)),
        lambda y: ("x", np.array([y])),
        lambda y: ("x", torch.tensor([y], dtype=torch.uint8), "text"),
        lambda y: ("x", float(y)),
        lambda y: ("x", torch.eye(3)[y]),
        lambda y: ("x", torch.zeros(4, 4), y),
        lambda y: (torch.zeros(3), torch.zeros(3), y),
        lambda y: {"x": 0.0, "label": y},
        lambda y: {"x": 0.0, "targets": torch.tensor(y), "id": 3},
        lambda y: Named("x", y),
        lambda y: Sample(y),
        lambda y: SimpleNamespace(x=torch.zeros(3), y=torch.tensor([y])),
    ],
)
def test_places(make):
    """The label is the second element, or stands at a usual key or attribute."""
    labels = scan([make(y) for y in Y])
    assert (labels.numbers.tolist(), labels.names) == (Y, None)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda y: {"label": 0, "domain": y}, "domain"),
        (lambda y: SimpleNamespace(y=0, domain=y), "domain"),
        (lambda y: namedtuple("Row", "x y z domain")("x", 0, 1, y), "domain"),
        (lambda y: ("x", 0, 1, y), 3),
        (lambda y: ("x", 0, 1, y), -1),
        (lambda y: ["x", y, 1, 0], lambda dataset: 1),
    ],
)
def test_key(make, key):
    """A name or a position says where the label stands."""
    assert scan([make(y) for y in Y], key).numbers.tolist() == Y


def test_names():
    """Strings, bools and ids are numbered, and name the classes."""
    labels = scan([("x", "abc"[y]) for y in Y])
    assert (labels.numbers.tolist(), labels.names) == (Y, ("a", "b", "c"))
    assert scan([("x", y == 1) for y in Y]).names == ("False", "True")
    assert scan([{"site": 2**40 + y} for y in Y], "site").numbers.tolist() == Y
    assert scan([("x", 100)] * 3, num_classes=101).numbers.tolist() == [100] * 3


TAGS = [[0, 2], [], [1], [2], [0, 1, 2], [1, 0]] * 5
SETS = [sorted(row) or [3] for row in TAGS]


def row_of(tags):
    return torch.zeros(3).index_fill(0, torch.tensor(tags, dtype=torch.int64), 1)


def sets(labels):
    """Return the classes of each sample."""
    return [row.nonzero()[0].tolist() for row in labels.numbers.to_dense()]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda y: ("x", row_of(y)), "scan"),
        (lambda y: ("x", row_of(y).int().tolist()), "scan"),
        (lambda y: ("x", row_of(y).bool().numpy(), 0.5), "scan"),
        (lambda y: (torch.ones(2), row_of(y)), "scan"),
        (lambda y: ("x", 1.0, row_of(y)), "scan"),
        (lambda y: ("x", y), "scan"),
        (lambda y: ("x", set(y)), "scan"),
        (lambda y: ("x", torch.tensor(y, dtype=torch.int64)), "scan"),
        (lambda y: {"x": 0.5, "labels": row_of(y)}, "scan"),
        (lambda y: {"label": 0, "attr": row_of(y)}, "attr"),
        (lambda y: {"label": 0, "attr": y}, "attr"),
        (lambda y: (row_of(y), "x"), 0),
        (lambda y: ("x", 0, 1, y), 3),
    ],
)
def test_several_labels(make, key, monkeypatch, tmp_path):
    """Zeros and ones, and lists of classes, are labels of a sample; a later scan takes them from the cache."""
    monkeypatch.setenv("LIGHTNING_FAIR_CACHE", str(tmp_path))
    dataset = Samples([make(y) for y in TAGS])
    for reads in (len(TAGS), label_scan._NUM_PROBES):
        dataset.reads.clear()
        assert sets(find_loader_labels(DataLoader(dataset), key)) == SETS
        assert len(dataset.reads) == reads


def test_names_of_several_labels():
    labels = scan([("x", ["abc"[y] for y in row]) for row in TAGS])
    assert (sets(labels), labels.names) == (SETS, ("a", "b", "c", "none"))
    assert scan([("x", row_of(y)) for y in TAGS[2:]], num_classes=4).numbers.num_classes == 4
    with pytest.raises(ValueError, match="num_classes must be 3, as the labels have 3 columns, or 4 with a class"):
        scan([("x", row_of(y)) for y in TAGS], num_classes=2)


def test_masks_beside_single_labels():
    """An attention mask is no label, whether it is padded or not."""
    masks = [torch.tensor([1, 1, i % 2]) for i in range(len(Y))]
    assert scan([("x", mask, y) for mask, y in zip(masks, Y, strict=True)]).numbers.tolist() == Y
    assert scan([("x", y, mask[: 2 + y]) for mask, y in zip(masks, Y, strict=True)]).numbers.tolist() == Y
    with pytest.raises(ValueError, match=r"could be element 1 or 2"):
        scan([("x", mask, row_of(y)) for mask, y in zip(masks, TAGS, strict=True)])


@pytest.mark.parametrize("second", [lambda y: y % 2, lambda y: "ab"[y % 2]])
def test_ambiguous_samples(second):
    """If several elements can be the label, the error names them, and the remedy works."""
    samples = [("x", second(y), y, i) for i, y in enumerate(Y)]
    with pytest.raises(ValueError, match=r"could be element 1 or 2 of each sample \(counted from 0\).*labels=2"):
        scan(samples)
    assert scan(samples, 2).numbers.tolist() == Y


@pytest.mark.parametrize(
    "kind", [float, torch.tensor, lambda y: torch.tensor([float(y)]), np.float32, lambda y: torch.eye(3)[y]]
)
def test_whole_floats(kind):
    """Whole floats and one-hot rows are as good as integers, a real number or a constant is not."""
    with pytest.raises(ValueError, match=r"could be element 1 or 2"):
        scan([("x", i // 5, kind(y)) for i, y in enumerate(Y)])
    labels = scan([("x", kind(1), kind(y), torch.tensor(i / 3)) for i, y in enumerate(Y)])
    assert (labels.numbers.tolist(), labels.place) == (Y, "element 2 of the samples")
    with pytest.raises(ValueError, match="have none"):
        scan([("x", i / 7, float(y) if i else float("nan")) for i, y in enumerate(Y)])


@pytest.mark.parametrize("make", [lambda i, y: ("x", y, i), lambda i, y: ("x", i, y), lambda i, y: (i, f"{i}.png", y)])
def test_index_is_no_label(make):
    """An element that is different in each sample does not count beside another one."""
    samples = [make(i, y) for i, y in enumerate(Y)]
    assert scan(samples).numbers.tolist() == Y


@pytest.mark.parametrize(
    ("samples", "labels", "error", "message"),
    [
        (
            [("x", 0), "lone"],
            "scan",
            TypeError,
            r"second element, .*of each sample, but sample 1 is a str.*Pass labels=",
        ),
        ([("x",)], "scan", TypeError, r"labels='scan' reads the second element.*sample 0 is a tuple"),
        ([{"x": 0}], "scan", TypeError, r"sample 0 is a dict without one, and without a key or attribute 'label' or"),
        ([torch.zeros(3)], "scan", TypeError, r"sample 0 is a Tensor"),
        ([("x", 0)] * 40 + [("x",)], "scan", TypeError, r"sample 40 is a tuple"),
        ([("x", 0.5)], "scan", ValueError, r"whole numbers or names, got 0\.5"),
        ([("x", -1)], "scan", ValueError, r"labels must be at least 0, got -1"),
        ([("x", None), ("x", 1)], "scan", ValueError, r"1 samples have none"),
        ([("x", np.array([0, 2, 1]))], "scan", ValueError, r"one class per sample.*not one-hot"),
        ([("x", np.array([0, 2, 1]), i) for i in range(9)], "scan", ValueError, r"not one-hot"),
        ([("x", torch.zeros(3))] * 3, "scan", ValueError, r"no sample has one"),
        ([("x", [1, -1])] * 2 + [("x", [2])], "scan", ValueError, r"at least 0, got -1\. If it stands for no label"),
        ([("x", None), ("x", [1, 2])], "scan", ValueError, r"1 samples have None, the first is sample 0"),
        ([("x", torch.rand(1), i) for i in range(9)], "scan", ValueError, r"whole numbers"),
        ([("x", {"boxes": 3})], "scan", ValueError, r"hashable"),
        (
            [("x", torch.zeros(4, 4))],
            "scan",
            ValueError,
            r"sample 0 has a label of shape \(4, 4\).*mask\.max\(\).*Pass labels=",
        ),
        ([("x", "a"), {"label": 1}], "scan", ValueError, r"no element in common"),
        ([{"x": 0}], "domain", TypeError, r"labels='domain' reads 'domain' of each sample, but sample 0 is a dict"),
        ([("x", 0)], "domain", TypeError, r"sample 0 is a tuple without 'domain'"),
        ([("x", 0)], "count", TypeError, r"without 'count' \(length 2: labels=1 is its second element\)"),
        ([{"x": 0, "kind": 1}], "domain", TypeError, r"is a dict without 'domain' \(keys 'x', 'kind'\)"),
        ([{"x": 0, "kind": 1}], "scan", TypeError, r"or 'y' \(keys 'x', 'kind'\)"),
        ([SimpleNamespace(kind=1)], "domain", TypeError, r"without 'domain' \(attributes 'kind'\)"),
        ([("x", 0)], 2, TypeError, r"labels=2 reads 2 of each sample, but sample 0 is a tuple without 2"),
        ([{"x": 0}], 1, TypeError, r"sample 0 is a dict without 1"),
        ([], "scan", ValueError, r"empty: there is nothing to draw from"),
    ],
)
def test_samples_without_labels_are_refused(samples, labels, error, message):
    """The error names the sample and the remedy."""
    with pytest.raises(error, match=message):
        scan(samples, labels)


def test_each_sample_is_read_once(monkeypatch, tmp_path):
    """A scan reads each sample once, and a later one a few of them."""
    monkeypatch.setenv("LIGHTNING_FAIR_CACHE", str(tmp_path))
    dataset = Samples([("x", y) for y in Y])
    loader = DataLoader(dataset, collate_fn=None, batch_size=7)
    assert find_loader_labels(loader, "scan").numbers.tolist() == Y
    assert sorted(dataset.reads) == list(range(len(Y)))
    dataset.reads.clear()
    find_loader_labels(loader, "scan")
    assert len(dataset.reads) == label_scan._NUM_PROBES
    assert {0, len(Y) - 1} <= set(dataset.reads)


def fail(*_):
    raise AssertionError("collated")


def test_collate_fn_is_not_used():
    assert scan([("x", y) for y in Y], collate_fn=fail).numbers.tolist() == Y


class Random(Samples):
    """Draws random numbers when a sample is read, as augmentations do."""

    def __getitem__(self, index):
        return torch.rand(1) + np.random.rand() + random.random(), self.parts[index]  # noqa: NPY002


def test_random_state():
    """The random numbers after a scan are those without it."""

    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    results = []
    for labels in (Y, "scan"):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        assert find_loader_labels(DataLoader(Random(Y), shuffle=True), labels).numbers.tolist() == Y
        results.append(draw())
    assert results[0] == results[1]


def test_random_state_after_an_error():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(TypeError, match="without"):
        find_loader_labels(DataLoader(Random(Y)), "domain")
    assert torch.equal(torch.get_rng_state(), state)


def test_long_scans_are_announced(caplog, monkeypatch):
    """Before a long scan, a visible message says how long it takes, and whether the result is kept."""
    caplog.set_level(logging.WARNING, "lightning_fair")
    scan([("x", y) for y in Y])
    assert not caplog.records
    monkeypatch.setattr(label_scan, "_ANNOUNCED", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan([("x", y) for y in Y * 2])
        unknown = [("x", y, lambda: None) for y in Y]
        scan(unknown)
    first, second = (record.getMessage() for record in caplog.records)
    assert "Reading the label of each of the 60 samples of Samples takes about 0 seconds with 0 workers." in first
    assert "Later runs use the result." in first
    assert "Later runs will read them again: Samples cannot be identified (" in second


@pytest.mark.parametrize(("seconds", "text"), [(80.0, "80 seconds"), (600.0, "10 minutes")])
def test_time_of_a_scan(caplog, seconds, text):
    label_scan._announce(DataLoader(Samples(Y)), seconds, None)
    assert f"takes about {text} with" in caplog.text


class InWorker(Samples):
    """Reads samples only in a worker that was initialized."""

    def __getitem__(self, index):
        assert get_worker_info() is not None
        return "x", self.offset + self.parts[index]


def initialize(_):
    get_worker_info().dataset.dataset.offset = 0


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(context):
    """The scan has the workers of the loader, their function and their start method."""
    loader = DataLoader(
        InWorker(Y), batch_size=4, num_workers=2, worker_init_fn=initialize, multiprocessing_context=context
    )
    assert find_loader_labels(loader, "scan").numbers.tolist() == Y


@pytest.mark.slow
def test_error_in_a_worker():
    """An error names the sample, whichever worker has read it."""
    samples = [("x", y) for y in Y]
    samples[17] = "lone"
    with pytest.raises(TypeError, match="sample 17 is a str"):
        scan(samples, batch_size=4, num_workers=2)


def test_subset_and_named_classes():
    """Wrappers are read like any data set; classes that the data set names are not taken for ids."""
    dataset = Samples([("x", y) for y in [5, 3, 5, 3]])
    dataset.classes = list("abcdef")
    assert find_loader_labels(DataLoader(Subset(dataset, [1, 0])), "scan").numbers.tolist() == [3, 5]
    del dataset.classes
    assert find_loader_labels(DataLoader(Subset(dataset, [1, 0])), "scan").names == ("3", "5")


def test_hugging_face_key():
    """A name is that of a column before the samples are read."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": [1, 2, 3], "site": ["b", "a", "b"]})
    data.set_transform(fail)
    assert find_loader_labels(DataLoader(data), "site").names == ("a", "b")
    data.set_transform(lambda rows: {"group": [row + "!" for row in rows["site"]]})
    assert find_loader_labels(DataLoader(data), "group").names == ("a!", "b!")
