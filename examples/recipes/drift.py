"""A stream whose class mix turns over, and how soon the trained mix recovers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info
from typing_extensions import override

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.class_mix import total_variation
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.callback import find_callback
from lightning_fair.streaming.stream import FairStream
from recipes.data import DigitsDataModule, MNISTDataModule
from recipes.images import Item, moments


class DriftStream(IterableDataset[Item]):
    """Images of a data set in an order whose class mix is reversed after every turn.

    The share of class ``c`` of ``K`` is ``ratio ** (-c / (K - 1))``, divided by their sum, and after each turn that of
    the classes in reverse: two classes at ratio 99 come 99:1, then 1:99. Within a class the images come in random
    order, each once before any comes again. Each rank and each worker reads its shard.

    Args:
        images: The data set to take images from.
        labels: Class of each of them, shape ``(N,)``; each of the classes has at least one.
        classes: Name of each class.
        imbalance_ratio: Share of the most frequent class over that of the rarest, at least 1.
        turns: Stretches of one class mix, at least 1.
        turn_size: Samples of each.
        seed: Seed of the order.

    Attributes:
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
        shares = imbalance_ratio ** -np.linspace(0.0, 1.0, K)
        shares /= shares.sum()
        order = [rng.choice(K, turn_size, p=shares if turn % 2 == 0 else shares[::-1]) for turn in range(turns)]
        self.labels: Ints = np.concatenate(order)
        self.places = np.empty(self.labels.size, dtype=np.int64)
        for c in range(K):
            wanted, pool = np.flatnonzero(self.labels == c), np.flatnonzero(labels == c)
            passes = [rng.permutation(pool) for _ in range(-(-wanted.size // pool.size))]
            self.places[wanted] = np.concatenate([*passes, pool[:0]])[: wanted.size]

    @property
    def class_counts(self) -> Ints:
        """Samples of each class in the whole stream, int64, shape ``(K,)``."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def __len__(self) -> int:
        """Samples of the stream on each rank."""
        return int(self.labels.size) // self.world_size

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Each rank the same number, or one more: they train in step.
        shard = self.places[number * self.world_size + self.rank :: workers * self.world_size]
        return (self.images[place] for place in shard.tolist())


class DriftDataModule(L.LightningDataModule):
    """Images as a stream whose class mix turns over: the digits of scikit-learn, or MNIST.

    With :class:`~lightning_fair.FairSampling` in the Trainer, the training loader reads a
    :class:`~lightning_fair.FairStream`; without it the stream as it comes.

    Args:
        num_classes: Classes 0 to ``num_classes - 1`` come, 2 to 10.
        imbalance_ratio: Share of the most frequent class over that of the rarest, at least 1.
        cycles: Times that the mix turns over and back, at least 1: two turns each.
        turn_size: Samples from one turn to the next, at least 1.
        buffer: Most samples that the ``FairStream`` holds of a class.
        reuse: Most times that it hands out a sample.
        mnist_root: Folder with ``MNIST/raw/``; None: the digits.
        batch_size: Images of a training batch.
        num_workers: Processes that read the stream.
        seed: Seed of the split, the order and the draws, at least 0.

    Attributes:
        train_set: The stream as it comes.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> data = DriftDataModule(num_classes=2, imbalance_ratio=99, cycles=1, turn_size=1000)
        >>> data.setup()
        >>> there, back = data.train_set.labels.reshape(2, -1).mean(axis=1)
        >>> len(data.train_set), bool(there < 0.03), bool(back > 0.97)
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
        buffer: int = 64,
        reuse: int = 64,
        mnist_root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 2 <= num_classes <= 10:
            raise ValueError(f"num_classes must lie in [2, 10], got {num_classes}.")
        if not imbalance_ratio >= 1:
            raise ValueError(f"imbalance_ratio must be at least 1, got {imbalance_ratio}.")
        for name, value, least in (
            ("cycles", cycles, 1),
            ("turn_size", turn_size, 1),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        FairStream([], batch_size=batch_size, buffer_size=buffer, max_reuse=reuse)
        self.num_classes, self.imbalance_ratio = num_classes, imbalance_ratio
        self.cycles, self.turn_size, self.buffer, self.reuse = cycles, turn_size, buffer, reuse
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._images = MNISTDataModule(mnist_root, seed=seed) if mnist_root else DigitsDataModule(seed=seed)

    def prepare_data(self) -> None:
        """Download MNIST where it is wanted and absent."""
        self._images.prepare_data()

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Make the stream and the held-out sets, once."""
        if hasattr(self, "train_set"):
            return
        train, self.val_set, self.test_set = (self._kept(part) for part in self._images._split())
        self.train_set = DriftStream(
            train,
            _labels(train),
            [str(c) for c in range(self.num_classes)],
            self.imbalance_ratio,
            2 * self.cycles,
            self.turn_size,
            self.seed,
        )

    def _kept(self, part: Dataset[Item]) -> Subset[Item]:
        return Subset(part, np.flatnonzero(_labels(part) < self.num_classes))  # type: ignore[arg-type]  # as _subset

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of each channel over the images, float32, shape ``(C,)`` each."""
        return moments(self.train_set.images)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the stream: fair with the callback, as it comes without."""
        stream: IterableDataset[Any] = self.train_set
        if self.trainer is not None:
            self.train_set.rank, self.train_set.world_size = self.trainer.global_rank, self.trainer.world_size
        if self.trainer is not None and find_callback(self.trainer) is not None:
            stream = FairStream(
                stream, batch_size=self.batch_size, buffer_size=self.buffer, max_reuse=self.reuse, seed=self.seed
            )
        return DataLoader(stream, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return the validation data."""
        return DataLoader(self.val_set, batch_size=256)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the test data."""
        return DataLoader(self.test_set, batch_size=256)


def drifting(data: Any) -> DriftStream:
    """Return the stream of a data module whose mix turns over.

    Raises:
        ValueError: If it gives none.
    """
    stream = getattr(data, "train_set", None)
    if not isinstance(stream, DriftStream):
        raise ValueError(
            f"The recovery is measured of a stream that turns over, and {type(data).__name__} gives none. Take "
            "data=drift (of digits, or of MNIST with data.mnist_root=DIR), or another experiment=..., or leave the "
            "callback out: callbacks=default."
        )
    return stream


class Recovery(L.Callback):
    """Measures, for each turn of a :class:`DriftStream`, after how many batches the trained mix is back at the target.

    The mix is that of the labels in the batches, exponentially weighted over ``horizon`` batches, whether the batches
    are fair or not. Logged: ``drift/distance``, its total variation distance from the target, and at the end of each
    turn ``drift/recovery``, the number of batches in it after which the distance stayed within ``tolerance``.

    Feedback of the losses (``lambda2``) keeps the trained mix away from the target on purpose, so that a turn may never
    end within the tolerance; what is printed says so.

    Args:
        tolerance: Largest distance that counts as recovered, in (0, 1).
        horizon: Memory in batches, at least 1.

    Attributes:
        stream: The stream that was trained on last.
        recoveries: Batches until recovery for each turn, the stream's beginning first; None where it did not come.
        counts: Samples of each class in each batch, each of shape ``(K,)``.
        mixes: The trained mix after each batch, each of shape ``(K,)``.
        arrived: Samples that had been read up to each batch.

    Raises:
        ValueError: If an argument is out of range.
    """

    stream: DriftStream

    def __init__(self, tolerance: float = 0.02, horizon: float = 16.0) -> None:
        if not 0.0 < tolerance < 1.0:
            raise ValueError(f"tolerance must lie in (0, 1), got {tolerance}.")
        if not horizon >= 1.0:
            raise ValueError(f"horizon must be at least 1 batch, got {horizon}.")
        self.tolerance, self.horizon = tolerance, horizon
        self._forget()

    def _forget(self) -> None:
        self.recoveries: list[int | None] = []
        self.counts: list[Floats] = []
        self.mixes: list[Floats] = []
        self.arrived: list[int] = []
        self._seen = self._turn = self._batches = self._late = 0
        self._off = False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._forget()
        self.stream = drifting(getattr(trainer, "datamodule", None))

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        K = len(self.stream.classes)
        fair = find_callback(trainer)
        control = fair.sampler if fair else None
        labels: torch.Tensor = batch[1]
        counts = torch.bincount(labels, minlength=K).double().cpu().numpy()
        self.counts.append(counts)
        self._seen += int(counts.sum())
        # A FairStream reads ahead: the turn is where the stream makes it.
        read = int(control.arrived.sum()) if isinstance(control, StreamTracker) else self._seen
        read *= self.stream.world_size  # the other ranks are as far
        while read > (self._turn + 1) * self.stream.turn_size:
            self._end_turn(trainer)
        target = control.controller.get_target() if control else np.full(K, 1.0 / K)
        rate = 1.0 / self.horizon
        before = self.mixes[-1] if self.mixes else target
        self.mixes.append((1.0 - rate) * before + rate * counts / max(counts.sum(), 1.0))
        self.arrived.append(read)
        away = total_variation(self.mixes[-1], target)
        self._batches += 1
        self._off = away > self.tolerance
        if self._off:
            self._late = self._batches
        pl_module.log("drift/distance", away)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batches:
            self._end_turn(trainer)
        fair = find_callback(trainer)
        self._say(by_loss=bool(fair and fair.controller and fair.controller.lambda2))

    def _end_turn(self, trainer: L.Trainer) -> None:
        # A turn may have no batch of its own: a FairStream reads more than one turn at once where they are short.
        self.recoveries.append(None if self._off else self._late)
        for logger in trainer.loggers:
            late = self._late if self.recoveries[-1] is not None else self._batches
            logger.log_metrics({"drift/recovery": late}, step=trainer.global_step)
        self._turn, self._batches, self._late = self._turn + 1, 0, 0

    @rank_zero_only
    def _say(self, by_loss: bool) -> None:
        came = [batches for batches in self.recoveries[1:] if batches is not None]
        never = len(self.recoveries) - 1 - len(came)
        if self.recoveries[1:]:
            print(
                f"Recovery after {len(self.recoveries) - 1} turns, to within {100 * self.tolerance:g} % of the target: "
                + (f"median {np.median(came):g}, at most {max(came)} batches" if came else "none")
                + (f"; {never} never." if never else ".")
            )
        if never and by_loss:
            print(
                "The feedback of the losses (fair.lambda2) keeps the mix away from the target, turn or no turn: hard "
                "classes are drawn more often. fair.lambda2=0 shows the recovery alone."
            )


def _labels(dataset: Any) -> Ints:
    labels: Ints = _labels(dataset.dataset)[dataset.indices] if isinstance(dataset, Subset) else dataset.targets
    return labels
