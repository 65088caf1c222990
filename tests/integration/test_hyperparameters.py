"""A ``FairSampling`` among the hyperparameters of a module or a data module (``save_hyperparameters``)."""

import copy
import pickle
import subprocess
import sys

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_helpers import BATCH, BATCHES, Indexed, Weighted, fit, loader, moving, trainer

from lightning_fair import FairDataModule, FairSampling, schedules
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.unsaved_labels import UnsavedLabels

LABELS = Indexed().targets


def from_targets(data):
    return data.targets


class Net(Weighted):
    def __init__(self, fair=None, other=None):
        super().__init__()
        self.save_hyperparameters()

    def test_step(self, batch, batch_idx):
        self.log("loss", self.losses(*batch[:2]).mean())


class Data(L.LightningDataModule):
    def __init__(self, sampling=None, size=1):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return loader()


def checkpoint(path, net, fair, data=None, **settings):
    fitted = fit(net, loader() if data is None else data, *([fair] if fair else []), max_steps=4, **settings)
    fitted.save_checkpoint(path)
    return fitted


KINDS = {
    "defaults": FairSampling,
    "array": lambda: FairSampling(target_probs=np.full(4, 0.25), alpha=np.float64(4.0), seed=np.int64(3)),
    "tensor": lambda: FairSampling(target_probs=torch.full((4,), 0.25), class_names=("a", "b", "c", "d")),
    "mapping": lambda: FairSampling(target_probs={np.int64(0): np.float32(0.5)}, labels="targets"),
    "schedules": lambda: FairSampling(
        alpha=schedules.Join(
            [schedules.Linear(0.0, np.float64(8.0), 10), schedules.Cosine(8.0, 2.0, 5)], np.array([20])
        ),
        target_probs=schedules.Shift(schedules.Step(0.0, 1.0, at=3), "prior", np.full(4, 0.25)),
    ),
    "labels": lambda: FairSampling(labels=LABELS.numpy()),
    "list": lambda: FairSampling(labels=LABELS.tolist()),
    "function": lambda: FairSampling(labels=from_targets),
    "lambda": lambda: FairSampling(labels=lambda data: data.targets),
    "position": lambda: FairSampling(labels=1),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_checkpoint_of_a_module(tmp_path, kind):
    """A checkpoint loads by default settings, to go on, to test and to predict, and has all settings but the labels."""
    path, fair = tmp_path / "saved.ckpt", kind()
    checkpoint(path, Net(fair), fair)
    loaded = Net.load_from_checkpoint(path).hparams.fair
    assert torch.load(path, weights_only=True)["hyper_parameters"]["fair"].settings.alpha == loaded.settings.alpha
    assert loaded.sampler is None
    labels = fair.settings.labels
    is_kept = labels is None or isinstance(labels, (str, int))
    assert is_kept is not isinstance(loaded.settings.labels, UnsavedLabels)
    fit(module := Net(kind()), loader(), kind(), ckpt=path, max_epochs=2)
    assert len(module.steps) == BATCHES
    trainer().test(Net(kind()), loader(shuffle=False), ckpt_path=path, verbose=False)
    # The loaded callback trains as the first one did; without labels it says so.
    if is_kept:
        fit(again := Net(loaded), loader(), loaded, max_steps=4)
        fit(first := Net(fair), loader(), fair, max_steps=4)
        assert [step.indices for step in again.steps] == [step.indices for step in first.steps]
    else:
        with pytest.raises(ValueError, match=r"labels of this FairSampling were .* new FairSampling\(labels="):
            fit(Net(loaded), loader(), loaded)


@pytest.mark.parametrize(
    "part", [FairSettings(alpha=schedules.Linear(0.0, 4.0, 10)), schedules.Shift(schedules.Step(0.0, 1.0, at=3))]
)
def test_parts(tmp_path, part):
    """Settings, schedules and targets are hyperparameters too."""
    checkpoint(tmp_path / "saved.ckpt", Net(moving(), part), moving())
    assert repr(Net.load_from_checkpoint(tmp_path / "saved.ckpt").hparams.other) == repr(part)


@pytest.mark.parametrize("labels", [None, "values"])
def test_size(tmp_path, labels):
    """The checkpoint has the same size with a callback that has drawn from a large data set."""
    large = Indexed(tuple(2000 * n for n in (50, 20, 10, 5)))
    fair = moving(labels=large.targets if labels else None)
    path = tmp_path / "saved.ckpt"
    without = checkpoint(path, Net(), fair, loader(large)), path.stat().st_size
    checkpoint(path, Net(fair), fair, loader(large))
    assert path.stat().st_size < without[1] + 3000


@pytest.mark.parametrize("way", ["callback", "fair data module", "own"])
def test_data_module(tmp_path, way):
    """The callback may be a hyperparameter of the data module."""
    fair, path = moving(), tmp_path / "saved.ckpt"
    data = Data(fair, size=3)
    given = data if way == "callback" else FairDataModule(data, fair=fair)
    checkpoint(path, Net(), fair if way == "callback" else None, given)
    loaded = Data.load_from_checkpoint(path)
    assert loaded.hparams.size == 3
    assert loaded.hparams.sampling.settings.target_probs == list(fair.settings.target_probs)
    fit(module := Net(), FairDataModule(loaded, fair=loaded.hparams.sampling), ckpt=path, max_epochs=2)
    assert len(module.steps) == BATCHES


def test_loggers(tmp_path):
    """The loggers' files of hyperparameters have the settings, and no labels."""
    pytest.importorskip("tensorboard")
    fair = moving(labels=LABELS, alpha=schedules.Linear(0.0, 4.0, 10))
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    checkpoint(tmp_path / "saved.ckpt", Net(fair), fair, logger=loggers)
    for logger in loggers:
        text = (tmp_path / logger.name / "version_0" / "hparams.yaml").read_text()
        assert len(text) < 1500
        assert f"kind: {len(LABELS)} values" in text
        assert yaml.unsafe_load(text)["fair"].settings.alpha == fair.settings.alpha


@pytest.mark.parametrize("by", [copy.copy, copy.deepcopy, lambda fair: pickle.loads(pickle.dumps(fair))])
def test_copies_have_labels(by):
    """A copy in this process or another has all settings with the labels, and can be trained with."""

    class Own(FairSampling):
        extra = 1

    fair = moving(labels=LABELS.tolist()) if by is not copy.copy else Own(labels=from_targets)
    fair.extra = 2
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    copied = by(fair)
    assert copied.sampler is None
    assert copied.settings.labels == fair.settings.labels
    assert copied.extra == 2
    fit(module := Weighted(), loader(), copied, limit_train_batches=2)
    assert len(module.steps) == 2
    assert fair.sampler.trained.sum() == 2 * BATCH


@pytest.mark.slow
def test_pickle_before_lightning():
    """An instance that is made before Lightning is imported can be pickled afterwards."""
    code = (
        "import pickle; from lightning_fair import FairSampling; fair = FairSampling(alpha=2.0)\n"
        "import lightning.pytorch; print(pickle.loads(pickle.dumps(fair)).settings.alpha)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "2.0\n"
