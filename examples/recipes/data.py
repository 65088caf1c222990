"""Long-tailed image data as ordinary LightningDataModules: they know nothing of the sampler."""

from __future__ import annotations

import contextlib
import gzip
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from lightning_fair.common.arrays import Ints
from recipes.images import Images, Item, LongTailedImages
from recipes.longtail import Kind


class DigitsDataModule(LongTailedImages):
    """The UCI handwritten digits that scikit-learn ships: 1797 grey images of 8x8 pixels, no download.

    A stratified third is held out for the test and 8 % for validation, so both keep the balance of the
    original (about 60 and 14 images a class). The rest has at least 102 images a class; the long tail is made
    from it, by default 100, 59, 35, 21, 12, 7, 4, 2, 1, 1 images.

    Args:
        imbalance_ratio: Size of the head class over the size of the tail class, at least 1.
        kind: ``"exp"`` or ``"step"``; see :class:`~recipes.longtail.LongTail`.
        largest: Images of class 0, the head.
        batch_size: Images of a training batch.
        num_workers: Processes that load data; the images are in memory, so 0 is fastest.
        seed: Seed of the split and of the choice of images, at least 0.

    Raises:
        ValueError: If a number is out of range; ``imbalance_ratio``, ``kind`` and ``largest`` in ``setup``.

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
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed)

    def _split(self) -> tuple[Dataset[Item], Dataset[Item], Dataset[Item]]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = Images(digits.images.astype(np.uint8), digits.target, list("0123456789"), white=16.0)
        test, val, train = deal(images.targets, (1 / 3, 0.08), self.seed)
        return _subset(images, train), _subset(images, val), _subset(images, test)


class MNISTDataModule(LongTailedImages):
    """MNIST, made long-tailed. Validation: 1 / 15 of the training images; test: MNIST's own.

    The files are looked for in torchvision's layout, ``<root>/MNIST/raw/``, unpacked or as ``.gz``, and only
    read. Where they are absent, torchvision downloads them into ``root``.

    Args:
        root: Folder with ``MNIST/raw/``.
        imbalance_ratio: Size of the head class over the size of the tail class, at least 1.
        kind: ``"exp"`` or ``"step"``; see :class:`~recipes.longtail.LongTail`.
        largest: Images of class 0, the head. Every class has 5000 to spare, so 5000 makes the sizes those
            of CIFAR-10-LT.
        batch_size: Images of a training batch.
        num_workers: Processes that load data; the images are in memory, so 0 is fastest.
        seed: Seed of the split and of the choice of images, at least 0.

    Raises:
        FileNotFoundError: In ``prepare_data``, if the files are absent and cannot be downloaded.
        ValueError: If a number is out of range; ``imbalance_ratio``, ``kind`` and ``largest`` in ``setup``. There
            too, if a file is not what its name says.
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
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed)
        self.root = root

    def prepare_data(self) -> None:
        """Download the files where they are absent."""
        missing = [name for name in _MNIST_FILES if _find(self.root, name) is None]
        if not missing:
            return
        from torchvision.datasets import MNIST

        remedy = (
            f"MNIST is not in {_raw_folder(self.root)} (missing: {', '.join(missing)}) and could not be "
            "downloaded. Put the four files there, as they are or as .gz, or name the folder that has "
            "them: data.root=<folder with MNIST/raw in it> (experiment=drift: data.mnist_root). experiment=digits "
            "needs no files."
        )
        with downloading(_raw_folder(self.root), remedy):
            MNIST(self.root, download=True)

    def _split(self) -> tuple[Dataset[Item], Dataset[Item], Dataset[Item]]:
        train, test = self._read("train"), self._read("t10k")
        val, rest = deal(train.targets, (1 / 15,), self.seed)
        return _subset(train, rest), _subset(train, val), test

    def _read(self, part: str) -> Images:
        images = read_idx(self._path(f"{part}-images-idx3-ubyte"))
        targets = read_idx(self._path(f"{part}-labels-idx1-ubyte"))
        return Images(images, targets, list("0123456789"), white=255.0)

    def _path(self, name: str) -> Path:
        found = _find(self.root, name)
        if found is None:
            raise FileNotFoundError(f"{name} is not in {_raw_folder(self.root)}. Call prepare_data() first.")
        return found


def deal(labels: NDArray[Any], shares: Sequence[float], seed: int) -> list[Ints]:
    """Deal the samples of each class out at random: parts of the given shares, and last what is left.

    Args:
        labels: Label of each sample, integers, shape ``(N,)``.
        shares: Share of each class that a part gets, rounded to whole samples; in [0, 1], at most 1 in all.
        seed: Seed of the choice, at least 0.

    Returns:
        Indices of each part, ascending: one array for each share, and one of the rest.

    Raises:
        ValueError: If a share is negative or they add up to more than 1.

    Example:
        >>> [len(part) for part in deal(np.array([0, 1] * 10), (0.3, 0.2), seed=0)]
        [6, 4, 10]
    """
    if min(shares, default=0.0) < 0 or math.fsum(shares) > 1:
        raise ValueError(f"shares must be at least 0 and at most 1 in all, got {list(shares)}.")
    rng = np.random.default_rng(seed)
    edges = np.cumsum(np.asarray(shares))
    part = np.empty(labels.size, dtype=np.int64)
    for label in np.unique(labels):
        items = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(edges * items.size).astype(np.int64)
        part[items] = np.searchsorted(cuts, np.arange(items.size), side="right")
    return [np.flatnonzero(part == number) for number in range(len(shares) + 1)]


@contextlib.contextmanager
def downloading(folder: Path, remedy: str) -> Iterator[None]:
    """Turn a download that fails into an error that helps, and take away the empty folders that it leaves.

    Args:
        folder: Where torchvision puts the files; it makes the folder, and those above, before it downloads.
        remedy: Text of the error.

    Raises:
        FileNotFoundError: If the download fails.
    """
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(remedy) from error
    finally:
        for place in absent:
            with contextlib.suppress(OSError):  # not empty: there are files now
                place.rmdir()


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Return the bytes of an idx file, unpacked or ``.gz``, in their shape.

    torchvision reads such files too, but only unpacked ones, and it unpacks them into the folder: data on a
    read-only disk could not be used.

    Raises:
        ValueError: If it is not an idx file of unsigned bytes, or shorter or longer than its header says.
    """
    path = Path(path)
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dims = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    header = 4 + 4 * dims
    shape = np.frombuffer(raw[4:header], dtype=">u4").astype(np.int64) if len(raw) >= header else np.zeros(0)
    if not dims or shape.size != dims or len(raw) - header != shape.prod():
        raise ValueError(f"{path} is not a whole idx file of unsigned bytes. Delete it and get it anew.")
    # A copy: torch wants arrays that can be written to.
    whole: NDArray[np.uint8] = np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape).copy()
    return whole


_MNIST_FILES = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))


def _subset(images: Images, indices: Ints) -> Subset[Item]:
    return Subset(images, indices)  # type: ignore[arg-type]  # an array is no Sequence, but indexes like one


def _raw_folder(root: str) -> Path:
    return Path(root) / "MNIST" / "raw"


def _find(root: str, name: str) -> Path | None:
    candidates = [_raw_folder(root) / name, _raw_folder(root) / f"{name}.gz"]
    return next((path for path in candidates if path.is_file()), None)
