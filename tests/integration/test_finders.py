"""Lightning's searches for a learning rate and a batch size, which empty the Trainer's callbacks meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_helpers import (
    BATCH,
    BATCHES,
    TARGET,
    Indexed,
    Plain,
    Weighted,
    assert_nothing_left,
    fit,
    loader,
    moving,
    trainer,
    warnings_about,
)

from lightning_fair import FairDataModule, FairSampling, FairStream, FeedbackBatchSampler, ImportanceWeightedMixin

MODES = {"lr": ("exponential", "linear"), "batch size": ("power", "binsearch")}
WAYS = ["tuner", "callback", "callback listed first", "milestones"]
KINDS = ["data module", "data set", "trainer's callback", "trainer's callback, loader", "mixin"]


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch) -> None:
    """The finders save checkpoints in the working folder."""
    monkeypatch.chdir(tmp_path)


class Searched(Weighted):
    """Sorts its steps into those of a search, and the training."""

    def __init__(self, largest: int = 10**6, **settings: Any) -> None:
        super().__init__(**settings)
        self.searching, self.trials, self.largest = False, [], largest

    def training_step(self, batch, batch_idx):
        if len(batch[1]) > self.largest:
            raise RuntimeError("CUDA out of memory.")
        loss = super().training_step(batch, batch_idx)
        if self.searching:
            self.trials.append(self.steps.pop())
        return loss

    def validation_step(self, batch, batch_idx):
        assert self.weighted_loss(losses := self.losses(*batch[:2])) == losses.mean()


class Watch:
    """Tells the module that a search is going on."""

    def lr_find(self, trainer, pl_module):
        pl_module.searching = True
        super().lr_find(trainer, pl_module)
        pl_module.searching = False

    def scale_batch_size(self, trainer, pl_module):
        pl_module.searching = True
        super().scale_batch_size(trainer, pl_module)
        pl_module.searching = False


class LRFinder(Watch, LearningRateFinder):
    pass


class SizeFinder(Watch, BatchSizeFinder):
    pass


class Milestones:
    """As in Lightning's documentation."""

    def __init__(self, milestones, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.milestones = milestones

    def on_fit_start(self, *args, **kwargs):
        return


class FineTuneLRFinder(Milestones, LRFinder):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in self.milestones or trainer.current_epoch == 0:
            self.lr_find(trainer, pl_module)


class FineTuneSizeFinder(Milestones, SizeFinder):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in self.milestones or trainer.current_epoch == 0:
            self.scale_batch_size(trainer, pl_module)


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int = BATCH, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def setup(self, stage):
        self.data = Indexed()

    def train_dataloader(self):
        return loader(self.data, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self):
        return loader(self.data, batch_size=self.batch_size, shuffle=False)


def make_data(kind: str, fair: FairSampling, num_workers: int = 0, batch_size: int = BATCH) -> dict[str, Any]:
    """Return the data as arguments of ``fit``."""
    if kind == "data module":
        return {"datamodule": FairDataModule(Data(batch_size, num_workers), fair=fair)}
    if kind == "data set":
        settings = {"batch_size": batch_size, "val": Indexed(), "num_workers": num_workers}
        return {"datamodule": FairDataModule(Indexed(), fair=fair, **settings)}
    if kind == "trainer's callback, loader":
        return {"train_dataloaders": loader(batch_size=batch_size, num_workers=num_workers)}
    return {"datamodule": Data(batch_size, num_workers)}


def search(what, mode, way, kind, *, num_workers=0, module=None, epochs=2, **settings) -> tuple[Any, FairSampling, Any]:
    """Search as the user does, then train; return the module, the callback, and the data module or None."""
    fair, module = moving(), module or Searched()
    data, callbacks = make_data(kind, fair, num_workers), [fair] if kind.startswith("trainer's") else []
    module.fair_sampling = fair if kind == "mixin" else kind != "without plugin"
    if what == "lr":
        # Ten steps, so that the learning rate stays the given one, and the trainings can be compared.
        settings = {"num_training_steps": 10, "early_stop_threshold": None, "update_attr": False} | settings
        plain, at_milestones = LRFinder, FineTuneLRFinder
    else:
        settings = {"max_trials": 2, "steps_per_trial": 3, "init_val": 4} | settings
        plain, at_milestones = SizeFinder, FineTuneSizeFinder
    if way == "milestones":
        callbacks.append(at_milestones((1,), mode=mode, **settings))
    elif way != "tuner":
        callbacks.insert(0 if way.endswith("first") else len(callbacks), plain(mode=mode, **settings))
    fitted = trainer(*callbacks, max_epochs=epochs)
    if way == "tuner":
        module.searching = True
        if what == "lr":
            settings["num_training"] = settings.pop("num_training_steps")
            Tuner(fitted).lr_find(module, mode=mode, **data, **settings)
        else:
            Tuner(fitted).scale_batch_size(module, mode=mode, **data, **settings)
        module.searching = False
    fitted.fit(module, **data)
    assert_nothing_left(fitted, module)
    assert "run" not in vars(fitted.fit_loop)
    return module, fair, data.get("datamodule")


@cache
def search_without_plugin(what, mode, way, largest=10**6, **settings) -> tuple[int, int, int]:
    """Return the steps of the search and of the training, and the batch size: versions of Lightning differ."""
    module, _, data = search(what, mode, way, "without plugin", module=Searched(largest), **settings)
    return len(module.trials), len(module.steps), data.batch_size


def train(batch_size: int, steps: int, module=None) -> tuple[Any, FairSampling]:
    """Train without a search."""
    module, fair = module or Searched(), moving()
    fit(module, loader(batch_size=batch_size), fair, max_epochs=-1, max_steps=steps)
    return module, fair


@contextmanager
def recorded_probs() -> Iterator[dict[tuple[int, ...], np.ndarray]]:
    """Record the class mix of every draw by its samples: a search draws the same numbers again."""
    original, probs_of = FeedbackBatchSampler._draw, {}

    def draw(self, plan):
        result = original(self, plan)
        probs_of.setdefault(tuple(result.indices), []).append(plan.probs.copy())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedbackBatchSampler, "_draw", draw)
        yield probs_of


def assert_weighted(steps, probs_of) -> None:
    """Check that every step has the weights of its own draw."""
    for step in steps:
        wanted = [np.array(TARGET)[step.labels] / probs[step.labels] for probs in probs_of[tuple(step.indices)]]
        assert any(np.allclose(step.weights, weights, rtol=1e-5) for weights in wanted)


def assert_same(module, expected) -> None:
    """Check that two trainings had the same batches, weights and losses."""
    assert [step.indices for step in module.steps] == [step.indices for step in expected.steps]
    for step, other in zip(module.steps, expected.steps, strict=True):
        np.testing.assert_array_equal(step.weights, other.weights)
        np.testing.assert_array_equal(step.losses, other.losses)


def _searches() -> Iterator[Any]:
    for what, modes in MODES.items():
        for mode in modes:
            for way in WAYS:
                # Lightning refuses to search the batch size of a loader.
                kinds = [kind for kind in KINDS if what == "lr" or not kind.endswith("loader")]
                for kind in kinds if mode == modes[1] else kinds[:2]:
                    is_fast = mode == modes[1] and kind == "data set" and (what == "lr" or way == "tuner")
                    yield pytest.param(what, mode, way, kind, marks=() if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("what", "mode", "way", "kind"), [*_searches()])
def test_search_then_training(what, mode, way, kind):
    """The steps of a search are fair and weighted, and the training is that with the value found, bit for bit."""
    with recorded_probs() as probs_of, warnings_about("FairSampling starts over") as messages:
        module, fair, data = search(what, mode, way, kind)
    assert not messages
    trials, steps, size = search_without_plugin(what, mode, way)
    assert (len(module.trials), len(module.steps)) == (trials, steps)
    assert trials >= 6
    assert_weighted(module.trials + module.steps, probs_of)
    assert (module.steps[-1].weights != 1.0).any()
    if data is not None:
        assert data.batch_size == size
    expected, without = train(size, steps)
    assert_same(module, expected)
    assert fair.largest_weight == without.largest_weight
    np.testing.assert_array_equal(fair.sampler.drawn, without.sampler.drawn)
    np.testing.assert_array_equal(fair.controller.trained_mix, without.controller.trained_mix)


@pytest.mark.slow
@pytest.mark.parametrize("what", MODES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["data module", "data set"])
def test_workers(what, way, kind):
    """The same with workers, which draw ahead."""
    with recorded_probs() as probs_of:
        module, _, _ = search(what, MODES[what][1], way, kind, num_workers=2)
    assert_weighted(module.trials + module.steps, probs_of)
    assert_same(module, train(search_without_plugin(what, MODES[what][1], way)[2], len(module.steps))[0])


def test_learning_rate_is_found():
    """The learning rate that is found is trained with; the search goes through several epochs."""
    module, _, _ = search("lr", "exponential", "tuner", "data set", update_attr=True, num_training_steps=30)
    assert len(module.trials) == 30
    assert module.lr != 0.1
    assert_same(module, train(BATCH, 2 * BATCHES, Searched(lr=module.lr))[0])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES["batch size"])
@pytest.mark.parametrize("way", ["tuner", "callback"])
def test_out_of_memory(mode, way):
    """A search that runs out of memory in the middle of a step goes on."""
    settings = {"max_trials": 10, "steps_per_trial": 2}
    trials, steps, size = search_without_plugin("batch size", mode, way, largest=20, **settings)
    assert 15 < size < 21
    module, fair, data = search("batch size", mode, way, "data set", module=Searched(largest=20), **settings)
    assert (len(module.trials), len(module.steps)) == (trials, steps)
    assert data.batch_size == fair.sampler.batch_size == size
    assert_same(module, train(size, steps)[0])


@pytest.mark.slow
def test_batch_size_changes_in_training():
    """A search after an epoch may change the batch size: the trained mix, class losses and used items go on."""

    class Once(SizeFinder):
        def on_fit_start(self, *args):
            return

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                before.update(fair.state_dict()["sampler"]["controller"], drawn=fair.sampler.drawn)
                self.scale_batch_size(trainer, pl_module)
                after.update(fair.state_dict()["sampler"]["controller"], drawn=fair.sampler.drawn)

    before, after, fair, module = {}, {}, moving(), Searched()
    data = FairDataModule(Indexed(), batch_size=BATCH, val=Indexed(), fair=fair)
    with recorded_probs() as probs_of, warnings_about("starts over") as messages:
        fit(module, data, Once(max_trials=3, init_val=4), max_epochs=3)
    assert not messages
    assert_weighted(module.trials + module.steps, probs_of)
    assert {len(step.indices) for step in module.steps[BATCHES:]} == {data.batch_size}
    assert data.batch_size > BATCH
    assert before["draws"] == after["draws"] == BATCHES
    for name in ("trained_mix", "ema_loss", "loss_score", "drawn"):
        np.testing.assert_array_equal(before[name], after[name])
    assert fair.controller.draws == len(module.steps) > BATCHES


@pytest.mark.parametrize("what", MODES)
def test_resume_with_finder(tmp_path, what):
    """A run that is resumed with a finder draws as it would without, although Lightning then begins a new epoch."""

    def run(*callbacks, ckpt=None):
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=25, save_top_k=-1)
        data = FairDataModule(Data(), fair=moving(feedback_delay=5))
        fit(module := Searched(), data, saver, *callbacks, ckpt=ckpt, enable_checkpointing=True, max_epochs=3)
        return module, data

    whole, _ = run()
    if what == "lr":
        finder = LRFinder(num_training_steps=5, update_attr=False)
    else:
        finder = SizeFinder(max_trials=1, init_val=BATCH)
    resumed, data = run(finder, ckpt=tmp_path / "step=25.ckpt")
    assert resumed.trials
    assert data.controller.draws == 25 + len(resumed.steps)
    if data.batch_size == BATCH:  # Lightning 2.5 tries one size less than it doubles
        assert [step.indices for step in resumed.steps[:35]] == [step.indices for step in whole.steps[25:]]


def test_restart_with_finder(tmp_path):
    """A run with ``resume="restart"`` starts the class mix anew, also after a search."""
    fit(Searched(), loader(), moving()).save_checkpoint(tmp_path / "last.ckpt")
    fair, module = moving(resume="restart", lambda2=0.0), Searched()
    finder = LRFinder(num_training_steps=5, update_attr=False)
    fit(module, loader(), fair, finder, ckpt=tmp_path / "last.ckpt", max_epochs=2)
    assert module.trials
    assert fair.sampler.drawn.sum() == BATCH * len(module.steps)


@pytest.mark.parametrize("what", MODES)
def test_exception_in_search(what):
    """After an exception in a search nothing stays patched."""

    class Breaks(Searched):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise ValueError("out of luck")

    module, fitted, data = Breaks(), trainer(max_epochs=1), FairDataModule(Indexed(), batch_size=BATCH, val=Indexed())
    tuner = Tuner(fitted)
    with pytest.raises(ValueError, match="out of luck"):
        (tuner.lr_find if what == "lr" else tuner.scale_batch_size)(module, datamodule=data)
    assert_nothing_left(fitted, module)
    assert "run" not in vars(fitted.fit_loop)


@pytest.mark.parametrize("what", MODES)
def test_plain_module(what):
    """A module without weights is searched on fair batches, and trained on the same as without a search."""
    settings = {"batch_size": BATCH, "val": Indexed(), "fair": moving(lambda2=0.0)}
    module, data = Plain(), FairDataModule(Indexed(), **settings)
    fitted = trainer(max_epochs=1)
    if what == "lr":
        Tuner(fitted).lr_find(module, datamodule=data, num_training=10, update_attr=False)
    else:
        Tuner(fitted).scale_batch_size(module, datamodule=data, init_val=4, max_trials=2)
    trials = np.bincount([y for step in module.steps for y in step.labels], minlength=4)
    np.testing.assert_allclose(trials / trials.sum(), TARGET, atol=0.1)
    module.steps.clear()
    fitted.fit(module, datamodule=data)
    fit(expected := Plain(), loader(batch_size=data.batch_size), moving(lambda2=0.0))
    assert [step.indices for step in module.steps] == [step.indices for step in expected.steps]


@pytest.mark.parametrize("what", MODES)
def test_stream(what):
    """A stream is searched, too, and starts anew afterwards."""

    class Streamed(L.LightningDataModule):
        batch_size = BATCH

        def train_dataloader(self):
            samples, size = list(map(Indexed().__getitem__, range(160))), self.batch_size
            return torch.utils.data.DataLoader(FairStream(samples, batch_size=size, buffer_size=20), batch_size=size)

        def val_dataloader(self):
            return loader(shuffle=False)

    fair = FairSampling(num_classes=4)
    module, fitted, data = Searched(), trainer(fair, max_epochs=1), FairDataModule(Streamed())
    if what == "lr":
        Tuner(fitted).lr_find(module, datamodule=data, num_training=5, update_attr=False)
    else:
        Tuner(fitted).scale_batch_size(module, datamodule=data, init_val=4, max_trials=2)
        assert data.batch_size > 4
    assert module.steps
    module.steps.clear()
    fitted.fit(module, datamodule=data)
    assert fair.controller.draws == len(module.steps) > 0
    assert len(module.steps[0].indices) == data.batch_size


@pytest.mark.parametrize("way", ["callback", "milestones"])
def test_searches_are_not_logged(way, tmp_path):
    """A logger gets the values of the training alone."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    kind = LRFinder if way == "callback" else FineTuneLRFinder
    finder = kind(*([(1,)] if way == "milestones" else []), num_training_steps=10, update_attr=False)
    data = FairDataModule(Indexed(), batch_size=BATCH, fair=moving())
    fit(module := Searched(), data, finder, logger=logger, log_every_n_steps=1, max_epochs=2)
    written = EventAccumulator(logger.log_dir).Reload()
    assert [event.step for event in written.Scalars("fair/distance")] == [*range(len(module.steps))]


class TwoOptimizers(Searched):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [super().configure_optimizers(), super().configure_optimizers()]


def test_search_that_fails_at_once():
    """A search that raises before its first step, when the callbacks are gone, leaves nothing on the Trainer."""
    module, fitted = TwoOptimizers(), trainer(moving())
    with pytest.raises(MisconfigurationException, match="only works with single optimizer"):
        Tuner(fitted).lr_find(module, loader())
    assert_nothing_left(fitted, module)


@pytest.mark.slow
def test_message_has_found_batch_size(monkeypatch):
    """The callback says once what it steers, with the batch size that was found."""
    messages = []
    monkeypatch.setattr("lightning_fair.integration.training_length.rank_zero_info", messages.append)
    search("batch size", "binsearch", "callback", "data set")
    assert len(messages) == 1
    size = search_without_plugin("batch size", "binsearch", "callback")[2]
    assert f"in batches of {size}" in messages[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data module", "data set"])
def test_batch_size_for_validation(kind):
    """The batch size of validation can be searched."""

    class Validated(Searched):
        sizes: tuple = ()

        def validation_step(self, batch, batch_idx):
            self.sizes = (*self.sizes, len(batch[1]))

    module, data = Validated(), make_data(kind, moving())["datamodule"]
    Tuner(trainer()).scale_batch_size(module, datamodule=data, method="validate", init_val=4, max_trials=3)
    assert set(module.sizes) >= {8, 16}
    assert next(iter(data.val_dataloader()))[1].shape == (data.batch_size,)


def test_search_without_mixin_callback():
    """With ``overfit_batches`` the callback is off, also during a search, and no loss has weights."""

    class Module(ImportanceWeightedMixin, Plain):
        def reduce(self, losses):
            return self.weighted_loss(losses)

    module, fitted = Module(), trainer(moving(), overfit_batches=2)
    Tuner(fitted).lr_find(module, loader(shuffle=False), num_training=5, update_attr=False)
    assert all((step.weights == 1.0).all() for step in module.steps)
