"""Two classes of a table at 99.5 to 0.5, 1 % of whose labels are wrong: does loss feedback chase noise?

Each run is `examples/train.py experiment=tabular` with a choice of `fair` or `baseline`. Training and validation have
wrong labels, the test has none. Of the rows that are labeled as rare, two thirds are not. Within a class the plugin and
the other samplers draw all rows equally often, so wrong labels are drawn more often only if the rare class is.

With two classes and a uniform target the standardized losses are 1 and -1, however small their difference is: losses
that are fed back move the draw by a fixed amount, towards the class whose loss is higher at the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from benchmarks.trials.configured import train_quietly
from numpy.typing import NDArray
from recipes.tabular import Rows
from sklearn.metrics import average_precision_score, precision_recall_curve
from torchmetrics.functional.classification import binary_calibration_error
from typing_extensions import override

from lightning_fair.integration.callback import find_callback

RARE = 1  # the number of the rare class
METHODS: dict[str, tuple[str, ...]] = {
    "plain": ("fair=off",),
    "weighted_sampler": ("baseline=weighted_sampler",),
    "class_weights": ("baseline=class_weights", "baseline.loss.beta=0.999999999"),  # in proportion to 1 / n
    "balanced": ("fair=balanced",),
    "long_tail": ("fair=long_tail",),
    "calibrated": ("fair=calibrated",),
    "losses_to_draw": ("fair=balanced", "fair.lambda2=0.5"),
    "losses_to_objective": ("fair=worst_class", "fair.feedback=train", "fair.lambda2=0.5"),
}


class Outcome(L.Callback):
    """Follows the draws of the training, and scores the test.

    Attributes:
        counts: Draws by label and by whether it is wrong, one array of shape ``(2, 2)`` for each epoch.
        numbers: The numbers of the run, after the test.
    """

    def __init__(self) -> None:
        self.counts: list[torch.Tensor] = []
        self.numbers: dict[str, Any] = {}
        self._wrong: torch.Tensor

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows: Rows = trainer.datamodule.train_set.dataset  # type: ignore[attr-defined]
        self._wrong = row_keys(rows.images[rows.is_wrong])
        self.counts.append(torch.zeros(2, 2, dtype=torch.int64))

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        x, y = batch
        is_wrong = torch.isin(row_keys(x), self._wrong)
        self.counts[-1] += torch.bincount(2 * y + is_wrong, minlength=4).view(2, 2)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shares = torch.stack(self.counts).double()
        shares /= shares.sum(dim=(1, 2), keepdim=True)
        rare, wrong = shares[:, RARE].sum(dim=1), shares[:, :, 1].sum(dim=1)
        self.numbers |= {
            "rare_share_of_draws": rare.tolist(),
            "wrong_share_of_draws": wrong.tolist(),
            "wrong_share_of_rare_draws": float(shares[:, RARE, 1].sum() / rare.sum()),
        }
        fair = find_callback(trainer)
        if fair is not None and fair.controller is not None:
            self.numbers["rare_probability_at_end"] = float(fair.controller.next_probs()[RARE])
            self.numbers["rare_reference_at_end"] = float(fair.controller.reference[RARE])

    @override
    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        test: Rows = trainer.datamodule.test_set  # type: ignore[attr-defined]
        probs = pl_module(test.images.to(pl_module.device)).softmax(dim=1)[:, RARE].cpu()
        self.numbers |= scores(test.targets, probs.numpy())


def row_keys(x: torch.Tensor) -> torch.Tensor:
    """Return a number for each row by which it is known: the bits of its first two features."""
    return x.flatten(1)[:, :2].contiguous().view(torch.int64).ravel()


def scores(labels: NDArray[Any], probs: NDArray[Any]) -> dict[str, float]:
    """Return the scores of probabilities of the rare class at the mix of ``labels``.

    ``recall_at_90`` is the largest recall of a threshold with a precision of at least 0.9; 0 if none has it.

    Example:
        >>> scores(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.3, 0.9]))["recall_at_90"]
        0.5
    """
    precision, recall, _ = precision_recall_curve(labels, probs)
    calibration = binary_calibration_error(torch.from_numpy(probs), torch.from_numpy(labels), n_bins=15, norm="l1")
    return {
        "average_precision": float(average_precision_score(labels, probs)),
        "recall_at_90": float(recall[precision >= 0.9].max()),
        "calibration_error": float(calibration),
    }


def run(method: str, seed: int, root: Path, *, noise: float = 0.01) -> dict[str, Any]:  # noqa: ARG001
    """Train and test once; nothing is read from ``root``, because scikit-learn makes the data.

    Returns:
        The scores of the test; the recalls of both classes; for each epoch ``rare_share_of_draws`` and
        ``wrong_share_of_draws``, the parts of the draws whose label is rare, and wrong; ``wrong_share_of_rare_draws``;
        and with the plugin the probability of the rare class in the draw and in the reference after the training.
    """
    outcome = Outcome()
    report = train_quietly(["experiment=tabular", *METHODS[method], f"data.noise={noise}", f"seed={seed}"], outcome)
    recalls = {"recall_frequent": float(report.recall[0]), "recall_rare": float(report.recall[RARE])}
    return {**outcome.numbers, "balanced_accuracy": report.balanced_accuracy, **recalls}


def rows(method: str, numbers: dict[str, Any]) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Return the metrics of a run for the table."""
    draws = {f"{name} share of draws": float(np.mean(numbers[f"{name}_share_of_draws"])) for name in ("rare", "wrong")}
    scored = ("average_precision", "recall_at_90", "balanced_accuracy", "calibration_error")
    metrics = {name.replace("_", " "): numbers[name] for name in scored} | draws
    metrics["rare in the objective"] = numbers.get("rare_reference_at_end", float("nan"))
    return {"": metrics}
