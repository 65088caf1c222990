"""Balance groups, here class by background, with the plugin and without: `python examples/groups.py`.

Scikit-learn's digits, 0 to 4 against 5 to 9, lie on a black or a gray background. In the training data 95 % of the
small digits are on black and 95 % of the large ones on gray, so the background alone is right in 95 % of the images.
In the test each digit lies on both. `FairSampling(labels=groups)` draws the four groups equally often; the network is
trained on the two classes. The table shows the test accuracy of each group: mean ± standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence

import lightning.pytorch as L
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_fair import FairSampling, ImportanceWeightedMixin

GROUPS = np.array(["0-4 on black", "0-4 on gray", "5-9 on black", "5-9 on gray"])
TRAINING = 1000  # images; the other 797 are for the test


class Classifier(ImportanceWeightedMixin, L.LightningModule):
    """A small network for two classes."""

    fair_sampling = False  # no plugin unless the Trainer has it

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the weighted loss of the classes: the batch shows no groups."""
        x, y = batch
        return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def images(digits: NDArray[np.float64], on_gray: NDArray[np.bool_]) -> torch.Tensor:
    """Return the digits before their background, shape ``(N, 64)``."""
    return torch.from_numpy(np.maximum(digits / 16, 0.5 * on_gray[:, None])).float()


def train(seed: int, epochs: int, *, balanced: bool) -> list[float]:
    """Train a network, and return its test accuracy in each group."""
    L.seed_everything(seed, verbose=False)
    rng = np.random.default_rng(seed)
    digits, numbers = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    digits, y = digits[order], (numbers[order] >= 5).astype(np.int64)
    on_gray = np.where(rng.random(len(y)) < 0.95, y, 1 - y).astype(bool)

    data = TensorDataset(images(digits, on_gray)[:TRAINING], torch.from_numpy(y)[:TRAINING])
    groups = GROUPS[2 * y + on_gray][:TRAINING].tolist()
    model = Classifier()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[FairSampling(labels=groups)] if balanced else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=50, shuffle=True))

    right = []
    for label in (0, 1):
        test = digits[TRAINING:][y[TRAINING:] == label]
        for gray in (False, True):
            predicted = model.net(images(test, np.full(len(test), gray))).argmax(1)
            right.append(float((predicted == label).float().mean()))
    return right


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind (default: 5)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of a training (default: 30)")
    args = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers", ".*isinstance.treespec"):
        warnings.filterwarnings("ignore", message=message)
    runs = [[train(seed, args.epochs, balanced=on) for seed in range(args.seeds)] for on in (False, True)]
    print(f"{'test accuracy':<14}{'without':>16}{'with the plugin':>18}")
    table = np.array(runs)  # (without and with, seeds, groups)
    worst, mean = table.min(2, keepdims=True), table.mean(2, keepdims=True)
    rows = np.concatenate([table, mean, worst], axis=2)
    for k, name in enumerate([*GROUPS, "mean", "worst group"]):
        cells = [f"{run[:, k].mean():.3f} ± {run[:, k].std(ddof=min(1, args.seeds - 1)):.3f}" for run in rows]
        print(f"{name:<14}{cells[0]:>16}{cells[1]:>18}")


if __name__ == "__main__":
    main()
