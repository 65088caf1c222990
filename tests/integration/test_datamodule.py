import copy
import pickle

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning_helpers import (
    BATCH,
    BATCHES,
    TARGET,
    WORKERS,
    Indexed,
    KeysAndNames,
    Plain,
    Weighted,
    fit,
    loader,
    moving,
    recorded_draws,
    trainer,
    wrong_steps,
)
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from lightning_fair import FairDataModule, FairSampling, FeedbackBatchSampler

# -- in a Trainer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("kind", ["data module", "data set"])
def test_training_is_fair_and_weighted(kind, workers):
    module = Weighted()
    if kind == "data module":
        data = FairDataModule(KeysAndNames(workers), fair=moving())
    else:
        data = FairDataModule(Indexed(), fair=moving(), batch_size=BATCH, num_workers=workers)
    with recorded_draws() as draws:
        fitted = fit(module, data, max_epochs=2)
    assert len(module.steps) == 2 * BATCHES
    assert wrong_steps(module.steps, draws) == 0
    (fair,) = [callback for callback in fitted.callbacks if isinstance(callback, FairSampling)]
    assert data.sampler is fair.sampler
    assert data.controller is fair.controller
    np.testing.assert_allclose(data.controller.q, TARGET)


def test_trainers_callback_sets_settings():
    """The settings are those of the Trainer's callback if the data module has none."""
    data, fair = FairDataModule(KeysAndNames()), moving()
    fitted = fit(Weighted(), data, fair)
    assert [callback for callback in fitted.callbacks if isinstance(callback, FairSampling)] == [fair]
    assert data.controller is fair.controller


def test_callback_leaves_with_datamodule():
    """The callback of a data module leaves the Trainer when another data module is trained on."""
    fitted, fair = trainer(max_epochs=1), moving(seed=3)
    fitted.fit(Plain(), datamodule=FairDataModule(KeysAndNames()))
    fitted.fit_loop.max_epochs = 2
    fitted.fit(Plain(), datamodule=FairDataModule(KeysAndNames(), fair=fair))
    assert [c for c in fitted.callbacks if isinstance(c, FairSampling)] == [fair]
    fitted.fit_loop.max_epochs = 3
    fitted.fit(Plain(), datamodule=KeysAndNames())
    assert not any(isinstance(c, FairSampling) for c in fitted.callbacks)


def test_two_callbacks_are_refused():
    """Two callbacks, in the Trainer and in the data module, are refused."""
    module = Weighted()
    with pytest.raises(ValueError, match=r"Both Trainer\(callbacks=\[...\]\) and FairDataModule\(fair=...\)"):
        fit(module, FairDataModule(KeysAndNames(), fair=moving()), moving())
    assert module.steps == []


def test_shared_callback_is_one():
    """The same callback may be given in both places."""
    fair = moving()
    fitted = fit(Weighted(), FairDataModule(KeysAndNames(), fair=fair), fair)
    assert [callback for callback in fitted.callbacks if isinstance(callback, FairSampling)] == [fair]


def test_second_fit_keeps_callback():
    """A second fit has the same callback."""
    data, module = FairDataModule(KeysAndNames(), fair=moving()), Weighted()
    fitted = fit(module, data)
    fitted.fit_loop.max_epochs = 2
    fitted.fit(module, datamodule=data)
    assert sum(isinstance(callback, FairSampling) for callback in fitted.callbacks) == 1
    assert len(module.steps) == 2 * BATCHES


def test_callback_precedes_checkpoint(tmp_path):
    """The callback comes before those that save checkpoints."""
    fitted = fit(
        Weighted(), FairDataModule(KeysAndNames()), ModelCheckpoint(tmp_path), enable_checkpointing=True, max_steps=1
    )
    kinds = [isinstance(callback, Checkpoint) for callback in fitted.callbacks]
    (mine,) = [i for i, callback in enumerate(fitted.callbacks) if isinstance(callback, FairSampling)]
    assert mine < kinds.index(True)


@pytest.mark.parametrize("workers", WORKERS)
def test_resume_is_exact(tmp_path, workers):
    """Resumed run continues as the uninterrupted one."""

    def run(ckpt=None):
        module, data = Weighted(), FairDataModule(KeysAndNames(workers), fair=moving())
        saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
        fit(module, data, saver, ckpt=ckpt, enable_checkpointing=True, max_epochs=2, limit_train_batches=8)
        return module, data

    whole, _ = run()
    for stop in (5, 10):
        resumed, data = run(tmp_path / f"step={stop}.ckpt")
        assert [step.indices for step in resumed.steps] == [step.indices for step in whole.steps[stop:]]
        assert data.wrapped.restored == {"lines read": 7}


def test_strategy_is_clean_after_fit():
    """Nothing is left in the strategy."""
    fitted = fit(Weighted(), FairDataModule(KeysAndNames()))
    assert "process_dataloader" not in vars(fitted.strategy)


# -- everything else is the wrapped module's own ---------------------------------------------------------------


class Hooked(KeysAndNames):
    """Has all hooks of a data module, and records their calls."""

    def val_dataloader(self):
        return loader(self.data, shuffle=False)

    test_dataloader = predict_dataloader = val_dataloader

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.calls.append("before")
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.calls.append("transfer")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.calls.append(f"after {type(self.trainer).__name__}")
        return batch

    def on_exception(self, exception):
        self.calls.append(f"exception {exception}")


class HookedModule(Weighted):
    """Has a transfer hook of its own, which Lightning calls unless the data module has one."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.calls.append("after")
        return batch

    def test_step(self, batch, batch_idx):
        self.calls.append("test")

    def predict_step(self, batch, batch_idx):
        return batch[2]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [(KeysAndNames, "fit"), (Hooked, "fit"), (Hooked, "validate"), (Hooked, "test"), (Hooked, "predict")],
)
def test_hooks_are_called_as_without_plugin(kind, stage):
    """Every hook is called as without the plugin."""

    def calls(wrap):
        module, data, fitted = HookedModule(), kind(), trainer(num_sanity_val_steps=1, limit_train_batches=3)
        module.fair_sampling = False
        out = getattr(fitted, stage)(module, datamodule=wrap(data))
        return data.calls, module.calls, [part.tolist() for part in out] if stage == "predict" else out

    assert calls(FairDataModule) == calls(lambda data: data)


def test_missing_loader_raises():
    """A missing loader raises as without the plugin."""
    with pytest.raises(Exception, match="test_dataloader"):
        trainer().test(HookedModule(), datamodule=FairDataModule(KeysAndNames()), verbose=False)


def test_exception_hook_is_called():
    """The hook for exceptions is called."""

    class Breaks(Weighted):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("out of luck")

    data = Hooked()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Breaks(), FairDataModule(data))
    assert "exception out of luck" in data.calls


def test_state_and_attributes_are_forwarded(tmp_path):
    """State, hyperparameters and attributes are the wrapped module's."""
    theirs = KeysAndNames(num_workers=0)
    theirs.prepare_data_per_node = False
    data = FairDataModule(theirs)
    assert data.state_dict() == {"lines read": 7}
    data.load_state_dict({"lines read": 9})
    assert theirs.restored == {"lines read": 9}
    assert data.hparams == {"num_workers": 0}
    assert data.hparams is theirs.hparams
    assert data.num_classes == 4
    assert data.prepare_data_per_node is False
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        data.nowhere  # noqa: B018


def test_checkpoint_holds_hyperparameters(tmp_path):
    """A checkpoint holds the wrapped module's hyperparameters."""

    def saved(data, name):
        fitted = fit(Weighted(), data, limit_train_batches=2)
        fitted.save_checkpoint(tmp_path / name)
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        return {key: value for key, value in checkpoint.items() if key.startswith("datamodule_hyper")}

    assert saved(FairDataModule(KeysAndNames()), "fair") == saved(KeysAndNames(), "plain") != {}


def test_wrapped_module_is_untouched():
    theirs, plain = KeysAndNames(), KeysAndNames()
    fit(Weighted(), FairDataModule(theirs), limit_train_batches=2)
    fit(Weighted(), plain, limit_train_batches=2)
    assert vars(theirs).keys() == vars(plain).keys()
    assert theirs.calls == plain.calls
    assert type(theirs.train_dataloader()) is DataLoader


@pytest.mark.parametrize("by", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_copies(by):
    """The data module can be copied and pickled."""
    data = by(FairDataModule(KeysAndNames(), fair=moving()))
    assert data.num_classes == 4
    assert data.fair.settings.target_probs == TARGET
    module = Weighted()
    fit(module, data, limit_train_batches=2)
    assert len(module.steps) == 2


@pytest.mark.parametrize("by", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("around", ["data module", "data set"])
def test_copies_after_fit(by, around):
    """After a fit the data module, the callback, the Trainer and the loaders can be copied and pickled."""
    wrapped = {"data": KeysAndNames()} if around == "data module" else {"data": Indexed(), "batch_size": BATCH}
    data = FairDataModule(**wrapped)
    fitted = fit(Weighted(), data)
    data, fitted = by(data), by(fitted)
    assert data.trainer.global_step == BATCHES
    for copied in (by(fitted.train_dataloader), by(data.train_dataloader())):
        assert sum(len(y) for _, y, _ in copied) == 160
    fit(module := Weighted(), data)
    assert len(module.steps) == BATCHES


# -- attributes that are set reach the wrapped module ----------------------------------------------------------


class Folds(L.LightningDataModule):
    """Trains on all parts of the data but one; each part has a class mix of its own."""

    def __init__(self, batch_size: int = BATCH) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.fold, self._size = 0, batch_size

    @property
    def batch_size(self):
        return self._size

    @batch_size.setter
    def batch_size(self, size):
        self._size = int(size)

    def setup(self, stage):
        self.part = Subset(Indexed(), [i for i in range(160) if i % 5 != self.fold])

    def train_dataloader(self):
        return loader(self.part, batch_size=self.batch_size)

    def val_dataloader(self):
        return loader(Subset(Indexed(), range(self.fold, 160, 5)), shuffle=False)


def test_cross_validation():
    """The folds of a cross-validation are the user's."""
    data = FairDataModule(Folds())
    for fold in range(3):
        data.fold = fold
        fit(module := Weighted(), data)
        assert data.wrapped.fold == fold
        trained = {index for step in module.steps for index in step.indices}
        assert not trained & set(range(fold, 160, 5))
        labels = [y for step in module.steps for y in step.labels]
        np.testing.assert_allclose(np.bincount(labels) / len(labels), 0.25, atol=0.02)
        np.testing.assert_array_equal(data.sampler.labels, Indexed().targets[data.part.indices])
        assert next(iter(data.val_dataloader()))[2].tolist() == list(range(fold, 160, 5))[:BATCH]


def test_cross_validation_without_trainer():
    """The folds of a loop of the user's own are, too: ``setup`` starts the sampler anew."""
    data = FairDataModule(Folds())
    for fold in range(2):
        data.fold = fold
        data.setup("fit")
        indices = [i for _, _, index in data.train_dataloader() for i in index.tolist()]
        assert not set(indices) & set(range(fold, 160, 5))
        assert data.controller.draws == 16


def test_new_data_without_setup():
    """Other data in a loop of the user's own are drawn from, with a warning."""
    data = FairDataModule(Indexed(), batch_size=BATCH)
    assert len(list(data.train_dataloader())) == BATCHES
    data.data = Indexed((24, 16, 8))
    with pytest.warns(UserWarning, match="changed from 160 to 48 samples: FairSampling starts over"):
        batches = list(data.train_dataloader())
    counts = torch.cat([y for _, y, _ in batches]).bincount()
    assert counts.sum() == 48
    assert (counts - 16).abs().max() <= 1  # a batch of 8 has two or three of each class


def test_attributes_are_set_in_wrapped_module():
    theirs = Folds()
    data = FairDataModule(theirs)
    data.batch_size += 8  # a property
    data.note, data.hparams.batch_size = "new", 3
    assert (theirs.batch_size, theirs._size, theirs.note, theirs.hparams.batch_size) == (16, 16, "new", 3)
    assert data.hparams_initial.batch_size == BATCH
    del data.note
    assert not hasattr(theirs, "note")
    assert not hasattr(data, "note")
    data.train_dataloader = lambda: loader(batch_size=4)
    data.fold = 2
    fit(module := Weighted(), data)
    assert {len(step.indices) for step in module.steps} == {4}
    assert isinstance(data.sampler, FeedbackBatchSampler)
    assert vars(data).keys() == {"wrapped", "fair", "_default", "_run"}


def test_error_of_property():
    """The error of a property of the wrapped module is shown."""

    class Early(KeysAndNames):
        @property
        def size(self):
            return len(self.data)

    with pytest.raises(AttributeError, match="'Early' object has no attribute 'data'"):
        FairDataModule(Early()).size  # noqa: B018


def test_own_attributes():
    """The settings can be exchanged, and what the module computes cannot be set."""
    data = FairDataModule(Indexed(), batch_size=BATCH)
    data.fair = moving()
    fit(Weighted(), data)
    np.testing.assert_allclose(data.controller.q, TARGET)
    with pytest.raises(AttributeError, match="sampler"):
        data.sampler = None


def test_loader_settings_are_attributes():
    """Around a data set the loaders' arguments and the data sets are attributes."""
    data = FairDataModule(Indexed(), batch_size=BATCH)
    data.batch_size, data.num_workers, data.val = 16, 1, Indexed((10, 10, 10, 3))
    assert (data.train_dataloader().num_workers, data.val_dataloader().num_workers) == (1, 1)
    assert [len(batch[1]) for batch in data.val_dataloader()] == [16, 16, 1]
    data.num_workers = 0
    fit(module := Weighted(), data, num_sanity_val_steps=0)
    assert {len(step.indices) for step in module.steps} == {16}
    assert "val_loss" in data.trainer.callback_metrics


def test_subclass():
    """A subclass may add hooks and attributes."""

    class Mine(FairDataModule):
        def __init__(self):
            super().__init__(Indexed(), batch_size=BATCH)
            self.seen = []

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.seen.append(self.describe(batch))
            return batch

        def describe(self, batch):
            return len(batch[1])

    data = Mine()
    fit(Weighted(), data)
    assert data.seen == [BATCH] * BATCHES


# -- after a fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", ["data module's", "trainer's"])
def test_loader_after_fit_is_fair(callback):
    """After a fit the training loader is fair, with the settings of the fit, and the state of the fit stays."""
    fair = moving(lambda2=0.0)
    data = FairDataModule(KeysAndNames(), fair=fair if callback == "data module's" else None)
    fitted = fit(Weighted(), data, *([fair] if callback == "trainer's" else []))
    assert data.sampler is fair.sampler
    labels = torch.cat([y for _, y, _ in data.train_dataloader()])
    np.testing.assert_allclose(labels.bincount() / 160, TARGET, atol=0.06)
    assert data.controller.draws == fair.controller.draws == BATCHES
    assert data.sampler is not fair.sampler
    fitted.fit_loop.max_epochs = 2
    fitted.fit(Weighted(), datamodule=data)
    assert data.sampler is fair.sampler
    assert fair.controller.draws == 2 * BATCHES


def test_loader_after_exception_is_fair():
    class Breaks(Weighted):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("out of luck")

    data = FairDataModule(Indexed(), batch_size=BATCH)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Breaks(), data)
    assert torch.cat([y for _, y, _ in data.train_dataloader()]).bincount().tolist() == [40, 40, 40, 40]


def test_other_loaders_are_not_fair():
    """A loader of the wrapped module that calls its training loader is plain."""

    class Again(KeysAndNames):
        def predict_dataloader(self):
            return self.train_dataloader()

    class Predicts(Weighted):
        def predict_step(self, batch, batch_idx):
            return batch[2]

    data = FairDataModule(Again())
    fitted = fit(Predicts(), data)
    assert sorted(torch.cat(fitted.predict(Predicts(), datamodule=data)).tolist()) == list(range(160))


def test_several_loaders_are_refused():
    """Several training loaders are refused."""

    class Two(L.LightningDataModule):
        def train_dataloader(self):
            return [loader(), loader()]

    module = Weighted()
    with pytest.raises((TypeError, ValueError), match="one training DataLoader"):
        fit(module, FairDataModule(Two()))
    assert module.steps == []


# -- without a Trainer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data module", "data set"])
def test_loader_without_trainer_is_fair(kind):
    """The training loader is fair without a Trainer."""
    if kind == "data module":
        data = FairDataModule(KeysAndNames(), fair=moving(lambda2=0.0))
        data.prepare_data()
        data.setup("fit")
    else:
        data = FairDataModule(Indexed(), fair=moving(lambda2=0.0), batch_size=BATCH)
    assert data.sampler is None
    assert data.controller is None
    seen = np.zeros(4)
    train = data.train_dataloader()
    for _, y, _ in train:
        assert data.sampler.controller.in_flight[0].labels.tolist() == y.tolist()
        data.controller.step_update(y)
        seen += np.bincount(y, minlength=4)
    assert len(train) == BATCHES
    np.testing.assert_allclose(seen / 160, TARGET, atol=0.06)
    assert data.train_dataloader().batch_sampler is data.sampler  # the state goes on in the next epoch


@pytest.mark.parametrize("labels", [Indexed().targets.tolist(), "scan"])
def test_labels_without_trainer(labels):
    """Labels in the settings are used without a Trainer."""

    class Bare(torch.utils.data.Dataset):
        def __len__(self):
            return 160

        def __getitem__(self, index):
            return Indexed()[index]

    data = FairDataModule(Bare(), fair=FairSampling(labels=labels), batch_size=BATCH)
    _, y, _ = next(iter(data.train_dataloader()))
    assert y.bincount().tolist() == [2, 2, 2, 2]


def test_bad_labels_without_trainer():
    """Labels that do not fit the data are refused without a Trainer."""
    data = FairDataModule(Indexed(), fair=FairSampling(labels=[0, 1, 2, 3]), batch_size=BATCH)
    with pytest.raises(ValueError, match="got 4 for the 160 samples of Indexed"):
        data.train_dataloader()


# -- around a data set -----------------------------------------------------------------------------------------


def test_loader_arguments_reach_loaders():
    """Loader arguments reach all loaders, and validation is in order."""

    def collate(samples):
        return default_collate(samples)

    val = Indexed((10, 10, 10, 3))
    data = FairDataModule(Indexed(), batch_size=BATCH, val=val, test=val, collate_fn=collate, num_workers=1)
    for fitted in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert fitted.collate_fn is collate
        assert fitted.num_workers == 1
    assert [i for batch in data.val_dataloader() for i in batch[2].tolist()] == list(range(33))
    assert [len(batch[1]) for batch in data.test_dataloader()] == [8, 8, 8, 8, 1]


def test_trainer_runs_available_loops():
    """The Trainer runs the loops that have data."""

    class Watching(Plain):
        seen = 0

        def validation_step(self, batch, batch_idx):
            self.seen += len(batch[1])

        test_step = validation_step

    module, val = Watching(), Indexed((10, 10, 10, 3))
    fit(module, FairDataModule(Indexed(), batch_size=BATCH, val=val), num_sanity_val_steps=0, limit_train_batches=2)
    assert module.seen == 33
    trainer().test(module, datamodule=FairDataModule(Indexed(), batch_size=BATCH, test=val), verbose=False)
    assert module.seen == 66
    fit(module, FairDataModule(Indexed(), batch_size=BATCH), limit_train_batches=2)
    assert module.seen == 66


@pytest.mark.parametrize("settings", [{"shuffle": True}, {"drop_last": True}, {"drop_last": False}])
def test_shuffle_and_drop_last_are_harmless(settings):
    """``shuffle`` and ``drop_last`` do no harm."""
    val = Indexed((10, 10, 10, 3))
    data = FairDataModule(Indexed(), batch_size=BATCH, val=val, **settings)
    assert sum(len(batch[1]) for batch in data.train_dataloader()) == 160
    assert [i for batch in data.val_dataloader() for i in batch[2].tolist()] == list(range(33))


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(10)


class NoLabels(L.LightningDataModule):
    pass


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "match"),
    [
        ((Indexed(),), {}, ValueError, "needs batch_size"),
        ((Stream(),), {"batch_size": 8}, TypeError, r"map-style data set \(.*\), got Stream"),
        ((loader(),), {"batch_size": 8}, TypeError, "got DataLoader"),
        ((NoLabels(),), {"batch_size": 8}, TypeError, "NoLabels makes its own loaders: set batch_size there"),
        ((NoLabels(),), {"num_workers": 2, "val": Indexed()}, TypeError, "set val, num_workers there"),
        ((Indexed(),), {"batch_size": 8, "numworkers": 2}, TypeError, "DataLoader has no argument numworkers"),
    ],
)
def test_wrong_arguments_are_refused(arguments, settings, error, match):
    with pytest.raises(error, match=match):
        FairDataModule(*arguments, **settings)


def test_empty_data_set_is_refused():
    """An empty data set is refused with the usual message."""
    with pytest.raises(ValueError, match="The data set is empty"):
        fit(Weighted(), FairDataModule(Indexed((0, 0)), batch_size=BATCH))


def test_callback_of_a_data_module_in_another_trainer():
    """A callback that a data module has used can be given to a Trainer, which keeps it."""
    fair = moving()
    fit(Weighted(), FairDataModule(Indexed(), fair=fair, batch_size=BATCH))
    trainer = fit(Weighted(), loader(), fair)
    assert fair in trainer.callbacks
    assert fair.sampler.drawn.sum() == len(Indexed())


def test_subclass_with_attributes():
    """A subclass has attributes and hooks of its own, also from a mixin, or set before ``__init__``."""

    class WithValidation:
        def val_dataloader(self):
            return [f"fold {self.fold}"]

    class Ours(WithValidation, FairDataModule):
        fold = 0

        def __init__(self, data):
            self.title = "ours"
            super().__init__(data)
            self.title += "!"

    data = Ours(KeysAndNames())
    data.fold = 2
    assert data.val_dataloader() == ["fold 2"]
    assert (data.title, vars(data.wrapped).get("fold"), hasattr(data.wrapped, "title")) == ("ours!", None, False)
    copied = copy.deepcopy(data)
    assert (copied.fold, copied.title) == (2, "ours!")
    del data.title
    assert not hasattr(data, "title")


def test_setup_without_stage():
    """``setup()`` of a module whose stage is optional, as in many loops over folds."""

    class Optional(KeysAndNames):
        def setup(self, stage=None):
            self.stages = [*getattr(self, "stages", []), stage]

    data = FairDataModule(Optional())
    data.setup()
    data.setup("fit")
    assert data.stages == [None, "fit"]


def test_shallow_copies():
    """Attributes that are set on a copy stay there."""
    data = FairDataModule(KeysAndNames())
    copies = [copy.copy(data) for _ in range(3)]
    for fold, copied in enumerate(copies):
        copied.fold = fold
    assert [copied.fold for copied in copies] == [0, 1, 2]
    assert not hasattr(data, "fold")


class Counts(KeysAndNames):
    """A data module with a state."""

    count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.mark.parametrize("resumed", ["wrapped", "plain"])
@pytest.mark.parametrize("saved", ["wrapped", "plain"])
def test_state_with_and_without_plugin(saved, resumed, tmp_path):
    """A run can be resumed with the plugin added or removed: the state of the data module is restored."""
    first, second = Counts(), Counts()
    first.count = 5
    trainer = fit(Plain(), FairDataModule(first) if saved == "wrapped" else first)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = FairDataModule(second) if resumed == "wrapped" else second
    fit(Plain(), data, ckpt=tmp_path / "last.ckpt", max_epochs=2)
    assert second.count == 5


def test_super_in_hooks():
    """In a subclass, ``super()`` reaches the hooks of the wrapped module."""

    class Ours(FairDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, *rest = super().on_after_batch_transfer(batch, dataloader_idx)
            return 2 * x, *rest

        def val_dataloader(self):
            return [super().val_dataloader()]

    class Theirs(KeysAndNames):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, *rest = batch
            return 3 * x, *rest

        def val_dataloader(self):
            return loader()

    data = Ours(Theirs())
    assert data.on_after_batch_transfer((1, 2), 0) == (6, 2)
    assert len(data.val_dataloader()[0]) == BATCHES


@pytest.mark.parametrize("kind", [dict, list])
def test_chosen_loader_outside_of_a_fit(kind):
    """Of several training loaders, the chosen one is fair outside of a fit, too."""

    class Several(L.LightningDataModule):
        def train_dataloader(self):
            loaders = {"plain": loader(), "fair": loader()}
            return loaders if kind is dict else list(loaders.values())

    key = "fair" if kind is dict else 1
    loaders = FairDataModule(Several(), fair=FairSampling(dataloader=key)).train_dataloader()
    y = next(iter(loaders[key]))[1]
    assert y.bincount().tolist() == [2, 2, 2, 2]
    assert not hasattr(loaders["plain" if kind is dict else 0], "pending_batches")
    with pytest.raises(ValueError, match=r"Choose one with FairSampling\(dataloader=\S+\)"):
        FairDataModule(Several()).train_dataloader()


def test_subclass_with_a_state_of_its_own(tmp_path):
    """The wrapped module's state is saved by itself, so that the plugin can be removed."""

    class Ours(FairDataModule):
        def state_dict(self):
            return {"mine": 1, "theirs": super().state_dict()}

        def load_state_dict(self, state):
            super().load_state_dict(state["theirs"])

    first, again, plain = Counts(), Counts(), Counts()
    first.count = 5
    fit(Plain(), Ours(first)).save_checkpoint(tmp_path / "last.ckpt")
    fit(Plain(), Ours(again), ckpt=tmp_path / "last.ckpt", max_epochs=2)
    fit(Plain(), plain, ckpt=tmp_path / "last.ckpt", max_epochs=2)
    assert again.count == plain.count == 5


def test_hyperparameters_around_a_data_set():
    """A subclass may save its arguments."""

    class Ours(FairDataModule):
        def __init__(self, fold):
            super().__init__(Indexed(), batch_size=BATCH)
            self.save_hyperparameters("fold")

    assert Ours(3).hparams.fold == 3
    with pytest.raises(AttributeError, match="FairDataModule around a data set has no attribute 'nope'"):
        _ = Ours(3).nope


def test_wrapped_twice():
    """A fair data module is not wrapped again."""
    for data in (FairDataModule(Indexed(), batch_size=BATCH), FairDataModule(L.LightningDataModule())):
        with pytest.raises(TypeError, match="data is a FairDataModule, which is fair already: use that one"):
            FairDataModule(data)
