"""The checksum of everything that the samples of a data set depend on."""

import importlib
import os
import pickle
import random
import subprocess
import sys
import threading
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from lightning_fair.dataloaders import fingerprint as module
from lightning_fair.dataloaders.fingerprint import fingerprint


class Files(Dataset):
    """Holds paths."""

    def __init__(self, *paths, **attributes):
        self.paths = paths
        self.__dict__.update(attributes)


def write(path, text):
    """Write a file whose time differs from before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 1, before + 1))


@pytest.mark.parametrize("kind", [str, Path, os.path.relpath], ids=["text", "path", "relative"])
@pytest.mark.parametrize("place", ["file", "folder", "home"])
def test_files(tmp_path, monkeypatch, kind, place):
    """A file that the data set names, or that is in a folder that it names, counts by its size and its time."""
    labels = tmp_path / "data" / "deep" / "labels.csv"
    write(labels, "a,1")
    path = kind(labels if place == "file" else tmp_path / "data")
    if place == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
        path = "~/data"
    dataset = Files([path])
    before = fingerprint(dataset)
    assert fingerprint(Files([path])) == before
    write(labels, "a,2")
    changed = fingerprint(dataset)
    assert changed != before
    if place != "file":
        write(labels.with_name("more.csv"), "")
        assert fingerprint(dataset) != changed
    labels.unlink()
    assert fingerprint(dataset) not in (before, changed)


def test_working_folder(tmp_path, monkeypatch):
    """A relative path is that of another file in another working folder."""
    for name in ("a", "b"):
        write(tmp_path / name / "labels.csv", "same")
    results = []
    for name in ("a", "b", "a"):
        monkeypatch.chdir(tmp_path / name)
        results.append(fingerprint(Files("labels.csv")))
    assert results[0] == results[2] != results[1]
    monkeypatch.chdir(tmp_path / "a")
    before = fingerprint(Files("."))
    write(tmp_path / "a" / "labels.csv", "other")
    assert fingerprint(Files(".")) != before


def test_too_many_files(tmp_path, monkeypatch):
    """More files than can be looked at in a short time are refused."""
    for name in "abc":
        write(tmp_path / name, "")
    monkeypatch.setattr(module, "_MAX_FILES", 3)
    paths = [str(tmp_path / name) for name in "abc"]
    assert fingerprint(Files(str(tmp_path), *paths))
    write(tmp_path / "d", "")
    with pytest.raises(ValueError, match="more than 3 files"):
        fingerprint(Files(str(tmp_path)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__dict__.update(split="test"),
        lambda d: d.labels.__setitem__(2, 1),
        lambda d: d.array.__setitem__(2, 1),
        lambda d: d.items.append(("c", 2)),
        lambda d: d.__dict__.update(transform=partial(write, text="c")),
        lambda d: d.__dict__.update(labels=d.labels.float()),
        lambda d: d.__dict__.update(labels=d.labels[:, None]),
        lambda d: d.__dict__.update(inner=Subset(d.inner, [1, 0])),
    ],
)
def test_state(change):
    """Each argument, array and tensor of the data set counts, also of its parts."""

    def make():
        return Files(
            split="train",
            labels=torch.zeros(5, dtype=torch.int64),
            half=torch.zeros(3, dtype=torch.bfloat16),
            array=np.zeros(5, np.int64),
            items=[("a", 0), ("b", 1)],
            transform=partial(write, text="b"),
            inner=TensorDataset(torch.ones(2)),
            rng=random.Random(3),
            kinds={".png", ".jpg", Path("no such folder")},
        )

    first, second = make(), make()
    assert fingerprint(first) == fingerprint(second)
    change(second)
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) == fingerprint(make())
    assert fingerprint(first, "label") != fingerprint(first, None) != fingerprint(first, 2)


def test_memory_map(tmp_path):
    """A memory map counts by its file and its place in it."""
    np.save(tmp_path / "x.npy", np.arange(100))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    second_map = np.load(tmp_path / "x.npy", mmap_mode="r")
    parts = [fingerprint(Files(x=part)) for part in (x, x[:50], x[50:], x[::2])]
    assert len(set(parts)) == 4
    assert fingerprint(Files(x=second_map[50:])) == parts[2]
    write(tmp_path / "x.npy", "")
    assert fingerprint(Files(x=x)) != parts[0]


SOURCES = {
    "own_data": "import own_helpers\nfrom own_base import Base\nfrom pathlib import Path\n\nROOT = Path({root!r})\n\n"
    "class Data(Base):\n    function = None\n",
    "own_base": "from torch.utils.data import Dataset\n\nclass Base(Dataset):\n    def __len__(self): return 1\n",
    "own_helpers": "from own_nested import f\n",
    "own_nested": "def f(x): return x\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder with modules that use one another and name a file."""
    for name, source in SOURCES.items():
        write(tmp_path / f"{name}.py", source.format(root=str(tmp_path / "files")))
    write(tmp_path / "files" / "labels.csv", "1")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in SOURCES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("file", [*(f"{name}.py" for name in SOURCES), "files/labels.csv"])
def test_code(package, file):
    """The modules of classes and functions count, and those that these import, and the files that they name."""
    own_data, own_helpers = map(importlib.import_module, ("own_data", "own_helpers"))
    dataset = own_data.Data()
    before = fingerprint(dataset)
    write(package / file, (package / file).read_text() + "\n")
    assert fingerprint(dataset) != before
    dataset.function = own_helpers.f
    assert fingerprint(dataset) != before


USES = """
import functools, enum, abc, logging, threading, re
from torch.utils.data import Dataset
import torch
import own_helpers, own_nested
from own_nested import TABLE as renamed

LISTED, UNUSED, LOCK = [1, 2], [1], threading.Lock()
ARRAY = {0: torch.zeros(3)}
log = logging.getLogger("own")
Kind = enum.Enum("Kind", ["A", "B"])

class Shape(enum.Enum):
    ROUND = 1

def deep(x):
    return [y + LISTED[0] for y in x]

def wraps(f):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args)
    return wrapper

def plain(f):
    scale = [f(0), 2]
    return lambda *args: f(*args) * scale[0]

@functools.lru_cache
def cached(x): return own_helpers.NUMBERS

@wraps
def wrapped(x): return own_nested.f(x)

@plain
def other(x): return 3

def default(x, table=renamed, *, key=lambda v: v): return table

class Helper:
    table = (1, 2)
    UNUSED = own_nested.CLASS_LEVEL
    def read(self): return self.table

class Data(Dataset, abc.ABC):
    def __init__(self): self.LOCK = 3
    @staticmethod
    def static(x): return deep([x])
    @property
    def prop(self): return ARRAY, Kind.A, Shape.ROUND
    @functools.cached_property
    def lazy(self): return wrapped(1), other(1)
    @torch.no_grad()
    def __getitem__(self, i):
        log.info("x")
        return cached(i), default(i), Helper().read(), self.LOCK, [own_helpers.own_nested.INNER for _ in "a"]
"""
NESTED = "def f(x): return FAR[x]\nFAR, TABLE, INNER, CLASS_LEVEL, UNUSED = [1], [2], [3], [4], [5]\n"


@pytest.mark.parametrize(
    ("place", "name", "counts"),
    [
        ("own_uses", "LISTED", True),
        ("own_uses", "ARRAY", True),
        ("own_uses", "UNUSED", False),
        ("own_helpers", "NUMBERS", True),
        ("own_nested", "FAR", True),
        ("own_nested", "TABLE", True),
        ("own_nested", "INNER", True),
        ("own_nested", "CLASS_LEVEL", True),
        ("own_nested", "UNUSED", False),
    ],
)
def test_values_that_code_uses(package, place, name, counts):
    """Module-level values count if the code of the data set uses them, at any depth; unused ones need no pickling."""
    write(package / "own_nested.py", NESTED)
    write(package / "own_helpers.py", "import own_nested\nNUMBERS = [1]\n")
    write(package / "own_uses.py", USES)
    dataset = importlib.import_module("own_uses").Data()
    before = fingerprint(dataset)
    assert fingerprint(dataset) == before
    values = getattr(sys.modules[place], name)
    values[0] = 9
    assert (fingerprint(dataset) != before) is counts
    sys.modules["own_uses"].LISTED = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        fingerprint(dataset)
    sys.modules.pop("own_uses")


@pytest.mark.slow
def test_same_in_each_process(package):
    """The checksum does not depend on the process."""
    program = "import own_data, lightning_fair.dataloaders.fingerprint as m; print(m.fingerprint(own_data.Data()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout != ""


@pytest.mark.parametrize("dataset", [lambda: Files(f=lambda x: x), lambda: Files(file=open(os.devnull))])  # noqa: SIM115
def test_unpicklable(dataset):
    """A data set that cannot be pickled has no checksum."""
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError), match=r"pickle|local"):
        fingerprint(dataset())


def test_code_in_no_file(monkeypatch):
    """Code that was typed in has no source that could be compared."""
    typed = types.ModuleType("typed")
    exec("class Data: pass", vars(typed))
    monkeypatch.setitem(sys.modules, "typed", typed)
    with pytest.raises(ValueError, match="code of module typed is in no file"):
        fingerprint(typed.Data())


def test_long_texts_and_roots_are_no_paths():
    """Texts that cannot be paths are skipped, and so is the root folder."""
    assert fingerprint(Files("/", "", "a\0b", "x" * 5000, "~nobody/x", "no such file"))


def arrow(paths):
    return pytest.importorskip("pyarrow").array(paths)


def frame(paths):
    return pytest.importorskip("pandas").DataFrame({"path": paths})


FORMS = {
    "bytes": lambda paths: [path.encode() for path in paths],
    "lines": "\n".join,
    "json": lambda paths: f'{{"images": ["{paths[0]}", "{paths[1]}"]}}',
    "uri": lambda paths: [f"file://{path}" for path in paths],
    "numpy": np.array,
    "arrow": arrow,
    "pandas": frame,
    "prefix": lambda paths: paths[0].removesuffix("0.txt"),
    "pattern": lambda paths: paths[0].replace("0.txt", "{}.txt"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_paths(tmp_path, form):
    """Paths count in texts, arrays and tables, and as parts of names."""
    paths = [str(tmp_path / "images" / f"img_{i}.txt") for i in range(3)]
    for path in paths:
        write(Path(path), "0")
    before = fingerprint(Files(form(paths)))
    assert fingerprint(Files(form(paths))) == before
    write(Path(paths[1]), "1")
    assert fingerprint(Files(form(paths))) != before


CODE = """
import os
class Reads:
    def __getitem__(self, index):
        import lazy_labels
        root = os.environ["IMAGES_OF_A_TEST"]
        return open("{literal}").read(), root, lazy_labels.LABELS
"""


def test_code_that_names_its_data(tmp_path, monkeypatch):
    """A path in the code, an environment variable, and a module that is imported when a sample is read count."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("IMAGES_OF_A_TEST", str(tmp_path / "env"))
    places = {name: tmp_path / name for name in ("literal.txt", "env/file.txt", "lazy_labels.py")}
    for path in places.values():
        write(path, "LABELS = [0]")
    write(tmp_path / "reads_by_name.py", CODE.format(literal=places["literal.txt"]))
    importlib.invalidate_caches()
    dataset = importlib.import_module("reads_by_name").Reads()
    before = fingerprint(dataset)
    assert fingerprint(dataset) == before
    for path in places.values():
        write(path, "LABELS = [1]")
        assert fingerprint(dataset) != before
        before = fingerprint(dataset)
    monkeypatch.setenv("IMAGES_OF_A_TEST", "elsewhere")
    assert fingerprint(dataset) != before
