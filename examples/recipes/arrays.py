"""Your own images, from a file of NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from recipes.images import Images, LongTailedImages, Splits
from recipes.longtail import Kind

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
Arrays = dict[str, NDArray[Any]]


class ArraysDataModule(LongTailedImages):
    """Images and labels of an ``.npz`` file, as they are or made long-tailed.

    The file holds the arrays ``train_images`` and ``test_images`` (uint8, ``(N, H, W, C)``, or ``(N, H, W)`` for gray
    images) and ``train_labels`` and ``test_labels`` (integers in ``[0, K)``, shape ``(N,)``; every class has a training
    image). It may hold ``classes`` (``K`` different names). A class without test images has no recall and counts in no
    mean; a warning names such classes. **Validation is on the test set**, as in
    :class:`~recipes.data.CIFAR10DataModule`: report the last epoch.

    Args:
        path: The file.
        imbalance_ratio: 1 leaves the data as they are. For the other arguments see
            :class:`~recipes.images.LongTailedImages`.

    Raises:
        FileNotFoundError: In ``prepare_data`` and ``setup``, if there is no such file.
        ValueError: If an argument is out of range. In ``setup``, if the file is not an ``.npz`` file, lacks an array,
            or an array has a wrong type, shape, length or label.

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
        val_per_class: int | None = None,
        add_validation: bool = False,
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed, val_per_class, add_validation)
        self.path = path

    def prepare_data(self) -> None:
        """Check that the file exists."""
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"There is no file {self.path}. Name the .npz with the arrays: data.path=FILE.npz.")

    def load_splits(self) -> Splits:
        """Return training and test images; the test images are the validation data too."""
        self.prepare_data()
        arrays = _load(self.path)
        try:
            for part in ("train", "test"):
                _check_images(part, arrays[f"{part}_images"])
                _check_labels(part, arrays[f"{part}_labels"], len(arrays[f"{part}_images"]))
            names = _check_parts(arrays)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        untested = [names[label] for label in np.setdiff1d(np.arange(len(names)), arrays["test_labels"].astype(int))]
        if untested:
            rank_zero_warn(
                f"{self.path}: test_labels lack {len(untested)} of the {len(names)} classes "
                f"({', '.join(untested[:5])}{', ...' * (len(untested) > 5)}). These have no recall, and the balanced "
                "accuracy is the mean over the others."
            )
        train, test = (
            Images(arrays[f"{part}_images"], arrays[f"{part}_labels"], names, white=255.0) for part in ("train", "test")
        )
        return train, test, test


def _load(path: str) -> Arrays:
    """Return the arrays of the file that the data module uses."""
    try:
        if not is_zipfile(path):  # NumPy would load a single array too
            raise ValueError("it is no zip archive")
        with np.load(path, allow_pickle=False) as file:
            keys = list(file.files)
            arrays = {key: file[key] for key in (*_KEYS, "classes") if key in keys}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole .npz file of plain arrays: {error}. Write it with "
            "np.savez(path, train_images=..., train_labels=..., test_images=..., test_labels=...)."
        ) from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(f"{path} must hold {', '.join(_KEYS)}; missing {', '.join(missing)}, got {', '.join(keys)}.")
    return arrays


def _check_images(part: str, images: NDArray[Any]) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"{part}_images must be uint8, from 0 to 255, of shape (N, H, W, C) or (N, H, W), got {images.dtype} of "
            f"shape {images.shape}. For floats in [0, 1]: (255 * images).round().astype(np.uint8)."
        )
    if images.ndim == 4 and images.shape[3] > min(images.shape[1:3]):
        raise ValueError(
            f"{part}_images must have the channels last, (N, H, W, C), got shape {images.shape}. Move them: "
            "images.transpose(0, 2, 3, 1)."
        )


def _check_labels(part: str, labels: NDArray[Any], size: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (size,) or labels.min() < 0:
        lowest = f", minimum {labels.min()}" if labels.dtype.kind in "iu" and labels.size else ""
        raise ValueError(
            f"{part}_labels must hold an integer of at least 0 for each of the {size} images, got {labels.dtype} of "
            f"shape {labels.shape}{lowest}."
        )


def _check_parts(arrays: Arrays) -> list[str]:
    """Check that the arrays go together, and return the names of the classes."""
    labels = np.unique(arrays["train_labels"])  # no counts yet: for a label of 2 ** 40 they would fill the memory
    K = labels.size
    absent = np.flatnonzero(labels != np.arange(K))
    if absent.size:
        raise ValueError(
            f"train_labels must have every class from 0 to {labels[-1]}, but {absent[0]} has no image. "
            "np.unique(labels, return_inverse=True)[1] numbers the classes that occur."
        )
    if arrays["test_labels"].max() >= K:
        raise ValueError(
            f"test_labels must lie in [0, {K}), the classes of train_labels, got {arrays['test_labels'].max()}."
        )
    shapes = [arrays[f"{part}_images"].shape[1:] for part in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise ValueError(f"train_images and test_images must have one size, got {shapes[0]} and {shapes[1]}.")
    names = arrays.get("classes", labels)
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    if names.shape != (K,) or np.unique(names).size != K:
        raise ValueError(
            f"classes must hold {K} different names, one for each class, got shape {names.shape} with "
            f"{np.unique(names).size} different names."
        )
    return [str(name) for name in names]
