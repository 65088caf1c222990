"""Small Lightning modules and data, and records of draws and training steps."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_fair import FairSampling, FeedbackBatchSampler, ImportanceWeightedMixin
from lightning_fair.control.draw import Draw

torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another, 30 ms a step

COUNTS = (96, 32, 20, 12)
BATCH = 8
BATCHES = sum(COUNTS) // BATCH
in_any_order = pytest.mark.skipif(
    "in_order" not in inspect.signature(DataLoader.__init__).parameters, reason="this torch has no in_order"
)
# Numbers of loader workers; a test with workers starts processes.
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]
TARGET = (0.4, 0.3, 0.2, 0.1)  # a batch of 8 cannot have this mix, so the deficits keep p moving


class Indexed(Dataset):
    """Samples that know their index: ``(x, y, index)``."""

    def __init__(self, counts: tuple[int, ...] = COUNTS) -> None:
        self.targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        y = int(self.targets[index])
        return torch.tensor([np.sin(index), np.cos(index), float(y == 1), 1.0], dtype=torch.float32), y, index


class Named(Indexed):
    """Its own labels are names, whose sorted order is not that of the numbers in its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.targets
        self.targets = [("zebra", "ant", "cow", "bee")[y] for y in self.numbers]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        x = torch.tensor([np.sin(index), np.cos(index), 0.0, 1.0], dtype=torch.float32)
        return x, int(self.numbers[index]), index


def loader(dataset: Dataset | None = None, **settings: Any) -> DataLoader:
    return DataLoader(Indexed() if dataset is None else dataset, **{"batch_size": BATCH, "shuffle": True, **settings})


def moving(**settings: Any) -> FairSampling:
    """A callback whose p moves from draw to draw."""
    fast = {"lambda2": 0.3, "loss_ema_decay": 0.0, "horizon": 16.0}
    return FairSampling(**{"target_probs": TARGET, **fast, "seed": 0, **settings})


@dataclass
class Step:
    """One training step: its samples, their weights and losses, and the number of the newest draw at the time."""

    indices: list[int]
    labels: list[int]
    weights: np.ndarray
    losses: np.ndarray
    newest: int


class Plain(L.LightningModule):
    """A linear classifier without the mixin; returns None for the batches in ``skip``."""

    def __init__(self, num_classes: int = 4, lr: float = 0.1, skip: tuple[int, ...] = ()) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Linear(4, num_classes)
        self.lr, self.skip = lr, skip
        self.steps: list[Step] = []
        self.draws: Draws = {}

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.net(x), y, reduction="none")

    def reduce(self, losses: torch.Tensor) -> torch.Tensor:
        return losses.mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        loss = self.record(*batch)
        return None if batch_idx in self.skip else loss

    def record(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        losses = self.losses(x, y)
        loss = self.reduce(losses)
        # The weights as they act: the gradient of the step's loss by each sample's loss.
        (share,) = torch.autograd.grad(loss, losses, retain_graph=True)
        self.steps.append(
            Step(
                index.tolist(),
                y.tolist(),
                share.double().numpy() * len(losses),
                losses.detach().double().numpy(),
                max(self.draws, default=0),
            )
        )
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.reduce(self.losses(*batch[:2])))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Weighted(ImportanceWeightedMixin, Plain):
    """The same with the mixin."""

    def reduce(self, losses: torch.Tensor) -> torch.Tensor:
        return self.weighted_loss(losses)


class KeysAndNames(L.LightningDataModule):
    """A user's own DataModule, with a hook, a state, hyperparameters and an attribute."""

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.calls: list[str] = []
        self.num_classes = 4
        self.restored: Any = None

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(f"setup {stage}")
        self.data = Indexed()

    def teardown(self, stage: str) -> None:
        self.calls.append(f"teardown {stage}")

    def train_dataloader(self) -> DataLoader:
        return loader(self.data, num_workers=self.hparams.num_workers)

    def state_dict(self) -> dict[str, Any]:
        return {"lines read": 7}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict


def trainer(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **{**quiet, **settings})


def fit(module: L.LightningModule, data: Any, *callbacks: L.Callback, ckpt: Any = None, **settings: Any) -> L.Trainer:
    fitted = trainer(*callbacks, **settings)
    if isinstance(data, L.LightningDataModule):
        fitted.fit(module, datamodule=data, ckpt_path=ckpt)
    else:
        fitted.fit(module, data, ckpt_path=ckpt)
    return fitted


Draws = dict[int, tuple[np.ndarray, list[int]]]


@contextmanager
def recorded_draws() -> Iterator[Draws]:
    """Record the class mix and the indices of every draw of a sampler, by the draw's number."""
    draws: Draws = {}
    original = FeedbackBatchSampler._draw

    def draw(self: FeedbackBatchSampler, plan: Draw) -> Any:
        result = original(self, plan)
        draws[plan.draw_id] = (plan.probs.copy(), result.indices)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedbackBatchSampler, "_draw", draw)
        yield draws


def own_draw(step: Step, draws: Draws) -> int:
    """Return the number of the draw that has all the samples of a step."""
    (draw_id,) = [draw_id for draw_id, (_, indices) in draws.items() if set(step.indices) <= set(indices)]
    return draw_id


def as_expected(step: Step, probs: np.ndarray, weigh: Callable[[list[int], np.ndarray], Any]) -> bool:
    return np.allclose(step.weights, weigh(step.labels, probs), rtol=1e-5)


def by_target(labels: list[int], probs: np.ndarray) -> np.ndarray:
    return np.array(TARGET)[labels] / probs[labels]


def wrong_steps(steps: list[Step], draws: Draws, weigh: Callable[[list[int], np.ndarray], Any] = by_target) -> int:
    """Count the steps whose weights are not those of their own draw."""
    return sum(not as_expected(step, draws[own_draw(step, draws)][0], weigh) for step in steps)


def movement(draws: Draws) -> float:
    """Return how much the class mix moved over the draws: if it is constant, nothing is tested."""
    return float(np.ptp([probs for probs, _ in draws.values()], axis=0).max())


@contextmanager
def warnings_about(words: str) -> Iterator[list[str]]:
    """Collect the warnings that contain ``words``, with repetitions."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(w.message) for w in caught if words in str(w.message)]


def assert_nothing_left(trainer, module):
    assert "process_dataloader" not in vars(trainer.strategy)
    assert module._step_correction is None
