"""A table of two classes at 99.5 to 0.5, made by scikit-learn, with wrong labels in training and validation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from torch.utils.data import Dataset

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.checks import check_integer
from recipes.images import Item, LongTailedImages, Splits


class Rows(Dataset[Item]):
    """Rows of a table in memory, with their labels, as images of one pixel with a channel for each feature.

    Args:
        features: Shape ``(N, F)``.
        targets: Label of each row, 0 or 1, shape ``(N,)``.
        is_wrong: Whether each label is wrong, shape ``(N,)``.

    Example:
        >>> rows = Rows(np.zeros((5, 3)), np.ones(5, np.int64), np.zeros(5, np.bool_))
        >>> rows[0][0].shape, rows[0][1]
        (torch.Size([3, 1, 1]), 1)
    """

    scale = 1.0

    def __init__(self, features: Floats, targets: Ints, is_wrong: NDArray[np.bool_]) -> None:
        self.images = torch.from_numpy(features).float()[:, :, None, None]
        self.targets, self.is_wrong = targets, is_wrong
        self.classes = ["frequent", "rare"]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.targets)

    def __getitem__(self, index: int) -> Item:
        """Return the features, float32, shape ``(F, 1, 1)``, and the label."""
        return self.images[index], int(self.targets[index])


class TabularDataModule(LongTailedImages):
    """Two classes at 99.5 to 0.5 from scikit-learn's ``make_classification``, another problem for each seed.

    A part ``noise`` of the labels of training and validation is wrong, in both directions. With 1 % noise, two of
    three rows that are labeled as rare are not. **The labels of the test are clean**, at the natural mix.

    Args:
        rows: Rows for the training, at least 4; a quarter as many more are the validation set.
        test_rows: Rows for the test.
        rare: Share of the rare class, in (0, 1).
        noise: Part of the labels that is wrong, in [0, 0.5).
        class_sep: Distance of the classes, as for ``make_classification``.
        batch_size: Rows of a training batch.
        num_workers: Processes that load data. The rows are in memory, so 0 is fastest.
        seed: Seed of the problem, the split and the noise, at least 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = TabularDataModule(rows=2000, test_rows=4000, noise=0.0)
        >>> data.setup()
        >>> data.train_set.class_counts, len(data.val_set), int(data.test_set.targets.sum())
        (array([1990,   10]), 500, 20)
    """

    seed: int

    def __init__(
        self,
        rows: int = 20_000,
        test_rows: int = 100_000,
        rare: float = 0.005,
        noise: float = 0.01,
        class_sep: float = 1.5,
        batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(1.0, batch_size=batch_size, num_workers=num_workers, seed=seed)
        if not 0.0 < rare < 1.0:
            raise ValueError(f"rare must lie in (0, 1), got {rare}.")
        if not 0.0 <= noise < 0.5:
            raise ValueError(f"noise must lie in [0, 0.5), got {noise}.")
        rows, test_rows = check_integer("rows", rows, 4), check_integer("test_rows", test_rows, 1)
        self.sizes = (rows, rows // 4, test_rows)
        self.rare, self.noise, self.class_sep = rare, noise, class_sep

    def load_splits(self) -> Splits:
        """Return training, validation and test rows, each with the same share of the rare class."""
        features, labels = make_classification(
            sum(self.sizes),
            n_features=20,
            n_informative=8,
            n_redundant=4,
            n_clusters_per_class=2,
            weights=[1.0 - self.rare],
            flip_y=0.0,
            class_sep=self.class_sep,
            random_state=self.seed,
        )
        rng = np.random.default_rng(self.seed)
        # Class by class, because a stratified split is exact for both of them.
        parts = [self._split(np.flatnonzero(labels == c)) for c in (0, 1)]
        rows = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
        noises = (self.noise, self.noise, 0.0)
        return tuple(self._rows(features[i], labels[i], noise, rng) for i, noise in zip(rows, noises, strict=True))  # type: ignore[return-value]

    def _split(self, indices: Ints) -> list[Ints]:
        """Return the parts of rows, which ``make_classification`` has shuffled."""
        ends = np.cumsum(self.sizes)[:-1] / sum(self.sizes) * indices.size
        return np.split(indices, ends.round().astype(np.int64))

    @staticmethod
    def _rows(features: Floats, labels: NDArray[Any], noise: float, rng: np.random.Generator) -> Rows:
        is_wrong = np.zeros(labels.size, np.bool_)
        is_wrong[rng.choice(labels.size, round(noise * labels.size), replace=False)] = True
        return Rows(features, np.where(is_wrong, 1 - labels, labels).astype(np.int64), is_wrong)
