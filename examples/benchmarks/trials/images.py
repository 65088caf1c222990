"""Runs on long-tailed images: digits, MNIST and CIFAR-10. Each is a run of `examples/train.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from benchmarks.trials.configured import train_quietly
from benchmarks.trials.scores import calibration_error, recalls, tune_offsets
from recipes.images import JoinedImages
from recipes.longtail import long_tail_counts
from typing_extensions import override

from lightning_fair.common.arrays import Floats, Ints

# Overrides of `conf/train.yaml`.
METHODS: dict[str, tuple[str, ...]] = {
    "plain": ("fair=off",),
    "weighted_sampler": ("baseline=weighted_sampler",),
    "class_weights": ("baseline=class_weights",),
    "drw": ("baseline=drw",),
    "focal": ("baseline=focal",),
    "balanced_softmax": ("baseline=balanced_softmax",),
    "logit_adjustment": ("baseline=logit_adjustment",),
    "balanced": ("fair=balanced",),
    "deferred": ("fair=deferred",),
    "long_tail": ("fair=long_tail",),
    "long_tail_64_repeats": ("fair=long_tail", "fair.max_repeats=64"),
    "worst_class": ("fair=worst_class",),
    "worst_class_gain_10": ("fair=worst_class", "fair.feedback_gain=10"),
    "worst_class_train": ("fair=worst_class", "fair.feedback=train"),
    "calibrated": ("fair=calibrated",),
    "prior_weights": ("fair=balanced", "fair.reference=prior"),
}
# From sqrt to the prior, in equal steps over the epochs.
TO_PRIOR = (
    "{_target_:lightning_fair.schedules.Shift,start:sqrt,end:prior,progress:{_target_:lightning_fair.schedules.Linear,"
    "start:0.0,end:1.0,duration:${epochs},unit:epoch}}"
)
METHODS["sqrt_to_prior"] = ("fair=long_tail", f"fair.target_probs={TO_PRIOR}")
DIGITS = ("experiment=digits", "data.imbalance_ratio=100")
MNIST = ("experiment=mnist", "data.val_per_class=50", "trainer.val_check_interval=0.2")
DATA: dict[str, tuple[str, ...]] = {
    "digits_10": (*DIGITS, "epochs=10", "trainer.check_val_every_n_epoch=1"),
    "digits_80": (*DIGITS, "epochs=80", "trainer.check_val_every_n_epoch=4"),
    "mnist_exp": MNIST,
    "mnist_step": (*MNIST, "data.kind=step"),
    "mnist_5_images": (*MNIST, "data.largest=500", "epochs=10"),
    "mnist_5_images_long": (*MNIST, "data.largest=500", "epochs=40"),
    "cifar_12": ("experiment=cifar10_small", "epochs=12"),
    "cifar_40": ("experiment=cifar10_small", "epochs=40"),
}
TUNED = ("plain", "weighted_sampler", "balanced_softmax", "long_tail")  # also with tuned offsets of the logits
PLUGIN = {name for name, values in METHODS.items() if values[0].startswith("fair=") and values[0] != "fair=off"}
BALANCED, WORST = "balanced accuracy", "worst class"
POWER = "power_"  # begins the name of a method that draws with prior ** t, corrected in the logits
ADDED = "+val"  # ends the name of a method that trains on the validation images too


def overrides(data: str, method: str, seed: int, root: Path) -> list[str]:
    """Return what is written after `python examples/train.py` for a run."""
    values = [*DATA[data], *_method(method.removesuffix(ADDED), data), f"seed={seed}"]
    if data.startswith("mnist"):
        values.append(f"data.root={root}")
    if data.startswith("cifar"):
        packed = root / "cifar10.npz"
        values += ["data=arrays", f"data.path={packed}"] if packed.is_file() else [f"data.root={root}"]
    return [*values, *(["data.add_validation=true"] if method.endswith(ADDED) else [])]


def _method(name: str, data: str) -> tuple[str, ...]:
    if not name.startswith(POWER):
        return METHODS[name]
    largest = {"digits": 100, "mnist": 500, "cifar": 5000}[data.partition("_")[0]]
    mix = long_tail_counts(10, largest, imbalance_ratio=100) ** float(name.removeprefix(POWER))
    return "fair=long_tail", f"fair.target_probs={(mix / mix.sum()).tolist()}"


class Outputs(L.Callback):
    """Keeps logits and labels of the trained network, of the validation and of the test data.

    Attributes:
        images: Training images of each class, without those of the validation, shape ``(K,)``.
        parts: Logits, shape ``(N, K)``, and labels, shape ``(N,)``, of ``"validation"`` and ``"test"``.
    """

    images: Ints

    def __init__(self) -> None:
        self.parts: dict[str, tuple[Floats, Ints]] = {}
        self._test: list[tuple[torch.Tensor, torch.Tensor]] = []

    @override
    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The last validation of the training may be some batches before its end.
        data, model = trainer.datamodule, pl_module.eval()  # type: ignore[attr-defined]
        self.parts["validation"] = _join((model.adjust(model(x)), y) for x, y in data.val_dataloader())
        train_set = data.train_set
        self.images = (train_set.datasets[0] if isinstance(train_set, JoinedImages) else train_set).class_counts
        model.train()

    @override
    def on_test_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        self._test.append((outputs["logits"], batch[1]))

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.parts["test"] = _join(self._test)


def _join(batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[Floats, Ints]:
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
    return logits.double().numpy(), labels.numpy()


def run(data: str, method: str, seed: int, root: Path) -> dict[str, Any]:
    """Train and test once.

    Returns:
        ``recall`` of each class; ``tuned_recall``, with offsets of the logits tuned on the validation data, unless they
        were trained on; ``images`` of each class, without those of the validation; ``calibration_error`` at the mix of
        these; ``effective_sample_size``; and ``repeats``, how often an image of the last class was drawn.
    """
    outputs = Outputs()
    report = train_quietly(overrides(data, method, seed, root), outputs)
    (logits, labels), images = outputs.parts["test"], outputs.images
    numbers = {
        "images": images.tolist(),
        "recall": recalls(logits, labels).tolist(),
        "calibration_error": calibration_error(logits, labels, images / images.sum()),
        "effective_sample_size": report.effective_sample_size,
        "repeats": float(report.drawn[-1] / report.images[-1]),
    }
    if not method.endswith(ADDED):
        numbers["tuned_recall"] = recalls(logits + tune_offsets(*outputs.parts["validation"]), labels).tolist()
    return numbers


def rows(method: str, numbers: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the metrics of a run, and for some methods those with tuned offsets of the logits."""
    metrics = {"": _metrics(np.array(numbers["recall"]), numbers)}
    metrics[""]["calibration error"] = numbers.get("calibration_error", float("nan"))
    if method in TUNED and "tuned_recall" in numbers:
        metrics[" with tuned offsets"] = _metrics(np.array(numbers["tuned_recall"]), numbers)
    return metrics


def repeat_rows(method: str, numbers: dict[str, Any]) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Return how often an image of the rarest class was drawn, and the accuracies."""
    recall, tuned = (np.array(numbers.get(key, [np.nan])) for key in ("recall", "tuned_recall"))
    return {
        "": {
            "repeats of the rarest": numbers["repeats"],
            BALANCED: float(recall.mean()),
            WORST: float(recall.min()),
            "the three rarest": float(recall[-3:].mean()),
            f"{BALANCED}, tuned offsets": float(tuned.mean()),
            f"{WORST}, tuned offsets": float(tuned.min()),
        }
    }


def _metrics(recall: Floats, numbers: dict[str, Any]) -> dict[str, float]:
    counts = np.array(numbers["images"])
    return {
        BALANCED: float(recall.mean()),
        WORST: float(recall.min()),
        "at the training mix": float(recall @ counts / counts.sum()),
        "calibration error": float("nan"),
    }
