"""A cache of scanned labels, between runs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from lightning_fair.common.label_set_values import Column, SetColumn
from lightning_fair.dataloaders.fingerprint import fingerprint


class LabelCache:
    """The labels of one data set in a cache folder.

    The folder is ``$LIGHTNING_FAIR_CACHE``, or ``lightning_fair`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. The name of
    the file is a checksum of everything that the labels depend on: the pickled data set; the source of the modules that
    define its classes and functions, and of those which these use, or the version of an installed package; the
    module-level values that these use; size and time of all files and folders whose paths the data set holds; and the
    key of the label in a sample. If one of these is not known, nothing is cached. Data that are in no file, for example
    on a server, do not show a change. To scan again, delete the folder, which the log names.

    Args:
        dataset: The data set.
        key: Key, attribute or position of the label in a sample; None: the usual place.

    Attributes:
        path: The file; None if nothing can be cached.
        reason: The reason for that; None if there is a file.
    """

    def __init__(self, dataset: Any, key: str | int | None) -> None:
        self.path: Path | None = None
        self.reason: str | None = None
        try:
            self.path = _folder() / f"labels-{fingerprint(dataset, key)}.npz"
        except Exception as error:  # pickling a data set can raise anything
            self.reason = f"{type(dataset).__name__} cannot be identified ({type(error).__name__}: {error})"

    def load(self, size: int) -> tuple[str | int, Column] | None:
        """Return the column and the labels of an earlier scan; None if there is none that can be read."""
        if self.path is None:
            return None
        try:
            with np.load(self.path, allow_pickle=False) as data:
                column, labels = data["column"].item(), data["labels"]
                labels = data["texts"].astype(object)[labels] if "texts" in data else labels
                lengths, width = (data["lengths"], data["width"].item()) if "lengths" in data else (None, 0)
        except Exception:  # no such file, or damaged
            return None
        if lengths is None:
            return (column, labels) if labels.shape == (size,) else None
        is_whole = lengths.shape == (size,) and labels.shape == (lengths.sum(),)
        return (column, SetColumn(lengths, labels, width or None)) if is_whole else None

    def save(self, column: str | int, values: Column) -> None:
        """Keep the labels, one or several a sample, if they are numbers or texts and the folder can be written."""
        if self.path is None:
            return
        labels = values.values if isinstance(values, SetColumn) else values
        arrays = {"column": np.array(column), "labels": labels}
        if isinstance(values, SetColumn):
            arrays |= {"lengths": values.lengths, "width": np.array(values.num_columns or 0)}
        if labels.dtype.kind == "O":
            if not all(type(label) is str and "\0" not in label for label in labels.tolist()):
                return
            arrays["texts"], arrays["labels"] = np.unique(labels, return_inverse=True)
            arrays["texts"] = arrays["texts"].astype(str)
        # Another process may read the file, or write the same one.
        partial = self.path.with_name(f"{uuid4().hex}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            partial.replace(self.path)
        except OSError:
            with suppress(OSError):
                partial.unlink()


def _folder() -> Path:
    own, shared = os.environ.get("LIGHTNING_FAIR_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(shared or Path.home() / ".cache") / "lightning_fair"
