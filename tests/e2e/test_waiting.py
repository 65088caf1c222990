"""No part of a training step may make a GPU wait for the host."""

from __future__ import annotations

from collections import Counter

import lightning.pytorch as L
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_fair import FairSampling, ImportanceWeightedMixin

# What brings numbers, or a size that hangs on them, to the host.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "bincount",
    "masked_select",
    "_unique2",
    "unique_dim",
    "equal",
    "is_nonzero",
}
FIRST, STEPS = 3, 30  # within an epoch, and more than the feedback delay


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Weighted(ImportanceWeightedMixin, Plain):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))


class Looking(Weighted):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        assert loss.item() > 0
        return loss


class Waits(TorchDispatchMode):
    """Counts the operations that would make a GPU wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in WAITING or masked:
            self.seen[name] += 1
        return func(*args, **kwargs or {})


class Begin(L.Callback):
    """The first callback: calls a function at the start of each step, after the first steps."""

    def __init__(self, do) -> None:
        self.do = do

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= FIRST:
            self.do()


class End(Begin):
    """The last callback: calls a function at the end of each of these steps."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pass

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > FIRST:
            self.do()


def fit(model, *callbacks, **settings):
    y = torch.arange(3).repeat_interleave(torch.tensor([400, 80, 20]))
    trainer = L.Trainer(
        max_steps=STEPS,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(500, 4), y), batch_size=16, shuffle=True))


def waits_of(model, *callbacks):
    """Return the waiting operations between the start and the end of the steps."""
    waits = Waits()
    fit(model, Begin(waits.__enter__), *callbacks, End(lambda: waits.__exit__(None, None, None)), accelerator="cpu")
    return waits.seen


@pytest.mark.parametrize("settings", [{}, {"lambda2": 0.5}, {"normalize": True}, {"max_weight": 2.0}])
def test_no_operation_waits_for_gpu(settings):
    """No operation of a step would make a GPU wait."""
    assert waits_of(Weighted(), FairSampling(**settings)) == waits_of(Plain()) == {}


def test_waiting_operation_is_seen():
    """An operation that waits is seen."""
    assert waits_of(Looking(), FairSampling())["_local_scalar_dense"] == STEPS - FIRST


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", [Plain, Weighted])
def test_no_step_makes_gpu_wait(model):
    """No step makes the GPU wait."""
    try:
        begin = Begin(lambda: torch.cuda.set_sync_debug_mode("error"))  # until the end: the loop is part of it
        fit(model(), begin, FairSampling(lambda2=0.5), accelerator="gpu", devices=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
