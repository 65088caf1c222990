"""A stream whose class mix is reversed again and again, and the data module that trains on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from lightning_fair import FairStream
from lightning_fair.common.arrays import Ints
from lightning_fair.common.labels import find_labels
from lightning_fair.integration.callback import find_callback
from recipes.data import DigitsDataModule, MNISTDataModule
from recipes.images import Item, channel_mean_std


class DriftStream(IterableDataset[Item]):
    """Images in an order whose class mix is reversed after every turn.

    In the first turn class ``c`` of ``K`` has a share proportional to ``ratio ** (-c / (K - 1))``, and in the next turn
    the classes have these shares in reverse order: two classes at ratio 99 come 99:1, then 1:99. Within a class all
    images come once, in random order, before any comes again. Each rank and each worker reads its own shard.

    Args:
        images: Map-style data set of the images.
        labels: Class of each image, shape ``(N,)``; every class has at least one.
        classes: Name of each class.
        imbalance_ratio: Share of the most frequent class over that of the rarest, at least 1.
        turns: Number of turns, at least 1.
        turn_size: Samples of a turn.
        seed: Seed of the order.

    Attributes:
        labels: Label of each sample of the stream, in order.
        indices: Image of each sample of the stream, in order.
        rank: Rank whose shard is read.
        world_size: Number of ranks.
    """

    def __init__(
        self,
        images: Dataset[Item],
        labels: NDArray[Any],
        classes: list[str],
        imbalance_ratio: float,
        turns: int,
        turn_size: int,
        seed: int,
    ) -> None:
        self.images, self.classes, self.turn_size = images, classes, turn_size
        self.rank, self.world_size = 0, 1
        rng = np.random.default_rng(seed)
        K = len(classes)
        mix = imbalance_ratio ** -np.linspace(0.0, 1.0, K)
        mix /= mix.sum()
        mixes = [mix if turn % 2 == 0 else mix[::-1] for turn in range(turns)]
        self.labels: Ints = np.concatenate([rng.choice(K, turn_size, p=p) for p in mixes])
        self.indices = np.empty(self.labels.size, dtype=np.int64)
        for c in range(K):
            samples, pool = np.flatnonzero(self.labels == c), np.flatnonzero(labels == c)
            passes = -(-samples.size // pool.size)
            order = rng.permuted(np.tile(pool, (passes, 1)), axis=1)
            self.indices[samples] = order.ravel()[: samples.size]

    @property
    def class_counts(self) -> Ints:
        """Samples of each class in the whole stream, int64, shape ``(K,)``."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def __len__(self) -> int:
        """Samples of the stream on each rank."""
        return int(self.labels.size) // self.world_size

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        shard = self.indices[worker_id * self.world_size + self.rank :: num_workers * self.world_size]
        return (self.images[index] for index in shard.tolist())


class DriftDataModule(L.LightningDataModule):
    """A :class:`DriftStream` of the digits of scikit-learn, or of MNIST.

    With :class:`~lightning_fair.FairSampling` in the Trainer, the training loader reads a
    :class:`~lightning_fair.FairStream`; otherwise it reads the stream itself.

    Args:
        num_classes: Number of classes, 2 to 10: the digits from 0.
        imbalance_ratio: Share of the most frequent class over that of the rarest, at least 1.
        cycles: Cycles of two turns, at least 1.
        turn_size: Samples of a turn, at least 1.
        buffer_size: ``buffer_size`` of the ``FairStream``, in samples of a class.
        max_reuse: ``max_reuse`` of the ``FairStream``.
        mnist_root: Folder with ``MNIST/raw/``; None: the digits of scikit-learn.
        batch_size: Images of a training batch.
        num_workers: Processes that read the stream.
        seed: Seed of the split, the order and the draws, at least 0.

    Attributes:
        train_set: The stream.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = DriftDataModule(num_classes=2, imbalance_ratio=99, cycles=1, turn_size=1000)
        >>> data.setup()
        >>> first, second = data.train_set.labels.reshape(2, -1).mean(axis=1)
        >>> len(data.train_set), bool(first < 0.03), bool(second > 0.97)
        (2000, True, True)
    """

    train_set: DriftStream
    val_set: Dataset[Item]
    test_set: Dataset[Item]

    def __init__(
        self,
        num_classes: int = 10,
        imbalance_ratio: float = 100.0,
        cycles: int = 10,
        turn_size: int = 2048,
        buffer_size: int = 64,
        max_reuse: int = 64,
        mnist_root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 2 <= num_classes <= 10:
            raise ValueError(f"num_classes must lie in [2, 10], got {num_classes}.")
        for name, value in (("imbalance_ratio", imbalance_ratio), ("cycles", cycles), ("turn_size", turn_size)):
            if not value >= 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        self._images = MNISTDataModule(mnist_root, seed=seed) if mnist_root else DigitsDataModule(seed=seed)
        self._stream_settings = {"buffer_size": buffer_size, "max_reuse": max_reuse, "batch_size": batch_size}
        FairStream([], **self._stream_settings)  # type: ignore[arg-type]  # checks them
        self.num_classes, self.imbalance_ratio = num_classes, imbalance_ratio
        self.cycles, self.turn_size = cycles, turn_size
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def prepare_data(self) -> None:
        """Download MNIST if it is used and absent."""
        self._images.prepare_data()

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Create the stream and the held-out sets, once."""
        if hasattr(self, "train_set"):
            return
        train, self.val_set, self.test_set = (self._first_classes(part) for part in self._images.load_splits())
        classes = [str(c) for c in range(self.num_classes)]
        labels, turns = find_labels(train).numbers, 2 * self.cycles
        self.train_set = DriftStream(train, labels, classes, self.imbalance_ratio, turns, self.turn_size, self.seed)

    def _first_classes(self, part: Dataset[Item]) -> Subset[Item]:
        return Subset(part, np.flatnonzero(find_labels(part).numbers < self.num_classes))  # type: ignore[arg-type]

    def channel_mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each channel of the images, float32, shape ``(C,)`` each."""
        return channel_mean_std(self.train_set.images)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the stream, balanced by a ``FairStream`` if the Trainer has the callback."""
        stream: IterableDataset[Any] = self.train_set
        if self.trainer is not None:
            self.train_set.rank, self.train_set.world_size = self.trainer.global_rank, self.trainer.world_size
        if self.trainer is not None and find_callback(self.trainer) is not None:
            stream = FairStream(stream, **self._stream_settings, seed=self.seed)  # type: ignore[arg-type]
        return DataLoader(stream, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return the loader of the validation set."""
        return DataLoader(self.val_set, batch_size=256)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the loader of the test set."""
        return DataLoader(self.test_set, batch_size=256)


def drift_stream(data: Any) -> DriftStream:
    """Return the :class:`DriftStream` of a data module.

    Raises:
        ValueError: If it has none.
    """
    stream = getattr(data, "train_set", None)
    if not isinstance(stream, DriftStream):
        raise ValueError(
            f"Recovery needs a DriftStream, but {type(data).__name__} has none. Set data=drift, or remove the callback "
            "with callbacks=default."
        )
    return stream
