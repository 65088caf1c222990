"""Long-tailed digits, MNIST and CIFAR as ordinary LightningDataModules, which know nothing of the plugin."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Subset
from torchvision import datasets

from lightning_fair.common.arrays import Ints
from recipes.images import Images, Item, LongTailedImages, Splits
from recipes.longtail import Kind


class DigitsDataModule(LongTailedImages):
    """The handwritten digits that scikit-learn ships: 1797 gray images of 8x8 pixels, no download.

    A stratified third is the test set (about 60 images a class) and 8 % are the validation set (about 14). The rest
    has at least 102 images a class; by default the long tail keeps 100, 59, 35, 21, 12, 7, 4, 2, 1 and 1 of them.
    For the arguments see :class:`~recipes.images.LongTailedImages`.

    Example:
        >>> data = DigitsDataModule(seed=1)
        >>> data.setup()
        >>> data.train_set.class_counts
        array([100,  59,  35,  21,  12,   7,   4,   2,   1,   1])
        >>> len(data.val_set), len(data.test_set)
        (144, 599)
    """

    seed: int

    def __init__(
        self,
        imbalance_ratio: float = 100.0,
        kind: Kind = "exp",
        largest: int = 100,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        val_per_class: int | None = None,
        add_validation: bool = False,
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed, val_per_class, add_validation)

    def load_splits(self) -> Splits:
        """Return the stratified split of the digits."""
        digits = load_digits()
        images = Images(digits.images.astype(np.uint8), digits.target, list("0123456789"), white=16.0)
        rest, test = stratified_split(images.targets, 599, self.seed)
        train, val = stratified_split(images.targets[rest], 144, self.seed)
        return _subset(images, rest[train]), _subset(images, rest[val]), _subset(images, test)


class MNISTDataModule(LongTailedImages):
    """MNIST, made long-tailed. Validation: 4000 of the training images; test: MNIST's own.

    The files are read from ``<root>/MNIST/raw/``, unpacked or as ``.gz``; torchvision downloads them if they are
    absent. Every class has 5000 images to spare, so ``largest=5000`` makes the class sizes those of CIFAR-10-LT.
    For the other arguments see :class:`~recipes.images.LongTailedImages`.

    Args:
        root: Folder with ``MNIST/raw/``.

    Raises:
        FileNotFoundError: In ``prepare_data``, if the files are absent and cannot be downloaded.
        ValueError: In ``setup``, if a file is damaged.
    """

    seed: int

    def __init__(
        self,
        root: str = "data",
        imbalance_ratio: float = 100.0,
        kind: Kind = "exp",
        largest: int = 5000,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        val_per_class: int | None = None,
        add_validation: bool = False,
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed, val_per_class, add_validation)
        self.raw = Path(root, "MNIST", "raw")
        self.root = root

    def prepare_data(self) -> None:
        """Download the files that are absent."""
        parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        missing = [part for part in parts if not self._path(part).is_file()]
        if missing:
            remedy = (
                f"MNIST is not in {self.raw} (missing: {', '.join(missing)}) and could not be downloaded. Put the four "
                "files there, unpacked or as .gz, or name the folder that has them: data.root=<folder with MNIST/raw "
                "in it> (experiment=drift: data.mnist_root). experiment=digits needs no files."
            )
            _download(datasets.MNIST, self.root, remedy)

    def load_splits(self) -> Splits:
        """Return MNIST with 4000 of the training images as validation data."""
        train, test = self._read("train"), self._read("t10k")
        rest, val = stratified_split(train.targets, len(train) // 15, self.seed)
        return _subset(train, rest), _subset(train, val), test

    def _read(self, part: str) -> Images:
        images, targets = (read_idx(self._path(f"{part}-{content}")) for content in ("images-idx3", "labels-idx1"))
        return Images(images, targets, list("0123456789"), white=255.0)

    def _path(self, part: str) -> Path:
        packed = self.raw / f"{part}-ubyte.gz"
        return packed if packed.is_file() else self.raw / f"{part}-ubyte"


class CIFAR10DataModule(LongTailedImages):
    """CIFAR-10, made long-tailed: 32x32 color images, by default 5000 of class 0 down to 50 of class 9.

    torchvision reads the files in ``<root>/cifar-10-batches-py/``, and downloads them if they are absent. The
    imbalance ratios 100, 50 and 10 are common, and give 12,406, 13,996 and 20,431 images. Without a seed every run has
    the same images. For the other arguments see :class:`~recipes.images.LongTailedImages`.

    **Validation is on the test set**, because the field's protocol has no validation data. Report the last epoch: the
    best epoch is chosen with the test set itself.

    Args:
        root: Folder with ``cifar-10-batches-py/``.

    Raises:
        FileNotFoundError: If the files are absent or damaged; in ``prepare_data``, if they cannot be downloaded.

    Reference:
        K. Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019). Their code
        chooses the images of a class at random, with a seed; the class sizes are the same.
    """

    dataset: ClassVar[Any] = datasets.CIFAR10

    def __init__(
        self,
        root: str = "data",
        imbalance_ratio: float = 100.0,
        kind: Kind = "exp",
        largest: int | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
        val_per_class: int | None = None,
        add_validation: bool = False,
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed, val_per_class, add_validation)
        self.root = root
        self.folder = Path(root, self.dataset.base_folder)

    def prepare_data(self) -> None:
        """Download the files that are absent."""
        remedy = (
            f"{self.dataset.__name__} is not in {self.folder} and could not be downloaded. Put the files of its Python "
            f"version there, or name the folder that has them: data.root=<folder with {self.folder.name} in it>. For "
            "an .npz file of arrays: data=arrays data.path=FILE.npz. experiment=digits needs no files."
        )
        _download(self.dataset, self.root, remedy)

    def load_splits(self) -> Splits:
        """Return training and test images; the test images are the validation data too."""
        train, test = self._read(train=True), self._read(train=False)
        return train, test, test

    def _read(self, train: bool) -> Images:
        try:
            part = self.dataset(self.root, train=train)
        except RuntimeError as error:
            remedy = f"{self.dataset.__name__} is not in {self.folder}. Call prepare_data() first."
            raise FileNotFoundError(remedy) from error
        return Images(part.data, np.asarray(part.targets), part.classes, white=255.0)


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100, made long-tailed: 32x32 color images, by default 500 of class 0 down to 5 of class 99.

    The files are in ``<root>/cifar-100-python/``. Everything else is as in :class:`CIFAR10DataModule`. The imbalance
    ratios 100, 50 and 10 give 10,847, 12,608 and 19,573 images.
    """

    dataset = datasets.CIFAR100


def stratified_split(labels: NDArray[Any], size: int, seed: int) -> tuple[Ints, Ints]:
    """Return the indices of a stratified random split, ascending: the rest, and ``size`` samples held out.

    Args:
        labels: Label of each sample, integers, shape ``(N,)``.
        size: Samples to hold out, at least one a class.
        seed: Seed of the split, at least 0.

    Example:
        >>> rest, held_out = stratified_split(np.array([0, 1] * 10), 4, seed=0)
        >>> len(rest), np.bincount(held_out % 2)
        (16, array([2, 2]))
    """
    indices = np.arange(len(labels))
    rest, held_out = train_test_split(indices, test_size=size, stratify=labels, random_state=seed)
    return np.sort(rest), np.sort(held_out)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of an idx file of bytes, unpacked or ``.gz``.

    torchvision reads unpacked files only, and unpacks into the folder, which fails on a read-only disk.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Call prepare_data() first.")
    raw = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    try:
        shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a whole idx file of bytes. Delete it and download it again.") from error


def _download(dataset: Callable[..., Any], root: str, remedy: str) -> None:
    try:
        dataset(root, download=True)
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(remedy) from error


def _subset(images: Images, indices: Ints) -> Subset[Item]:
    return Subset(images, indices)  # type: ignore[arg-type]  # an array is no Sequence, but indexes like one
