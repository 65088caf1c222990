"""A checksum of everything that the samples of a data set depend on: its state, its code and its files."""

from __future__ import annotations

import dis
import hashlib
import os
import pickle
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_fair.common.arrays import to_numpy

_MAX_FILES = 200_000  # that a data set may depend on
_PATHS = re.compile(rf"[^\s\"'<>|,;]*{re.escape(os.sep)}[^\s\"'<>|,;]*")  # words of a text that may be paths
_MAX_PATH = 1024  # characters; a longer text is no path
_STDLIB = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


def fingerprint(dataset: Any, *settings: Any) -> str:
    """Return a checksum of the data set, as text.

    It changes with

    - the pickled data set, the settings, and the versions of Python, NumPy and torch;
    - the pickled module-level values, class attributes, defaults and closures that its code uses, at any depth;
    - the source of all modules that define its classes and functions, and of those which these use; of an installed
      package, its version;
    - the environment variables that they name;
    - size and time of all files whose paths the data set or these modules hold, of all files in such folders, and of
      those in a folder of which they hold a part or a pattern of the names.

    Raises:
        Exception: If one of these cannot be pickled, the code is in no file, or the files are more than 200,000.

    Example:
        >>> fingerprint([1, 2]) == fingerprint([1, 2]), fingerprint([1, 2]) == fingerprint([1, 3])
        (True, False)
    """
    checksum = _Checksum()
    checksum.add(settings, sys.version_info[:2], np.__version__, torch.__version__)
    pickler = _Pickler(checksum, protocol=5)
    pickler.dump(dataset)
    _add_used_values(checksum, pickler)
    for name in sorted(_with_imports(pickler.modules, pickler.texts)):
        _add_module(checksum, name)
    _add_files(checksum, _existing_paths(pickler.texts))
    return checksum.hash.hexdigest()


class _Checksum:
    """A file that is not stored."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> None:
        self.hash.update(data)

    def add(self, *values: Any) -> None:
        self.write(repr(values).encode(errors="replace"))


class _Pickler(pickle.Pickler):
    """Notes the modules and texts in what it pickles, and pickles tensors and memory maps in the same way each time."""

    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol)
        self.modules: set[str] = set()
        self.code: list[type | FunctionType] = []
        self.texts: set[str] = set()

    def persistent_id(self, obj: Any) -> Any:  # called for every object
        if type(obj) in (str, bytes):
            self._note(obj)
        elif isinstance(obj, os.PathLike):
            return "path", os.fspath(obj)  # pickled in parts, each part would be taken for a path
        elif isinstance(obj, (set, frozenset)):
            return "set", sorted(obj, key=repr)  # the order of a set differs between processes
        return None

    def _note(self, text: str | bytes) -> None:
        """Note a text that may be a path, or hold paths, as a list in JSON or on several lines does."""
        if isinstance(text, bytes):
            text = text.decode(errors="ignore") if len(text) <= _MAX_PATH else ""
        if len(text) <= _MAX_PATH:
            self.texts.add(text.strip().removeprefix("file://"))
        if os.sep in text:
            self.texts.update(_PATHS.findall(text))

    def _note_array(self, texts: list[Any]) -> None:
        """Note the texts of an array, which are not pickled one by one, if the first one is a path."""
        if texts and os.sep in str(texts[0]):
            for text in texts:
                if isinstance(text, (str, bytes)):
                    self._note(text)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray) and obj.dtype.kind in "US":
            self._note_array(obj.ravel().tolist())
        elif type(obj).__module__.startswith("pyarrow") and "string" in str(getattr(obj, "type", "")):
            self._note_array(obj.to_pylist())
        if isinstance(obj, Tensor):
            return str, (str(obj.dtype), tuple(obj.shape), np.asarray(to_numpy(obj)))
        if isinstance(obj, np.memmap) and obj.filename and obj.mode != "c":
            start = np.frombuffer(obj._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
            return str, (str(obj.filename), obj.ctypes.data - start, obj.shape, obj.strides, obj.dtype.str)
        if isinstance(obj, type):
            self.modules.update(base.__module__ for base in obj.__mro__)
            self.code += obj.__mro__
        elif isinstance(obj, FunctionType):
            self.modules.add(obj.__module__)
            self.code.append(obj)
        return NotImplemented


def _add_used_values(checksum: _Checksum, pickler: _Pickler) -> None:
    """Add the values that the user's own classes and functions use by name, also in the functions that they call."""
    known: set[int] = set()
    for code in pickler.code:  # which grows
        if id(code) in known or _is_installed(str(code.__module__)):
            continue
        known.add(id(code))
        if isinstance(code, FunctionType):
            texts = _texts(code.__code__)
            pickler.dump([texts, [os.environ.get(text) for text in texts if text]])
            pickler.modules.update(_names(code.__code__, "IMPORT_NAME"))
        for name, value in [*vars(code).items()] if isinstance(code, type) else _used_values(code):
            inner = [getattr(value, part, None) for part in ("__func__", "__wrapped__", "fget", "func")]
            pickler.code += [function for function in (value, *inner) if isinstance(function, FunctionType)]
            is_code = hasattr(value, "__get__") and not isinstance(value, (MethodType, partial))
            if not is_code and name[:2] != "__" and name != "_abc_impl":
                checksum.add(name)
                pickler.dump(value)


def _used_values(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the values that a function refers to: from its closure, its defaults, and modules of the user's own."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    yield from [("", value) for value in (*cells, *defaults)]
    spaces = [(function.__globals__, _names(function.__code__, "LOAD_GLOBAL", "LOAD_NAME"))]
    for space, names in spaces:  # which grows by the modules that are used
        if _is_installed(space["__name__"]):
            continue
        for name in sorted(names & space.keys()):
            if not isinstance(value := space[name], ModuleType):
                yield name, value
            elif all(vars(value) is not other for other, _ in spaces[1:]):
                spaces.append((vars(value), _names(function.__code__, "LOAD_ATTR", "LOAD_METHOD")))


def _texts(code: CodeType) -> list[str]:
    inner = [_texts(part) for part in code.co_consts if isinstance(part, CodeType)]
    return sum(inner, [part for part in code.co_consts if isinstance(part, str)])


def _names(code: CodeType, *kinds: str) -> set[str]:
    inner = [_names(part, *kinds) for part in code.co_consts if isinstance(part, CodeType)]
    return {step.argval for step in dis.get_instructions(code) if step.opname in kinds}.union(*inner)


def _with_imports(names: set[str], texts: set[str]) -> set[str]:
    """Return modules, and all those that the user's own modules among them use; add the paths in these to ``texts``."""
    known: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        known.add(name)
        module = sys.modules.get(name)
        if module is None or _is_installed(name):
            continue
        for attribute, value in vars(module).copy().items():
            if isinstance(value, ModuleType):
                waiting.add(value.__name__)
            elif isinstance(value, (str, os.PathLike)) and attribute[:2] != "__":
                texts.add(os.fspath(value) if os.sep in os.fspath(value) else "")
            elif isinstance(origin := getattr(value, "__module__", None), str):
                waiting.add(origin)
        waiting -= known
    return known


def _is_installed(name: str) -> bool:
    """Return whether a module is of the standard library, or of an installed package."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return top != "__main__"
    file = getattr(sys.modules.get(top), "__file__", None) or getattr(sys.modules.get(name), "__file__", None) or ""
    parts = Path(file).parts
    return "site-packages" in parts or "dist-packages" in parts or file.startswith(_STDLIB)


def _add_module(checksum: _Checksum, name: str) -> None:
    if _is_installed(name):
        top = name.partition(".")[0]
        checksum.add(top, str(getattr(sys.modules.get(top), "__version__", "")))
        return
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None:  # imported when a sample is read
        with suppress(Exception):
            file = getattr(find_spec(name), "origin", None)
    if module is not None and file is None and not hasattr(module, "__path__"):
        raise ValueError(f"the code of module {name} is in no file")
    if file is not None and os.path.isfile(file):
        checksum.add(name)
        checksum.write(Path(file).read_bytes())


def _existing_paths(texts: set[str]) -> Iterator[str]:
    """Yield the absolute paths among the texts that exist."""
    listings: dict[str, set[str]] = {}
    for text in texts:
        folder, name = os.path.split(os.path.expanduser(text).rstrip(os.sep))
        if folder not in listings:  # one look at a folder is faster than one at each of its files
            listings[folder] = set()
            with suppress(OSError, ValueError):
                listings[folder] = {*os.listdir(folder or "."), ".", ".."}
        if name in listings[folder]:
            yield os.path.abspath(os.path.join(folder, name))
        elif os.path.basename(folder):  # a part or a pattern of file names, such as "images/img_{}.png"
            paths = (os.path.abspath(os.path.join(folder, other)) for other in listings[folder])
            yield from filter(os.path.isfile, paths)


def _add_files(checksum: _Checksum, paths: Iterator[str]) -> None:
    known: set[str] = set()
    for path in paths:
        for folder, _, names in os.walk(path, followlinks=True) if os.path.isdir(path) else [("", [], [path])]:
            known.update(os.path.join(folder, name) for name in names)
            if len(known) > _MAX_FILES:
                raise ValueError(f"it depends on more than {_MAX_FILES} files")
    for file in sorted(known):
        with suppress(OSError):  # a link to nothing
            status = os.stat(file)
            checksum.add(file, status.st_size, status.st_mtime_ns)
