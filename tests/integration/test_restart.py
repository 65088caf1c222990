"""``fit(ckpt_path=...)`` with ``FairSampling(resume="restart")``: the model goes on, the class mix starts anew."""

import logging

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_helpers import BATCH, BATCHES, COUNTS, WORKERS, Indexed, Plain, Weighted, fit, loader, moving, trainer
from torch.utils.data import DataLoader

from lightning_fair import FairSampling, FairStream, schedules


class Saves(L.Callback):
    """Saves a checkpoint at the end of a step."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def saved(folder, *callbacks, step=7, kind=Weighted, data=None):
    """Train a network of six classes, save it after a step, and return the path of the checkpoint."""
    path = folder / "saved.ckpt"
    fit(kind(6), data or loader(), *(callbacks or [moving()]), Saves(path, step), max_steps=step, max_epochs=-1)
    return path


class Watch(L.Callback):
    """Records the model at the start, the draws of every batch, and the batches of each epoch."""

    def __init__(self):
        self.epochs, self.draws, self.weight = {}, [], None

    def on_train_start(self, trainer, pl_module):
        self.weight = pl_module.net.weight.detach().clone()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.draws += [c._run.current.draw for c in trainer.callbacks if isinstance(c, FairSampling)]
        epoch = trainer.current_epoch
        self.epochs[epoch] = self.epochs.get(epoch, 0) + 1


def restart(path, data=None, epochs=3, kind=Weighted, strategy="auto", **settings):
    module, watch, fair = kind(6), Watch(), moving(**{"resume": "restart", **settings})
    fitted = fit(
        module, loader() if data is None else data, fair, watch, ckpt=path, max_epochs=epochs, strategy=strategy
    )
    return fitted, module, watch, fair


@pytest.fixture
def messages(caplog):
    with caplog.at_level(logging.INFO):
        yield lambda words: [r.getMessage() for r in caplog.records if words in r.getMessage()]


def test_restart_with_same_data(tmp_path, messages):
    """The model goes on at the same step, the trained mix starts at the target, and one line says so."""
    path = saved(tmp_path)
    fitted, module, watch, fair = restart(path)
    assert watch.epochs == {0: BATCHES - 7, 1: BATCHES, 2: BATCHES}
    assert torch.equal(watch.weight, torch.load(path, weights_only=True)["state_dict"]["net.weight"])
    assert fitted.global_step == 3 * BATCHES
    np.testing.assert_allclose(watch.draws[0].trained_mix, fair.controller.q)
    assert fair.sampler.trained.sum() == len(module.steps) * BATCH
    assert messages("resume=") == [
        'resume="restart": the model is that of the checkpoint, and the class mix starts anew.'
    ]
    assert fair.state_dict()["run_sums"][0] == sum(len(step.labels) for step in module.steps)


OTHER = {
    "fewer samples": ({"counts": (48, 16, 10, 6)}, {}, "number of samples 160 -> 80"),
    "more samples": ({"counts": (400, 160, 30, 10)}, {}, "number of samples 160 -> 600"),
    "other labels": ({"counts": (12, 20, 32, 96)}, {}, "labels' checksum"),
    "more classes": (
        {"counts": (96, 32, 20, 6, 6)},
        {"target_probs": "uniform"},
        "number of classes 4 -> 5, labels' checksum",
    ),
    "fewer classes": ({"counts": (96, 64)}, {"target_probs": "uniform"}, "number of classes 4 -> 2"),
    "larger batches": ({"batch_size": 16}, {}, "Changed: batch size 8 -> 16."),
    "another seed": ({}, {"seed": 3}, "Changed: seed 0 -> 3."),
    "another target": (
        {},
        {"target_probs": "uniform"},
        "Changed: target [0.4 0.3 0.2 0.1] -> [0.25 0.25 0.25 0.25].",
    ),
    "another reference": (
        {},
        {"reference": "uniform"},
        "Changed: reference the target -> [0.25 0.25 0.25 0.25].",
    ),
}


@pytest.mark.parametrize(("data", "settings", "change"), OTHER.values(), ids=OTHER)
@pytest.mark.parametrize(
    "step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (BATCHES - 1, BATCHES, BATCHES + 7))]
)
def test_restart_with_other_data(tmp_path, messages, data, settings, change, step):
    """With other data each epoch has as many batches as without the callback, and the line names the change."""
    given = loader(Indexed(data.get("counts", COUNTS)), batch_size=data.get("batch_size", BATCH))
    path = saved(tmp_path, step=step)
    _, module, watch, fair = restart(path, given, epochs=4, **settings)
    fit(Plain(6), given, without := Watch(), ckpt=path, max_epochs=4)
    assert watch.epochs == without.epochs
    assert watch.epochs[3] == watch.epochs[2] == len(given)
    assert max(index for each in module.steps for index in each.indices) < len(given.dataset)
    np.testing.assert_allclose(watch.draws[0].trained_mix, fair.controller.q)
    assert fair.sampler.trained.sum() == len(module.steps) * given.batch_size
    (line,) = messages("resume=")
    assert change in line


@pytest.mark.parametrize("name", OTHER)
def test_error_names_the_remedy(tmp_path, name):
    """Without the setting, the same change is an error that names the remedy."""
    data, settings, _ = OTHER[name]
    given = loader(Indexed(data.get("counts", COUNTS)), batch_size=data.get("batch_size", BATCH))
    with pytest.raises(ValueError, match=r"FairSampling\(resume=\"restart\"\) keeps the model"):
        restart(saved(tmp_path), given, resume="continue", **settings)


@pytest.mark.parametrize("workers", WORKERS)
def test_resume_after_restart(tmp_path, workers):
    """A checkpoint that is saved after a restart is that of the new mix: its resume is exact, or restarts again."""
    small = {"data": loader(Indexed((48, 16, 10, 6)), num_workers=workers), "feedback_delay": 5}
    path = saved(tmp_path)

    whole, fair = Weighted(6), moving(resume="restart", feedback_delay=5)
    fit(whole, small["data"], fair, Saves(tmp_path / "again.ckpt", 12), ckpt=path, max_epochs=3)
    _, module, _, resumed = restart(tmp_path / "again.ckpt", resume="continue", **small)
    assert [step.indices for step in module.steps] == [step.indices for step in whole.steps[5:]]
    assert (resumed.controller.trained_mix == fair.controller.trained_mix).all()
    _, module, watch, _ = restart(tmp_path / "again.ckpt", **small)
    np.testing.assert_allclose(watch.draws[0].trained_mix, watch.draws[0].reference)
    assert len(module.steps) == len(whole.steps) - 5


def test_schedules_go_on(tmp_path):
    """Schedules by step and by epoch continue at the time of the Trainer."""
    settings = {
        "alpha": schedules.Linear(0.0, 8.0, 4 * BATCHES),
        "target_probs": schedules.Shift(schedules.Linear(0.0, 1.0, 4, unit="epoch")),
    }
    path = saved(tmp_path, moving(**settings), step=BATCHES + 7)
    for resume in ("restart", "continue"):
        _, _, watch, _ = restart(path, resume=resume, **settings)
        times = range(BATCHES + 7, 3 * BATCHES)
        assert [draw.alpha for draw in watch.draws] == pytest.approx([8.0 * t / (4 * BATCHES) for t in times])
        assert [draw.progress for draw in watch.draws] == [t // BATCHES / 4 for t in times]


@pytest.mark.parametrize("resume", ["continue", "restart"])
def test_checkpoint_without_callback(tmp_path, messages, resume):
    """The callback can be added to a training that ran without it; schedules begin at the time of the Trainer."""
    path = saved(tmp_path, L.Callback(), step=BATCHES + 7, kind=Plain)
    deferred = schedules.Shift(schedules.Step(0.0, 1.0, at=1, unit="epoch"))
    _, _, watch, _ = restart(path, resume=resume, target_probs=deferred, kind=Plain, lambda2=0.0)
    assert watch.epochs == {1: BATCHES - 7, 2: BATCHES}
    assert {draw.progress for draw in watch.draws} == {1.0}
    assert messages("resume=") == []


def test_another_version(tmp_path, messages):
    """The state of another version is refused, and with the setting it does not matter."""
    path = saved(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"]["FairSampling"]
    controller = state["sampler"].pop("controller")
    state["sampler"]["controller"] = {"version": 0}
    others = (
        lambda: None,
        lambda: state["sampler"].update(version=1, controller=controller),
        lambda: state.pop("sampler"),
    )
    for change in others:
        change()
        torch.save(checkpoint, path)
        with pytest.raises(ValueError, match=r"version of lightning-fair.* FairSampling\(resume=\"restart\"\)"):
            restart(path, resume="continue")
        assert restart(path)[2].epochs[1] == BATCHES
    assert len(messages("another version")) == 3


def stream(size=160):
    data = Indexed()
    return DataLoader(FairStream([data[i] for i in range(size)], batch_size=BATCH), batch_size=BATCH)


@pytest.mark.parametrize(
    ("first", "then"), [(loader, stream), (stream, loader), (stream, stream)], ids=["to stream", "to data", "stream"]
)
def test_streams(tmp_path, first, then):
    """A stream starts anew too, also in place of a data set, and a data set in place of a stream."""
    alpha, settings = schedules.Linear(0.0, 8.0, 100), {"seed": None}
    path = saved(tmp_path, moving(**settings), data=first())
    _, module, watch, fair = restart(path, then(), epochs=2, alpha=alpha, **settings)
    assert len(module.steps) > 10
    assert fair.controller.draws == 7 + len(module.steps)
    assert watch.draws[0].alpha == pytest.approx(alpha(7, 0)) if then is loader else True
    if first is not then:
        with pytest.raises(ValueError, match=r"FairSampling\(resume=\"restart\"\)"):
            restart(path, then(), resume="continue", **settings)


class RestoresLate(SingleDeviceStrategy):
    """Restores the callbacks after the loaders are made, as FSDP and DeepSpeed do."""

    @property
    def restore_checkpoint_after_setup(self):
        return True


class KnowsItsLength(Weighted):
    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0  # makes the loader before the checkpoint is restored
        return super().configure_optimizers()


@pytest.mark.parametrize("strategy", [None, RestoresLate], ids=["early", "late"])
def test_loader_before_checkpoint(tmp_path, messages, strategy):
    """The loader may be made before the checkpoint is restored."""
    path = saved(tmp_path, step=BATCHES + 7)
    given = "auto" if strategy is None else strategy(device=torch.device("cpu"))
    _, _, watch, fair = restart(path, loader(batch_size=16), kind=KnowsItsLength, strategy=given)
    assert watch.epochs == {1: BATCHES // 2 - 7, 2: BATCHES // 2}
    np.testing.assert_allclose(watch.draws[0].trained_mix, fair.controller.q)
    assert len(messages("batch size 8 -> 16")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["continue", "restart"])
def test_learning_rate_finder(tmp_path, monkeypatch, resume):
    """After Lightning's finder, which undoes the resume, the epochs have as many batches as without us."""
    monkeypatch.chdir(tmp_path)
    path, epochs = saved(tmp_path), []
    for kind, callbacks in ((Plain, []), (Weighted, [moving(resume=resume)])):
        finder = LearningRateFinder(num_training_steps=5, update_attr=False)
        fit(kind(6), loader(), *callbacks, finder, watch := Watch(), ckpt=path, max_epochs=2)
        epochs.append(watch.epochs)
    assert epochs[0] == epochs[1]


def test_second_fit_of_a_trainer(tmp_path):
    """A Trainer that has trained can go back to its own checkpoint and restart from there."""
    fair, module = moving(resume="restart"), Weighted(6)
    fitted = trainer(fair, max_epochs=1)
    fitted.fit(module, loader())
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    fitted.fit_loop.max_epochs = 2
    watch = Watch()
    fitted.callbacks.append(watch)
    fitted.fit(module, loader(), ckpt_path=tmp_path / "saved.ckpt")
    assert watch.epochs == {1: BATCHES}
    np.testing.assert_allclose(watch.draws[0].trained_mix, fair.controller.q)
    assert fair.sampler.trained.sum() == BATCHES * BATCH


def test_plain_module(tmp_path):
    """A module without the mixin restarts in the same way."""
    path = saved(tmp_path, moving(lambda2=0.0), kind=Plain)
    _, _, watch, _ = restart(path, loader(batch_size=16), kind=Plain, lambda2=0.0)
    assert watch.epochs == {0: 3, 1: 10, 2: 10}
