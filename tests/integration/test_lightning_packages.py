"""``lightning.pytorch`` and ``pytorch_lightning``, in either order of imports, and both in one process."""

from __future__ import annotations

import copy
import importlib
import importlib.machinery
import importlib.util
import pickle
import subprocess
import sys
import textwrap
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_fair import FairDataModule, FairSampling, ImportanceWeightedMixin
from lightning_fair.integration.lightning_packages import _JoinOnImport, check_trainer

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
WAYS = ["callback", "mixin", "data set", "data module"]


@pytest.fixture(params=PACKAGES)
def package(request) -> Any:
    return pytest.importorskip(request.param)


@pytest.fixture
def other(package) -> Any:
    return pytest.importorskip(next(name for name in PACKAGES if name != package.__name__))


def data() -> TensorDataset:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2] * 3)
    return TensorDataset(torch.randn(102, 4, generator=torch.Generator().manual_seed(0)), labels)


def make_classifier(package: Any) -> Any:
    class Classifier(ImportanceWeightedMixin, package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.transfers = torch.nn.Linear(4, 3), 0

        def training_step(self, batch, batch_idx):
            x, y = batch
            return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))

        def on_before_batch_transfer(self, batch, dataloader_idx):
            self.transfers += 1
            return batch

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier()


def make_data_module(package: Any) -> Any:
    class Data(package.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(data(), batch_size=6, shuffle=True)

    return Data()


def make_trainer(package: Any, callbacks: Any = (), **settings: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"logger": False, "max_epochs": 2, "accelerator": "cpu", **quiet, **settings}
    return package.Trainer(callbacks=list(callbacks), **settings)


def train(package: Any, way: str, fair: FairSampling, **settings: Any) -> Any:
    model = make_classifier(package)
    if way == "callback":
        trainer = make_trainer(package, [fair], **settings)
        trainer.fit(model, DataLoader(data(), batch_size=6, shuffle=True))
    elif way == "mixin":
        trainer, model.fair_sampling = make_trainer(package, **settings), fair
        trainer.fit(model, DataLoader(data(), batch_size=6, shuffle=True))
    else:
        trainer = make_trainer(package, **settings)
        wrapped = {"data": data(), "batch_size": 6} if way == "data set" else {"data": make_data_module(package)}
        trainer.fit(model, datamodule=FairDataModule(fair=fair, **wrapped))
    assert model.transfers == 34  # Lightning calls the module's hook, because no data module overrides it
    return trainer


@pytest.mark.parametrize("way", WAYS)
def test_both_in_one_process(package, other, way):
    """With both packages imported, each trains on fair batches, with the losses fed back."""
    fair = FairSampling(lambda2=0.3)
    trainer = train(package, way, fair)
    assert fair.sampler.drawn.min() > 50  # of 204; without steering, class 2 has 6. The losses steer, too
    assert not fair.controller.in_flight
    assert np.abs(fair.controller.loss_score).max() > 0
    assert isinstance(fair, package.Callback)
    assert isinstance(fair, other.Callback)
    assert "train_dataloader" not in vars(trainer.fit_loop._data_source.instance)


def test_one_callback_in_both(package, other):
    """A callback that a Trainer of one package has used starts anew in a Trainer of the other."""
    fair = FairSampling()
    train(package, "callback", fair, max_epochs=2)
    train(other, "callback", fair, max_epochs=2)
    assert fair.sampler.drawn.tolist() == [68, 68, 68]


def test_one_data_module_in_both(package, other):
    """A data module around a data set trains in one package after the other, even if their own hooks differ."""
    wrapped = FairDataModule(data(), batch_size=6)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [*batch]  # as in another version of Lightning

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other.LightningDataModule, "on_before_batch_transfer", on_before_batch_transfer)
        for each in (package, other, package):
            model = make_classifier(each)
            make_trainer(each).fit(model, datamodule=wrapped)
            assert model.transfers == 34
            assert wrapped.sampler.drawn.tolist() == [68, 68, 68]
    assert wrapped.hparams == {}


@pytest.mark.parametrize("search", ["lr_find", pytest.param("scale_batch_size", marks=pytest.mark.slow)])
def test_tuner_of_both(package, other, search, tmp_path, monkeypatch):
    """The finders of either package work around a data set."""
    monkeypatch.chdir(tmp_path)  # they save a checkpoint in it
    wrapped, trainer, model = FairDataModule(data(), batch_size=6), make_trainer(package), make_classifier(package)
    model.lr = 0.1
    tuner = importlib.import_module(f"{package.__name__}.tuner").Tuner(trainer)
    if search == "lr_find":
        tuner.lr_find(model, datamodule=wrapped, num_training=5)
    else:
        tuner.scale_batch_size(model, datamodule=wrapped, init_val=3, max_trials=2)
    trainer.fit(model, datamodule=wrapped)
    assert wrapped.sampler.batch_size == wrapped.batch_size
    assert np.ptp(wrapped.sampler.drawn) <= 3


def test_tensorboard_of_both(package, other, tmp_path):
    """Scalars and the layout of the charts reach the TensorBoard logger of either package."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = package.loggers.TensorBoardLogger(tmp_path)
    train(package, "callback", FairSampling(), logger=logger, log_every_n_steps=1)
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert "fair_class/trained_mix/2" in tags["scalars"]
    assert "custom_scalars__config__" in tags["tensors"]


def test_resumes_in_both(package, other, tmp_path):
    """A checkpoint holds the state of the callback, and the next run goes on from it."""
    first = FairSampling()
    train(package, "callback", first).save_checkpoint(tmp_path / "last.ckpt")
    resumed = FairSampling()
    trainer = make_trainer(package, [resumed], max_epochs=3)
    loader = DataLoader(data(), batch_size=6, shuffle=True)
    trainer.fit(make_classifier(package), loader, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.sampler.drawn.tolist() == [102, 102, 102]


def test_copies(package, other):
    """A callback can be pickled and copied."""
    fair = FairSampling()
    assert isinstance(fair, package.Callback)
    for copied in (pickle.loads(pickle.dumps(fair)), copy.deepcopy(fair), copy.copy(fair)):
        assert type(copied) is FairSampling
        assert copied.state_key == "FairSampling"


def test_subclass_of_callback(package):
    """The class itself is a ``Callback``, as LightningCLI asks."""
    assert issubclass(FairSampling, package.Callback)
    assert issubclass(FairDataModule, package.LightningDataModule)


def test_data_module_of_the_other_package(package, other):
    """A data module of one package in the Trainer of the other is an error that names both."""
    wrapped = FairDataModule(make_data_module(other))
    names = f"Trainer is of {package.__name__}.*Data is of {other.__name__}"
    with pytest.raises(TypeError, match=names):
        make_trainer(package).fit(make_classifier(package), datamodule=wrapped)


def test_no_trainer():
    with pytest.raises(TypeError, match=r"lightning\.pytorch or pytorch_lightning, got object"):
        check_trainer(object())


def test_too_old(monkeypatch):
    """A package that is too old is an error with the command that renews it."""
    old = types.ModuleType("pytorch_lightning")
    old.Trainer, old.__version__ = type("Trainer", (), {}), "1.9.5"
    monkeypatch.setitem(sys.modules, "pytorch_lightning", old)
    with pytest.raises(
        RuntimeError, match=r'2\.5 or newer, and 1\.9\.5 .* pip install --upgrade "pytorch_lightning>=2\.5"'
    ):
        check_trainer(old.Trainer())


PROGRAM = """
    import sys
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    import test_lightning_packages as tests

    from lightning_fair import FairDataModule, FairSampling, ImportanceWeightedMixin

    assert not {"lightning", "pytorch_lightning"} & set(sys.modules)
    fairs, unused = [FairSampling() for _ in tests.WAYS], FairSampling()
    for name in %r:
        package = tests.importlib.import_module(name)
        assert issubclass(FairSampling, package.Callback) and isinstance(unused, package.Callback)
        assert issubclass(FairDataModule, package.LightningDataModule)
        for fair, way in zip(fairs, tests.WAYS):
            tests.train(package, way, fair)
            assert fair.sampler.drawn.tolist() == [68, 68, 68], (name, way)
        assert package.Trainer(callbacks=unused, logger=False).callbacks  # not in a list
    assert set(%r) == {name for name in tests.PACKAGES if name in sys.modules}
    if tests.importlib.util.find_spec("jsonargparse"):
        parser = tests.importlib.import_module(f"{name}.cli").LightningArgumentParser()
        parser.add_lightning_class_args(FairSampling, "fair")
"""


@pytest.mark.slow
@pytest.mark.parametrize("names", [PACKAGES[:1], PACKAGES[1:], PACKAGES, PACKAGES[::-1]], ids="+".join)
def test_instances_before_imports(names):
    """Instances that were made before Lightning was imported work, and only the packages that are used are imported."""
    for name in names:
        pytest.importorskip(name)
    program = textwrap.dedent(PROGRAM % (names, names))
    folder = importlib.import_module("pathlib").Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr


class Slots:
    """A loader of modules without attributes of its own."""

    __slots__ = ()

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.Trainer = object


@pytest.mark.parametrize("others", [[], [object()]], ids=["none", "without find_spec"])
def test_package_that_is_not_installed(monkeypatch, others):
    """The import hook finds nothing if the other finders do not, also if some are of the old kind."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [_JoinOnImport(), *others, _JoinOnImport()])
        spec = _JoinOnImport().find_spec("pytorch_lightning")
    assert spec is None


def test_loader_without_attributes(monkeypatch):
    """A package with an unusual loader is imported as without the hook."""

    class Finder:
        def find_spec(self, name, path=None, target=None):
            return importlib.machinery.ModuleSpec(name, Slots())

    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [_JoinOnImport(), Finder()])
        spec = _JoinOnImport().find_spec("pytorch_lightning")
    assert type(spec.loader) is Slots


RELOADED = """
    import sys
    import lightning_fair

    lightning_fair.FairSampling
    for name in [name for name in sys.modules if name.startswith("lightning_fair")]:
        del sys.modules[name]
    from lightning_fair import FairSampling

    import pytorch_lightning

    assert issubclass(FairSampling, pytorch_lightning.Callback)
"""


@pytest.mark.slow
def test_imported_twice():
    """lightning_fair may be imported anew, as in a notebook."""
    pytest.importorskip("pytorch_lightning")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RELOADED)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
