"""Anyone's own images, from a file of NumPy arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import Dataset

from recipes.images import Images, Item, LongTailedImages
from recipes.longtail import Kind

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


class ArraysDataModule(LongTailedImages):
    """Images and labels of an ``.npz`` file, as they are or made long-tailed.

    The file holds the arrays ``train_images`` and ``test_images`` (uint8, ``(N, H, W, C)``, or ``(N, H, W)`` for
    grey ones), ``train_labels`` and ``test_labels`` (integers in ``[0, K)``, shape ``(N,)``; the training data have
    every class), and may hold ``classes`` (``K`` names, all different). Further arrays are left alone. A class without
    test images has no recall, and counts in no mean: a warning says so.

    **Validation is on the test set**, as :class:`~recipes.cifar.CIFAR10DataModule` says: report the
    last epoch.

    Args:
        path: The file.
        imbalance_ratio: Size of the head class over the size of the tail class, at least 1; 1 leaves the data as
            they are. A class never gets more than it has.
        kind: ``"exp"`` or ``"step"``; see :class:`~recipes.longtail.LongTail`.
        largest: Images of class 0, the head; None: the size of the largest class.
        batch_size: Images of a training batch.
        num_workers: Processes that load data; the images are in memory, so 0 is fastest.
        seed: Seed of the choice of images, at least 0; None: the first ones of each class, the same in every run.

    Raises:
        FileNotFoundError: In ``prepare_data`` and ``setup``, if there is no such file.
        ValueError: If a number is out of range. In ``setup``, if the file is no ``.npz``, lacks an array, or one has
            the wrong type, shape, length or labels.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> labels = np.arange(3).repeat(100)
        >>> images = np.zeros((300, 8, 8, 3), np.uint8)
        >>> np.savez(folder.name + "/own.npz", train_images=images, train_labels=labels,
        ...          test_images=images[::10], test_labels=labels[::10])
        >>> data = ArraysDataModule(folder.name + "/own.npz", imbalance_ratio=100)
        >>> data.setup()
        >>> data.train_set.class_counts, len(data.test_set)
        (array([100,  10,   1]), 30)
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str,
        imbalance_ratio: float = 1.0,
        kind: Kind = "exp",
        largest: int | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed)
        self.path = path

    def prepare_data(self) -> None:
        """See that the file is there."""
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"There is no file {self.path}. Name the .npz with the arrays: data.path=FILE.npz.")

    def _split(self) -> tuple[Dataset[Item], Dataset[Item], Dataset[Item]]:
        self.prepare_data()
        arrays = _load(self.path)
        parts = {part: _checked(arrays, part, self.path) for part in ("train", "test")}
        (train_images, train_labels), (test_images, test_labels) = parts["train"], parts["test"]
        found = np.unique(train_labels)  # and no counts yet: of a label of 2 ** 40 they would fill the memory
        absent = np.flatnonzero(found != np.arange(found.size))
        if absent.size:
            raise ValueError(
                f"train_labels of {self.path} must have every class from 0 to {found[-1]}, but {absent[0]} has no "
                "image. np.unique(labels, return_inverse=True)[1] numbers the classes that there are."
            )
        if test_labels.max() >= found.size:
            raise ValueError(
                f"test_labels of {self.path} must lie in [0, {found.size}), the classes of train_labels, got "
                f"{test_labels.max()}."
            )
        if test_images.shape[1:] != train_images.shape[1:]:
            raise ValueError(
                f"train_images and test_images of {self.path} must be of one size, got {train_images.shape[1:]} and "
                f"{test_images.shape[1:]}."
            )
        names = _names(arrays.get("classes", found), found.size, self.path)
        untested = [names[label] for label in np.setdiff1d(np.arange(found.size), test_labels.astype(np.int64))]
        if untested:
            rank_zero_warn(
                f"test_labels of {self.path} lack {len(untested)} of the {found.size} classes "
                f"({', '.join(untested[:5])}{', ...' * (len(untested) > 5)}). These have no recall, and the balanced "
                "accuracy is the mean over the others."
            )
        train, test = (Images(images, labels, names, white=255.0) for images, labels in parts.values())
        return train, test, test


def _load(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of the file that are wanted here."""
    try:
        if not is_zipfile(path):  # NumPy would load a single array too
            raise ValueError("it is no zip archive")
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if not missing:
                return {key: file[key] for key in (*_KEYS, "classes") if key in file.files}
            found = ", ".join(file.files) or "nothing"
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole .npz file of plain arrays: {error}. Write it with "
            "np.savez(path, train_images=..., train_labels=..., test_images=..., test_labels=...)."
        ) from error
    raise ValueError(f"{path} must hold {', '.join(_KEYS)}; {', '.join(missing)} missing, found {found}.")


def _names(classes: NDArray[Any], num_classes: int, path: str) -> list[str]:
    if classes.shape != (num_classes,):
        raise ValueError(
            f"classes of {path} must name every class, an array of {num_classes} names, got shape {classes.shape}."
        )
    if classes.dtype.kind == "S":
        classes = np.char.decode(classes, "utf-8", "replace")
    names = [str(name) for name in classes]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"classes of {path} must be different names, or one class's results would take the place of another's, "
            f"got {name!r} {times} times."
        )
    return names


def _checked(arrays: Mapping[str, NDArray[Any]], part: str, path: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"{part}_images of {path} must be uint8, from 0 to 255, of shape (N, H, W, C) or (N, H, W), got "
            f"{images.dtype} of shape {images.shape}. For floats in [0, 1]: (255 * images).round().astype(np.uint8)."
        )
    if images.ndim == 4 and images.shape[3] > min(images.shape[1:3]):
        raise ValueError(
            f"{part}_images of {path} must have the channels last, (N, H, W, C), got shape {images.shape}. "
            "Move them: images.transpose(0, 2, 3, 1)."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
        lowest = f", the lowest {labels.min()}" if labels.dtype.kind in "iu" and labels.size else ""
        raise ValueError(
            f"{part}_labels of {path} must be an integer of at least 0 for each of the {len(images)} images, got "
            f"{labels.dtype} of shape {labels.shape}{lowest}."
        )
    return images, labels
