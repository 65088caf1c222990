"""Fits whose validation is fed back, and their records. The processes of several ranks import this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_helpers import Indexed, Weighted, fit, loader

from lightning_fair import FairSampling

K = 4
VAL = (16, 12, 8, 4)  # samples of each class, 40 in all: the ranks get as many each


@dataclass
class Record:
    """What a fit did, one entry per batch, and its results."""

    draws: list[Any] = field(default_factory=list)  # number, reference, p and samples of the draw
    parameters: bytes = b""
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    reference: np.ndarray = field(default_factory=lambda: np.zeros(0))


class Recalls(Weighted):
    """Gives the recalls of its validation to the callback, in the way that ``how`` names."""

    def __init__(self, how: str, fair: FairSampling) -> None:
        super().__init__()
        self.how, self.fair, self.record_of_fit = how, fair, Record()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        draw = self.fair._run.current.draw
        values = draw.draw_id, draw.reference.tobytes(), draw.probs.tobytes(), batch[2].tolist()
        self.record_of_fit.draws.append(values)

    def on_validation_epoch_start(self) -> None:
        self.hits = torch.zeros(2, K)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        hits = (self.net(x).argmax(dim=1) == y).float()
        self.hits.index_add_(1, y, torch.stack([hits, torch.ones_like(hits)]))

    def on_validation_epoch_end(self) -> None:
        hits, counts = self.hits
        metrics = {f"val/recall/{c}": value for c, value in enumerate(hits / counts)}
        if self.how == "logged":
            self.log_dict(metrics)
        elif self.how == "logged on rank zero":
            if self.global_rank == 0:
                self.log_dict(metrics, rank_zero_only=True)
        else:
            self.fair_feedback(hits / counts, counts)


class SaveEverywhere(L.Callback):
    """Saves a checkpoint after each batch, validation and epoch, as ModelCheckpoint does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: L.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:02d}_{name}.ckpt")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.save(trainer, "epoch")


def train(
    how: str = "logged",
    *,
    world_size: int = 1,
    workers: int = 0,
    savers: Sequence[L.Callback] = (),
    ckpt: Path | None = None,
    to: str = "objective",
    **settings: Any,
) -> Record:
    """Train three epochs of eight batches, and return the records."""
    fair = FairSampling(
        feedback="val/recall", feedback_to=to, lambda2=0.3, horizon=16, loss_ema_decay=0.0, seed=0, feedback_delay=5
    )
    module = Recalls(how, fair)
    fitted = fit(
        module,
        Data(workers, batch_size=8 // world_size),
        *savers,
        fair,
        ckpt=ckpt,
        enable_checkpointing=any(isinstance(saver, ModelCheckpoint) for saver in savers),
        **{"limit_train_batches": 8, "max_epochs": 3, "num_sanity_val_steps": 2, **settings},
        **({"devices": world_size, "strategy": "ddp"} if world_size > 1 else {}),
    )
    assert fitted.state.finished
    record, controller = module.record_of_fit, fair.controller
    record.parameters = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    record.scores, record.reference = controller.objective.scores, controller.reference
    return record


class Data(L.LightningDataModule):
    def __init__(self, workers: int, batch_size: int) -> None:
        super().__init__()
        self.workers, self.batch_size = workers, batch_size

    def train_dataloader(self) -> Any:
        return loader(num_workers=self.workers, batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return loader(Indexed(VAL), shuffle=False, batch_size=10)
