"""CIFAR-10-LT and CIFAR-100-LT, from torchvision's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from recipes.data import downloading
from recipes.images import Images, Item, LongTailedImages
from recipes.longtail import Kind


class _CIFAR(LongTailedImages):
    """What the two have in common: the files, and the test set in place of validation data."""

    _name: ClassVar[str]
    _folder: ClassVar[str]

    def __init__(
        self,
        root: str = "data",
        imbalance_ratio: float = 100.0,
        kind: Kind = "exp",
        largest: int | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(imbalance_ratio, kind, largest, batch_size, num_workers, seed)
        self.root = root

    def prepare_data(self) -> None:
        """Download the files where they are absent."""
        remedy = (
            f"{self._name} is not in {Path(self.root) / self._folder} and could not be downloaded. Put torchvision's "
            f"files there (those of the python version), or name the folder that has them: data.root=<folder with "
            f"{self._folder} in it>. From an .npz of arrays: data=arrays data.path=FILE.npz. experiment=digits needs "
            "no files."
        )
        with downloading(Path(self.root), remedy):
            self._open(download=True)

    def _split(self) -> tuple[Dataset[Item], Dataset[Item], Dataset[Item]]:
        train, test = self._read(train=True), self._read(train=False)
        return train, test, test

    def _read(self, train: bool) -> Images:
        try:
            part = self._open(train=train)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"{self._name} is not in {Path(self.root) / self._folder}. Call prepare_data() first."
            ) from error
        return Images(part.data, np.asarray(part.targets), part.classes, white=255.0)

    def _open(self, **settings: Any) -> Any:
        from torchvision import datasets

        return getattr(datasets, self._name.replace("-", ""))(self.root, **settings)


class CIFAR10DataModule(_CIFAR):
    """CIFAR-10, made long-tailed: 32x32 colour images, by default 5000 of class 0 down to 50 of class 9.

    torchvision reads the files in ``<root>/cifar-10-batches-py/``, and downloads them there where they are absent.

    **Validation is on the test set**, for the field's protocol has no validation data: 1000 images a class, every
    epoch. So the number to report is that of the last epoch. The best epoch's is chosen with the test set itself.

    Args:
        root: Folder with ``cifar-10-batches-py/``.
        imbalance_ratio: Size of the head class over the size of the tail class, at least 1. 100, 50 and 10 are
            usual, and give 12,406, 13,996 and 20,431 images.
        kind: ``"exp"`` or ``"step"``; see :class:`~recipes.longtail.LongTail`.
        largest: Images of class 0, the head; None: all 5000.
        batch_size: Images of a training batch.
        num_workers: Processes that load data; the images are in memory, so 0 is fastest.
        seed: Seed of the choice of images, at least 0; None: the first ones of each class, the same in every run.

    Raises:
        FileNotFoundError: In ``prepare_data``, if the files are absent and cannot be downloaded; in ``setup``, if
            they are absent or damaged.
        ValueError: If a number is out of range; ``imbalance_ratio``, ``kind`` and ``largest`` in ``setup``.

    Reference:
        K. Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019). Their code
        chooses a class's images at random, with a seed; the sizes are the same.
    """

    _name = "CIFAR-10"
    _folder = "cifar-10-batches-py"


class CIFAR100DataModule(_CIFAR):
    """CIFAR-100, made long-tailed: 32x32 colour images, by default 500 of class 0 down to 5 of class 99.

    torchvision reads the files in ``<root>/cifar-100-python/``, and downloads them there where they are absent.
    Everything else is as in :class:`CIFAR10DataModule`: the arguments, what is raised, and that **validation is on
    the test set**. The ratios 100, 50 and 10 give 10,847, 12,608 and 19,573 images.
    """

    _name = "CIFAR-100"
    _folder = "cifar-100-python"
