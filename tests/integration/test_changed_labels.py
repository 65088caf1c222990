"""Data that change between the epochs, groups, and decisions that a checkpoint keeps."""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning_helpers import BATCH, Indexed, Weighted, fit, loader, moving, warnings_about
from torch.utils.data import default_collate

from lightning_fair import FairSampling, schedules
from lightning_fair.dataloaders.label_groups import describe_groups


class Changing(L.Callback):
    """Changes the data set at the end of each epoch."""

    def __init__(self, change):
        self.change = change

    def on_train_epoch_end(self, trainer, pl_module):
        self.change(trainer.train_dataloader.dataset)


class Arrays(Indexed):
    def __init__(self):
        super().__init__((144, 16))
        self.targets = self.targets.numpy()


def relabel(dataset):
    dataset.targets[:] = 1 - dataset.targets


def replace(dataset):
    dataset.targets = 1 - dataset.targets


def shuffle(dataset):
    np.random.default_rng(0).shuffle(dataset.targets)


@pytest.mark.parametrize("reload", [0, 1])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", [relabel, replace, shuffle])
def test_changed_labels_are_read_again(change, workers, reload):
    """The batches of each epoch are balanced, and a warning says what has changed."""
    module, data = Weighted(2), Arrays()
    settings = {"num_workers": workers, "persistent_workers": bool(workers)}
    with warnings_about("The labels of ") as messages:
        fit(
            module,
            loader(data, **settings),
            FairSampling(),
            Changing(change),
            max_epochs=3,
            reload_dataloaders_every_n_epochs=reload,
        )
    (message,) = messages  # although the labels change twice
    assert "of 160 samples have changed: the batches follow the new ones" in message
    assert len(module.steps) == 60
    for step in module.steps:
        assert sorted(step.labels) == [0] * 4 + [1] * 4


@pytest.mark.slow
def test_changed_labels_do_not_depend_on_the_lead():
    """Batches that workers drew ahead by the old labels, in an epoch that was cut short, do not count."""
    runs = []
    for workers in (0, 2):
        module, fair = Weighted(2), FairSampling(target_probs=[0.7, 0.3], lambda2=0.3)
        fit(
            module,
            loader(Arrays(), num_workers=workers),
            fair,
            Changing(shuffle),
            max_epochs=3,
            limit_train_batches=5,
        )
        assert fair.controller.state_dict()["draws"] == 15
        runs.append([(step.indices, step.weights.tolist()) for step in module.steps])
    assert runs[0] == runs[1]


def test_schedules_go_on():
    """A target that moves by epochs reaches its end, although the data are shuffled after each of them."""
    fair = FairSampling(target_probs=schedules.Shift(schedules.Step(0.0, 1.0, at=2, unit="epoch"), "prior", "uniform"))
    module = Weighted(2)
    fit(module, loader(Arrays()), fair, Changing(shuffle), max_epochs=4)
    assert fair.state_dict()["run_sums"][0] == 80 * BATCH
    counts = np.array([np.bincount(step.labels, minlength=2) for step in module.steps])
    assert counts[:40, 1].mean() < 1.5
    assert abs(counts[40:, 1].mean() - 4.0) < 0.5


def test_unchanged_labels_are_kept():
    with warnings_about("have changed") as messages:
        fit(Weighted(2), loader(Arrays()), FairSampling(), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert not messages


def test_other_number_of_classes_raises():
    def grow(dataset):
        dataset.targets[:10] = 2

    with pytest.raises(ValueError, match="number of classes has changed from 2 to 3 during the fit"):
        fit(Weighted(3), loader(Arrays()), FairSampling(), Changing(grow), max_epochs=2)


def test_groups_are_printed(caplog):
    """At the set-up, if the data set shows its classes."""
    data = Indexed((100, 60))
    groups = 2 * data.targets.numpy() + np.arange(160) % 2
    fair = FairSampling(labels=groups)
    fit(Weighted(), loader(data), fair)
    assert "FairSampling balances 4 groups. Class 0: groups 0, 1. Class 1: groups 2, 3." in caplog.text
    assert fair._run.groups
    assert fair._run.label_check.relation == "groups"
    assert (fair.sampler.drawn == 40).all()


def test_groups_of_batches_are_printed(caplog):
    """By the first batches, if only they show the classes."""

    class Unlabelled(Indexed):
        def __init__(self):
            super().__init__()
            self.hidden = self.__dict__.pop("targets")

        def __getitem__(self, index):
            self.targets = self.hidden
            sample = super().__getitem__(index)
            del self.targets
            return sample

        def __len__(self):
            return len(self.hidden)

    groups = 2 * Indexed().targets.numpy() + np.arange(160) % 2
    fair = FairSampling(labels=groups)
    fit(Weighted(), loader(Unlabelled()), fair)
    assert "FairSampling balances groups of the classes in batch[1] (group -> class)" in caplog.text
    assert fair._run.groups


def test_no_groups():
    """Labels that are the classes, or that are not within the classes, are no groups."""
    data = Indexed()
    assert describe_groups(data.targets.numpy(), data) is None
    assert describe_groups(3 - data.targets.numpy(), data) is None
    assert describe_groups(np.arange(160) % 5, data) is None
    assert describe_groups(data.targets.numpy(), torch.utils.data.TensorDataset(torch.zeros(160))) is None
    several = torch.stack([data.targets % 2, data.targets // 2], dim=1)
    assert describe_groups(data.targets.numpy(), torch.utils.data.TensorDataset(torch.zeros(160), several)) is None


def backwards(samples):
    return default_collate(samples[::-1])


@pytest.mark.filterwarnings("ignore:The collate_fn or the data set seems")
def test_checkpoint_keeps_the_decision(tmp_path):
    """After a resume, weights and losses follow the reordered column at once."""
    whole = Weighted()
    fair = moving()
    fit(whole, loader(collate_fn=backwards), fair, max_epochs=2)
    assert fair._run.label_check.column == "batch[1]"
    first = fit(Weighted(), loader(collate_fn=backwards), moving(), max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest, fair = Weighted(), moving()
    fit(rest, loader(collate_fn=backwards), fair, max_epochs=2, ckpt=tmp_path / "half.ckpt")
    assert fair._run.label_check.column == "batch[1]"
    assert [step.indices for step in rest.steps] == [step.indices for step in whole.steps[20:]]
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(rest.steps, whole.steps[20:], strict=True))
    assert len(rest.steps) * BATCH == 160
