"""Modules and losses for which importance weights by class are not right.

Each situation is written as users write it. Either the weights and losses of every batch are those of its samples' own
classes, or there is an error, or one warning; then its remedy is applied and works.
"""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from label_runs import CLASSES, SETTINGS, N, X, complaint, loader, train
from lightning_helpers import fit, warnings_about
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from lightning_fair import FairSampling, ImportanceWeightedMixin

# -- modules -----------------------------------------------------------------------------------------------


class Base(L.LightningModule):
    """A user's own base class."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 4)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.weighted_loss(F.cross_entropy(self.net(x / 1000), y, reduction="none"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


DATA = TensorDataset(X, torch.from_numpy(CLASSES))


def test_mixin_after_lightning_module():
    """The mixin behind ``LightningModule`` is an error that names the right order."""

    def train_it():
        class Wrong(Base, ImportanceWeightedMixin):
            pass

        train(Wrong(), loader(DATA), FairSampling())

    with pytest.raises(TypeError, match=r"\(ImportanceWeightedMixin, "):
        train_it()


def test_configure_callbacks_without_super():
    """A ``configure_callbacks`` that leaves out the mixin's is an error or one warning that names ``super()``."""

    class Stops(ImportanceWeightedMixin, Base):
        def configure_callbacks(self):
            return [L.Callback()]

    class Calls(ImportanceWeightedMixin, Base):
        def configure_callbacks(self):
            return [L.Callback(), *super().configure_callbacks()]

    def words():
        try:
            with warnings_about("super()") as warned:
                fit(Stops(), loader(DATA))
        except (TypeError, ValueError, RuntimeError) as error:
            return [str(error)]
        return warned

    (message,) = words()
    assert "configure_callbacks" in message
    callbacks = fit(Calls(), loader(DATA)).callbacks
    assert sum(isinstance(callback, FairSampling) for callback in callbacks) == 1


# -- mixed and soft labels ---------------------------------------------------------------------------------


class Votes(Dataset):
    """The labels are shares of the votes of several annotators; ``targets`` are the classes with most votes."""

    targets = CLASSES.tolist()

    def __len__(self):
        return N

    def __getitem__(self, index):
        own, others = F.one_hot(torch.tensor(CLASSES[index]), 4), np.random.default_rng(index).dirichlet(np.ones(4))
        return X[index], 0.6 * own + 0.4 * torch.from_numpy(others).float()


def mix_up(samples):
    x, y = torch.utils.data.default_collate(samples)
    y, order = F.one_hot(y, 4).float(), torch.randperm(len(y))
    return 0.7 * x + 0.3 * x[order], 0.7 * y + 0.3 * y[order]


class MixesOnDevice(Base):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return mix_up(list(zip(*batch, strict=True))) if self.trainer.training else batch


class MixesInStep(Base):
    def training_step(self, batch, batch_idx):
        x, y = mix_up(list(zip(*batch, strict=True)))
        return super().training_step((x, y), batch_idx)


class CutMixes(Base):
    def training_step(self, batch, batch_idx):
        x, y = batch
        images = x[:, :, None, None].expand(-1, -1, 8, 8)
        mixed, y = pytest.importorskip("torchvision.transforms.v2").CutMix(num_classes=4)(images, y)
        return super().training_step((mixed.mean((2, 3)), y), batch_idx)


UNVERIFIED = "could not verify"  # of batches without class numbers, whatever is done with them

MIXING = {
    "soft labels of the data set": (Base, lambda: loader(Votes())),
    "MixUp in collate_fn": (Base, lambda: loader(DATA, collate_fn=mix_up)),
    "MixUp on the device": (MixesOnDevice, lambda: loader(DATA)),
    "MixUp in training_step": (MixesInStep, lambda: loader(DATA)),
    "CutMix of torchvision": (CutMixes, lambda: loader(DATA)),
}


def with_mixin(base):
    return type(f"Weighted{base.__name__}", (ImportanceWeightedMixin, base), {})()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("base", "data"), MIXING.values(), ids=MIXING)
def test_mixed_labels(base, data, settings):
    """Samples that mix classes have no weight of their own: one warning, and its remedy, which gives weights of one."""
    outcome = train(with_mixin(base), data(), FairSampling(**settings))
    (message,) = [message for message in outcome.warned if UNVERIFIED not in message]
    assert "MixUp" in message
    remedy = {"correction": "none", "reference": "target"} if "reference" in settings else {"lambda2": 0.0}
    assert f"Mix only with FairSampling({', '.join(f'{name}={value!r}' for name, value in remedy.items())})" in message
    outcome = train(with_mixin(base), data(), FairSampling(**{**settings, **remedy}))
    assert [message for message in outcome.warned if UNVERIFIED not in message] == []
    assert outcome.fair.largest_weight == 1.0 or settings.get("reference") is None  # then close to one


class Smooths(Base):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x, 0.9 * F.one_hot(y, 4) + 0.025), batch_idx)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_smoothed_labels(settings):
    """A smoothed label is still that of one class: no warning."""
    assert train(with_mixin(Smooths), loader(DATA), FairSampling(**settings)).warned == []


# -- class weights in the loss -----------------------------------------------------------------------------


class FunctionalWeights(Base):
    def training_step(self, batch, batch_idx):
        x, y = batch
        weight = torch.tensor([1.0, 3.0, 5.0, 8.0])
        return self.weighted_loss(F.cross_entropy(self.net(x / 1000), y, weight=weight, reduction="none"))


class ModuleWeights(Base):
    def __init__(self):
        super().__init__()
        self.criterion = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 3.0, 5.0, 8.0]), reduction="none")

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.weighted_loss(self.criterion(self.net(x / 1000), y))


@pytest.mark.parametrize("base", [FunctionalWeights, ModuleWeights])
def test_class_weights(base):
    """Class weights in a loss of either kind: one warning, which says that the scale of the loss changes."""
    message = complaint(with_mixin(base), loader(DATA), FairSampling())
    assert "reduction='none'" in message
    for remedy in ((Base, "uniform"), (base, "prior")):
        assert train(with_mixin(remedy[0]), loader(DATA), FairSampling(target_probs=remedy[1])).warned == []
