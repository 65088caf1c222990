"""A stream of twenty turns whose long tail is reversed after each: the accuracy after each turn.

Each run is `examples/train.py experiment=drift` on MNIST with a network of one hidden layer. After each turn it is
measured on the 4000 validation images, which are balanced: the digits have 14 a class, which are too few, and a run of
the convolutional network takes five times as long. The newest class mix is that of the turn that has just ended, so a
network that follows it has seen little of the classes that the next turn brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from benchmarks.trials.configured import train_quietly
from typing_extensions import override

SMALL = ("data.buffer_size=8", "data.max_reuse=8")
METHODS: dict[str, tuple[str, ...]] = {
    "plain": ("fair=off",),
    "balanced": ("fair=balanced", *SMALL),
    "balanced_large_buffers": ("fair=balanced",),
    "losses_to_draw": ("fair=balanced", "fair.lambda2=0.5", *SMALL),
}


class AfterTurns(L.Callback):
    """Keeps the recall of each class after each turn.

    Attributes:
        recalls: A list of recalls for each validation.
    """

    def __init__(self) -> None:
        self.recalls: list[list[float]] = []

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.recalls.append([float(v) for name, v in metrics.items() if name.startswith("val/recall/")])


def run(method: str, seed: int, root: Path) -> dict[str, Any]:
    """Train, validate after each turn, and test once after the last one.

    Returns:
        ``after_turns``, the balanced accuracy after each turn; its mean and minimum from the second turn on, and the
        mean recall of the worst class; ``recovery``, the median number of batches until the trained mix was within 2 %
        of the target again, 64 if it was not before the next turn; and ``balanced_accuracy`` in the test.
    """
    turns = AfterTurns()
    mnist = (f"data.mnist_root={root}", "model=mlp", "model.net.image_size=28", "model.augment=null")
    overrides = ["experiment=drift", "trainer.val_check_interval=0.05", *mnist, *METHODS[method], f"seed={seed}"]
    report = train_quietly(overrides, turns)
    recalls = torch.tensor(turns.recalls)
    accuracies, worst = recalls.mean(dim=1), recalls.amin(dim=1)
    return {
        "after_turns": accuracies.tolist(),
        "mean_after_turns": float(accuracies[1:].mean()),
        "worst_after_turn": float(accuracies[1:].min()),
        "worst_recall_after_turns": float(worst[1:].mean()),
        "recovery": report.recovery,
        "balanced_accuracy": report.balanced_accuracy,
    }


def rows(method: str, numbers: dict[str, Any]) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Return the metrics of a run for the table."""
    names = ("mean_after_turns", "worst_after_turn", "worst_recall_after_turns", "recovery", "balanced_accuracy")
    return {"": {name.replace("_", " "): numbers[name] for name in names}}
