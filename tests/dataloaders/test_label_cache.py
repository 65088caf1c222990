"""Scanned labels that are kept between runs."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_fair.common.label_sets import LabelSets
from lightning_fair.dataloaders import label_scan
from lightning_fair.dataloaders.label_cache import LabelCache
from lightning_fair.dataloaders.label_scan import find_loader_labels


class Count:
    """A number that is no part of the state, so that counting does not change a checksum."""

    number = 0

    def __reduce__(self):
        return Count, ()


READS = Count()


class Listed(Dataset):
    """Reads its labels from a file, and counts the samples that are read."""

    names = None

    def __init__(self, path, column=1, transform=None):
        self.path, self.column, self.transform = str(path), column, transform

    def __len__(self):
        return 60

    def __getitem__(self, index):
        READS.number += 1
        label = int(Path(self.path).read_text().split()[index][self.column - 1])
        label = label if self.transform is None else self.transform(label)
        return index * 0.5, label if self.names is None else self.names[label]


def write(path, labels):
    """Write labels of one digit, with a time that differs from before."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(" ".join(f"{label}{(label + 1) % 3}" for label in labels))
    os.utime(path, ns=(before + 10**9, before + 10**9))


def next_class(label):
    return (label + 1) % 3


Y = [0, 1, 2] * 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIGHTNING_FAIR_CACHE", str(folder))
    return folder


@pytest.fixture
def file(tmp_path):
    write(tmp_path / "labels.txt", Y)
    return tmp_path / "labels.txt"


def scan(dataset, key="scan"):
    """Return the labels, and whether all samples were read."""
    before = READS.number
    labels = find_loader_labels(DataLoader(dataset), key)
    return labels, READS.number - before == len(dataset)


def test_hit(cache, file):
    """A second scan, with an equal data set, reads a few samples only."""
    assert scan(Listed(file))[1]
    labels, was_read = scan(Listed(file))
    assert (labels.numbers.tolist(), was_read) == (Y, False)
    assert len(list(cache.iterdir())) == 1


def test_hit_with_names(cache, file):
    """Names are kept, too."""
    results = []
    for _ in range(2):
        dataset = Listed(file)
        dataset.names = ["ant", "bee", "éè 猫"]
        labels, was_read = scan(dataset)
        results.append((labels.numbers.tolist(), labels.names, was_read))
    assert results == [(Y, ("ant", "bee", "éè 猫"), True), (Y, ("ant", "bee", "éè 猫"), False)]


@pytest.mark.parametrize(
    "names",
    [
        [[0, 1], [1], []],
        [[0, 1], [1, 2], [2, 0, 1]],
        [["ant", "猫"], [], ["bee"]],
        [{0, 2}, {1}, set()],
        [torch.tensor([1, 0, 1]), torch.zeros(3), torch.tensor([0, 1, 1])],
        [np.array([1, 0, 1, 0]), np.array([0, 1, 0, 0]), np.array([1, 1, 0, 0])],
        [torch.eye(3)[2], torch.eye(3)[0], torch.eye(3)[1]],
    ],
    ids=range(7),
)
def test_several_labels(cache, file, names):
    """Several labels of a sample come out of the cache as they went in."""
    results = []
    for _ in range(2):
        dataset = Listed(file)
        dataset.names = names
        labels, was_read = scan(dataset)
        numbers = labels.numbers
        numbers = numbers.to_dense() if isinstance(numbers, LabelSets) else numbers
        results.append((numbers.tolist(), labels.names, labels.values, was_read))
    assert results[0][:3] == results[1][:3]
    assert [each[3] for each in results] == [True, False]


@pytest.mark.parametrize("names", [[False, True, True], [0.0, 1.0, 5.0], [3, 2**40, 5], [(0, "a"), (1, "a"), (2, "b")]])
def test_values(cache, file, names):
    """Values come out of the cache as they went in, or are not kept."""
    results = []
    for _ in range(2):
        dataset = Listed(file)
        dataset.names = names
        labels = scan(dataset)[0]
        results.append((labels.numbers.tolist(), labels.names, labels.values))
    assert results[0] == results[1]


def test_columns_are_kept(cache, file):
    """The column that was chosen is compared, also if an index stands beside it."""

    class Indexed(Listed):
        def __getitem__(self, index):
            return (*super().__getitem__(index), index)

    globals()["Indexed"] = Indexed
    Indexed.__qualname__ = "Indexed"
    assert [scan(Indexed(file))[1] for _ in range(2)] == [True, False]
    assert scan(Indexed(file))[0].numbers.tolist() == Y


@pytest.mark.parametrize("change", ["file", "argument", "transform", "key", "size"])
def test_changes(cache, file, change):
    """After a change of what the labels depend on, all samples are read again."""
    scan(Listed(file))
    dataset, key, expected = Listed(file), "scan", Y
    if change == "file":
        expected = [*Y[:-3], 0, 0, 0]
        write(file, expected)
    elif change == "argument":
        dataset, expected = Listed(file, column=2), [1, 2, 0] * 20
    elif change == "transform":
        dataset, expected = Listed(file, transform=next_class), [1, 2, 0] * 20
    elif change == "key":
        key = 1
    else:
        write(file, [0] * 70)
        expected = [0] * 60
    for was_read in (True, False):
        labels, read_all = scan(dataset, key)
        assert (labels.numbers.tolist(), read_all) == (expected, was_read)


def test_change_of_code(cache, file, tmp_path, monkeypatch):
    """If the code of the data set, or code that this imports, has changed, all samples are read again."""
    source = "from test_label_cache_helper import number\n\ndef transform(label):\n    return number(label)\n"
    helper = tmp_path / "test_label_cache_helper.py"
    helper.write_text("def number(label):\n    return label\n")
    (tmp_path / "test_label_cache_code.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import test_label_cache_code

    dataset = Listed(file, transform=test_label_cache_code.transform)
    assert [scan(dataset)[1] for _ in range(2)] == [True, False]
    helper.write_text("def number(label):\n    return 2 - label\n")
    monkeypatch.setattr(test_label_cache_code, "number", lambda label: 2 - label)
    labels, read_all = scan(dataset)
    assert read_all
    assert labels.numbers.tolist() == [2, 1, 0] * 20
    for name in ("test_label_cache_code", "test_label_cache_helper"):
        sys.modules.pop(name)


CORRECTED = list(Y)


class FromGlobal(Listed):
    def __getitem__(self, index):
        READS.number += 1
        return index * 0.5, CORRECTED[index]


def test_module_level_labels(cache, file, monkeypatch):
    """If an array that ``__getitem__`` reads by its name was corrected, all samples are read again."""
    assert [scan(FromGlobal(file))[1] for _ in range(2)] == [True, False]
    corrected = [*Y[:-3], 0, 0, Y[-1]]  # not a sample that is compared
    monkeypatch.setitem(globals(), "CORRECTED", corrected)
    labels, read_all = scan(FromGlobal(file))
    assert (labels.numbers.tolist(), read_all) == (corrected, True)
    monkeypatch.setitem(globals(), "CORRECTED", {i: lambda: None for i in range(60)})
    assert LabelCache(FromGlobal(file), None).path is None
    assert "FromGlobal cannot be identified" in LabelCache(FromGlobal(file), None).reason


def test_difference_of_a_sample(cache, file, monkeypatch):
    """If a few samples have other labels than the cached ones, whatever the reason, all are read again."""
    monkeypatch.setattr("lightning_fair.dataloaders.label_cache.fingerprint", lambda *_: "same")
    scan(Listed(file))
    write(file, [2, *Y[1:]])
    labels, read_all = scan(Listed(file))
    assert (labels.numbers.tolist(), read_all) == ([2, *Y[1:]], True)
    assert not scan(Listed(file))[1]


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b""), lambda f: f.write_bytes(f.read_bytes()[:-40])])
def test_damaged_file(cache, file, damage):
    """A file that cannot be read is written again."""
    scan(Listed(file))
    damage(next(cache.iterdir()))
    assert [scan(Listed(file))[1] for _ in range(2)] == [True, False]


def test_other_content(cache, file):
    """A file with other content is not taken for labels."""
    scan(Listed(file))
    number = {"column": np.array(1), "width": np.array(3)}
    for arrays in (
        {"labels": np.zeros(60)},
        {"labels": np.zeros(59, int), "column": np.array(1)},
        {"x": np.zeros(3)},
        {"labels": np.zeros(60, int), "lengths": np.ones(59, int), **number},
        {"labels": np.zeros(59, int), "lengths": np.ones(60, int), **number},
    ):
        np.savez(next(cache.iterdir()), **arrays)
        labels, read_all = scan(Listed(file))
        assert (labels.numbers.tolist(), read_all) == (Y, True)


def test_folder_that_cannot_be_written(cache, file):
    """Without a folder to write to, nothing is kept, and nothing fails."""
    cache.write_text("a file")
    assert [scan(Listed(file))[1] for _ in range(2)] == [True, True]
    assert cache.read_text() == "a file"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(cache, file):
    """A folder without write access is left alone."""
    cache.mkdir(mode=0o500)
    assert [scan(Listed(file))[1] for _ in range(2)] == [True, True]
    assert not list(cache.iterdir())


def test_interrupted_write(cache, file, monkeypatch):
    """A write that fails leaves no file behind."""

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert scan(Listed(file))[1]
    assert not list(cache.iterdir())


def test_data_set_that_cannot_be_pickled(cache, file):
    """Its labels are not kept, and the reason is known."""
    dataset = Listed(file, transform=lambda label: label)
    assert [scan(dataset)[1] for _ in range(2)] == [True, True]
    assert "Listed cannot be identified" in LabelCache(dataset, None).reason
    assert not cache.exists()


def test_place_of_the_cache(monkeypatch, tmp_path):
    """The folder follows the environment."""
    for variable in ("LIGHTNING_FAIR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert LabelCache([1], None).path.parent == tmp_path / "home" / ".cache" / "lightning_fair"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert LabelCache([1], None).path.parent == tmp_path / "xdg" / "lightning_fair"
    monkeypatch.setenv("LIGHTNING_FAIR_CACHE", str(tmp_path / "own"))
    assert LabelCache([1], None).path.parent == tmp_path / "own"
    assert LabelCache(torch.zeros(3), None).path == LabelCache(torch.zeros(3), None).path


def test_few_samples(cache, file):
    """A data set of fewer samples than are compared is read as a whole."""

    class Small(Listed):
        def __len__(self):
            return 5

    Small.__qualname__ = "Small"
    globals()["Small"] = Small
    for _ in range(2):
        assert find_loader_labels(DataLoader(Small(file)), "scan").numbers.tolist() == Y[:5]
    assert label_scan._NUM_PROBES > 5
