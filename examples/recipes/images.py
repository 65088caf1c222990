"""Images in memory, and the base class of the data modules that make them long-tailed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset

from lightning_fair.common.arrays import Ints
from lightning_fair.common.checks import check_integer
from lightning_fair.common.labels import find_labels
from recipes.longtail import Kind, LongTail

Item = tuple[torch.Tensor, int]
Splits = tuple[Dataset[Item], Dataset[Item], Dataset[Item]]


class Images(Dataset[Item]):
    """Gray or color images in memory, with their labels.

    Args:
        images: Brightness from 0 to ``white``, uint8, shape ``(N, H, W)`` or ``(N, H, W, C)``.
        targets: Label of each image, integers, shape ``(N,)``.
        classes: Name of each class.
        white: Brightness of white; pixels are divided by it.

    Example:
        >>> images = Images(np.full((5, 4, 6, 3), 255, np.uint8), np.zeros(5, np.int64), ["snow"], white=255.0)
        >>> images[0][0].shape, float(images[0][0].max())
        (torch.Size([3, 4, 6]), 1.0)
    """

    def __init__(self, images: NDArray[np.uint8], targets: NDArray[Any], classes: Sequence[str], white: float) -> None:
        pixels = torch.from_numpy(images)
        self.images = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.movedim(3, 1).contiguous()
        self.targets = targets.astype(np.int64)
        self.classes = list(classes)
        self.scale = 1.0 / white

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> Item:
        """Return the image, float32 in [0, 1], shape ``(C, H, W)``, and its label."""
        return self.images[index] * self.scale, int(self.targets[index])


class LongTailedImages(L.LightningDataModule):
    """A data module with a long-tailed training set; validation and test sets keep the mix of the original data.

    Args:
        imbalance_ratio: Size of the largest class over the size of the smallest one, at least 1.
        kind: ``"exp"`` or ``"step"``; see :class:`~recipes.longtail.LongTail`.
        largest: Images of class 0, the largest; None: all images of the largest class.
        batch_size: Images of a training batch.
        num_workers: Processes that load data. The images are in memory, so 0 is fastest.
        seed: Seed of the split and of the choice of images, at least 0; None: the first images of each class.
        val_per_class: Training images of each class that are held out for the validation before the tail is cut, at
            least 1; None: the validation set of ``load_splits``.
        add_validation: Whether the training set has the validation images too, for a method that needs none; its
            validation metrics then have no meaning.

    Attributes:
        train_set: Training set, from ``setup`` on.
        val_set: Validation set, from ``setup`` on; the same object as ``test_set`` if the data have none.
        test_set: Test set, from ``setup`` on.
        make_sampler: Builds the sampler of the training loader from the labels, shape ``(N,)``; None: shuffle.

    Raises:
        ValueError: If an argument is out of range; ``imbalance_ratio``, ``kind``, ``largest`` and ``val_per_class`` in
            ``setup``, also if ``add_validation`` would add the test set.
    """

    train_set: LongTail[Item] | JoinedImages
    val_set: Dataset[Item]
    test_set: Dataset[Item]
    make_sampler: Callable[[NDArray[Any]], Sampler[int]] | None = None

    def __init__(
        self,
        imbalance_ratio: float = 100.0,
        kind: Kind = "exp",
        largest: int | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
        val_per_class: int | None = None,
        add_validation: bool = False,
    ) -> None:
        super().__init__()
        numbers = (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0))
        for name, value, least in (*numbers, ("val_per_class", val_per_class, 1)):
            if value is not None:
                check_integer(name, value, least)
        self.imbalance_ratio, self.largest = imbalance_ratio, largest
        self.kind: Kind = kind
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.val_per_class, self.add_validation = val_per_class, add_validation

    @abstractmethod
    def load_splits(self) -> Splits:
        """Return the training data before they are made long-tailed, the validation data and the test data."""

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Create the three data sets, once."""
        if not hasattr(self, "train_set"):
            train, self.val_set, self.test_set = self.load_splits()
            if self.val_per_class:
                train, self.val_set = hold_out(train, self.val_per_class, self.seed or 0)
            self.train_set = LongTail(train, self.imbalance_ratio, self.kind, seed=self.seed, largest=self.largest)
            if self.add_validation and self.val_set is self.test_set:
                raise ValueError(
                    "add_validation=True would train on the test set, which is the validation set of these data. Hold "
                    "images out of the training data with val_per_class, for example 50."
                )
            if self.add_validation:
                self.train_set = JoinedImages(self.train_set, self.val_set)

    def channel_mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each channel of the training set, float32, shape ``(C,)`` each."""
        return channel_mean_std(self.train_set)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return the loader of the training set, shuffled or with the sampler of ``make_sampler``."""
        sampler = self.make_sampler(self.train_set.targets) if self.make_sampler else None
        return self._loader(self.train_set, self.batch_size, shuffle=sampler is None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return the loader of the validation set."""
        return self._loader(self.val_set, max(self.batch_size, 256))

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the loader of the test set."""
        return self._loader(self.test_set, max(self.batch_size, 256))

    def _loader(self, dataset: Dataset[Item], batch_size: int, **order: Any) -> DataLoader[Item]:
        workers: dict[str, Any] = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(dataset, batch_size=batch_size, **workers, **order)


class JoinedImages(ConcatDataset[Item]):
    """A long-tailed training set and other images of the same classes.

    Attributes:
        targets: Label of each image, integers, shape ``(N,)``.
        class_counts: Images of each class, int64, shape ``(K,)``.
        classes: Names of the classes, or None if the data set has none.
    """

    def __init__(self, train_set: LongTail[Item], others: Dataset[Item]) -> None:
        super().__init__([train_set, others])
        self.targets: Ints = np.concatenate([train_set.targets, find_labels(others).numbers])
        self.class_counts: Ints = np.bincount(self.targets, minlength=train_set.class_counts.size)
        self.classes = train_set.classes


def hold_out(dataset: Dataset[Item], per_class: int, seed: int) -> tuple[Subset[Item], Subset[Item]]:
    """Return a data set without ``per_class`` random samples of each class, and these samples.

    Raises:
        ValueError: If a class has no more samples than are held out.

    Example:
        >>> images = Images(np.zeros((20, 2, 2), np.uint8), np.arange(20) % 2, ["a", "b"], white=255.0)
        >>> rest, held_out = hold_out(images, 3, seed=0)
        >>> len(rest), np.bincount(images.targets[held_out.indices])
        (14, array([3, 3]))
    """
    labels = find_labels(dataset).numbers
    smallest = int(np.bincount(labels).min())
    if smallest <= per_class:
        raise ValueError(f"val_per_class must be below the images of the smallest class, {smallest}, got {per_class}.")
    order = np.random.default_rng(seed).permutation(labels.size)
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], np.arange(labels.max() + 1))
    held_out = np.sort(by_class[(starts[:, None] + np.arange(per_class)).ravel()])
    rest = np.setdiff1d(np.arange(labels.size), held_out)
    return Subset(dataset, rest), Subset(dataset, held_out)  # type: ignore[arg-type]  # arrays index like sequences


def channel_mean_std(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each channel of :class:`Images` or a subset, float32, shape ``(C,)`` each.

    Example:
        >>> images = Images(np.array([[[0]], [[2]]], np.uint8), np.zeros(2, np.int64), ["dot"], white=2.0)
        >>> channel_mean_std(images)
        (tensor([0.5000]), tensor([0.5000]))
    """
    if isinstance(dataset, JoinedImages):
        dataset = dataset.datasets[0]
    kept: NDArray[Any] = np.arange(len(dataset))
    while isinstance(dataset, Subset):
        kept, dataset = np.asarray(dataset.indices)[kept], dataset.dataset
    pixels = dataset.images[torch.from_numpy(kept)].movedim(1, 0).flatten(1)
    # One channel at a time, because floats take four times the memory of bytes.
    pairs = [torch.std_mean(channel.float() * dataset.scale, correction=0) for channel in pixels]
    std, mean = map(torch.stack, zip(*pairs, strict=True))
    return mean, std
