"""Images in memory, and the data module that makes any of them long-tailed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from recipes.longtail import Kind, LongTail

Item = tuple[torch.Tensor, int]


class Images(Dataset[Item]):
    """Grey or colour images in memory, with their labels.

    Args:
        images: Brightness from 0 to ``white``, uint8, shape ``(N, H, W)`` or ``(N, H, W, C)``.
        targets: Label of each image, integers, shape ``(N,)``.
        classes: Name of each class.
        white: Brightness of white; images are given out divided by it.

    Example:
        >>> images = Images(np.full((5, 4, 6, 3), 255, np.uint8), np.zeros(5, np.int64), ["snow"], white=255.0)
        >>> images[0][0].shape, float(images[0][0].max())
        (torch.Size([3, 4, 6]), 1.0)
    """

    def __init__(self, images: NDArray[np.uint8], targets: NDArray[Any], classes: Sequence[str], white: float) -> None:
        whole = torch.from_numpy(images)
        self.images = whole.unsqueeze(1) if whole.ndim == 3 else whole.movedim(3, 1).contiguous()
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
    """Training set long-tailed, validation and test set with every class alike (as far as the data are).

    Attributes:
        train_set: The training data, once set up.
        val_set: The validation data, likewise; the same object as ``test_set`` where there are none of their own.
        test_set: The test data, likewise.
        make_sampler: From the training labels, shape ``(N,)``, to the sampler of the training loader; None: shuffled.
    """

    train_set: LongTail[Item]
    val_set: Dataset[Item]
    test_set: Dataset[Item]
    make_sampler: Callable[[NDArray[Any]], Sampler[int]] | None = None

    def __init__(
        self,
        imbalance_ratio: float,
        kind: Kind,
        largest: int | None,
        batch_size: int,
        num_workers: int,
        seed: int | None,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        self.imbalance_ratio = imbalance_ratio
        self.kind: Kind = kind
        self.largest = largest
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Make the three data sets, once."""
        if not hasattr(self, "train_set"):
            train, self.val_set, self.test_set = self._split()
            self.train_set = LongTail(train, self.imbalance_ratio, self.kind, seed=self.seed, largest=self.largest)

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each channel over the training set, float32, shape ``(C,)`` each."""
        return moments(self.train_set)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return the long-tailed training data, shuffled or as ``make_sampler`` says."""
        sampler = self.make_sampler(self.train_set.targets) if self.make_sampler else None
        return self._loader(self.train_set, self.batch_size, shuffle=sampler is None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return the validation data."""
        return self._held_out(self.val_set)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the test data."""
        return self._held_out(self.test_set)

    @abstractmethod
    def _split(self) -> tuple[Dataset[Item], Dataset[Item], Dataset[Item]]:
        """Return training data that are still balanced, validation and test data."""

    def _held_out(self, dataset: Dataset[Item]) -> DataLoader[Item]:
        # They need no gradients, so larger batches fit, and they are faster.
        return self._loader(dataset, max(self.batch_size, 256))

    def _loader(self, dataset: Dataset[Item], batch_size: int, **order: Any) -> DataLoader[Item]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **order,
        )


def moments(dataset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each channel of :class:`Images`, or of a subset, float32, shape ``(C,)``.

    Example:
        >>> images = Images(np.array([[[0]], [[2]]], np.uint8), np.zeros(2, np.int64), ["dot"], white=2.0)
        >>> moments(images)
        (tensor([0.5000]), tensor([0.5000]))
    """
    kept: NDArray[Any] = np.arange(len(dataset))
    while isinstance(dataset, Subset):
        kept, dataset = np.asarray(dataset.indices)[kept], dataset.dataset
    pixels = dataset.images[torch.from_numpy(kept)].movedim(1, 0).flatten(1)
    # A channel at a time: as floats they are four times as large.
    pairs = [torch.std_mean(channel.float() * dataset.scale, correction=0) for channel in pixels]
    return torch.stack([mean for _, mean in pairs]), torch.stack([deviation for deviation, _ in pairs])
