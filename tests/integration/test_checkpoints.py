import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning_helpers import (
    BATCH,
    BATCHES,
    WORKERS,
    Indexed,
    Weighted,
    fit,
    loader,
    moving,
    trainer,
)
from torch.utils.data import DataLoader

from lightning_fair import FairDataModule


class KeepAll(ModelCheckpoint):
    def __init__(self, folder, **settings):
        super().__init__(folder, "{step}", save_top_k=-1, **{"every_n_train_steps": 1, **settings})


def run(folder, workers, ckpt=None, kind=Weighted, settings=None, data=loader, **of_trainer):
    L.seed_everything(1, verbose=False)
    module, fair = kind(), moving(seed=5, feedback_delay=5)
    fitted = fit(
        module,
        data(num_workers=workers),
        fair,
        KeepAll(folder, **(settings or {})),
        ckpt=ckpt,
        **{"max_epochs": 2, "limit_train_batches": 7, "enable_checkpointing": True, **of_trainer},
    )
    return module, fair, fitted


@pytest.mark.parametrize("workers", WORKERS)
def test_resume_is_exact(tmp_path, workers):
    """A run that is resumed at any batch continues as the uninterrupted one."""
    whole, fair, _ = run(tmp_path / "whole", workers)
    assert len(whole.steps) == 14
    for stop in (4, 6, 7, 8):
        resumed, resumed_fair, _ = run(tmp_path / str(stop), workers, ckpt=tmp_path / "whole" / f"step={stop}.ckpt")
        assert [step.indices for step in resumed.steps] == [step.indices for step in whole.steps[stop:]]
        for mine, theirs in zip(resumed.steps, whole.steps[stop:], strict=True):
            assert (mine.weights == theirs.weights).all()
        assert (resumed_fair.controller.trained_mix == fair.controller.trained_mix).all()
        assert (resumed_fair.controller.ema_loss == fair.controller.ema_loss).all()
        assert (resumed_fair.sampler.drawn == fair.sampler.drawn).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "of_trainer"),
    [
        ({}, {"accumulate_grad_batches": 2, "limit_train_batches": 6}),
        ({"every_n_train_steps": 6}, {"limit_train_batches": 1.0, "max_epochs": -1, "max_steps": 25}),
        ({}, {"reload_dataloaders_every_n_epochs": 1}),
        ({"every_n_train_steps": None, "every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
    ],
    ids=["accumulate", "max_steps", "reload", "epoch end"],
)
def test_resume_with_other_trainer_settings(tmp_path, settings, of_trainer):
    """Resume is exact with other settings of the Trainer."""
    whole, _, _ = run(tmp_path / "whole", 2, settings=settings, **of_trainer)
    per_step = of_trainer.get("accumulate_grad_batches", 1)
    saved = sorted((tmp_path / "whole").iterdir(), key=lambda path: int(path.stem.split("=")[1]))
    for path in {saved[0], saved[-2]}:
        stop = per_step * int(path.stem.split("=")[1])
        resumed, _, _ = run(tmp_path / path.stem, 2, ckpt=path, settings=settings, **of_trainer)
        assert [step.indices for step in resumed.steps] == [step.indices for step in whole.steps[stop:]]


def test_resume_with_other_batch_size(tmp_path):
    """Resume with another batch size is refused."""
    run(tmp_path, 0)
    with pytest.raises(ValueError, match="batch size = 8, this run has 16"):
        run(tmp_path / "again", 0, ckpt=tmp_path / "step=3.ckpt", data=lambda **kw: loader(batch_size=16, **kw))


@pytest.mark.parametrize("workers", WORKERS)
def test_resume_with_stateful_loader(tmp_path, workers):
    """Resume is exact with a stateful loader."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def data(**settings):
        return stateful(Indexed(), batch_size=BATCH, shuffle=True, **settings)

    whole, _, _ = run(tmp_path / "whole", workers, data=data)
    resumed, _, _ = run(tmp_path / "again", workers, ckpt=tmp_path / "whole" / "step=3.ckpt", data=data)
    assert [step.indices for step in resumed.steps] == [step.indices for step in whole.steps[3:]]


@pytest.mark.parametrize("workers", WORKERS)
def test_checkpoint_holds_plain_values(tmp_path, workers):
    """A checkpoint holds only tensors and plain Python objects."""
    _, fair, fitted = run(tmp_path, workers)
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    for path in (tmp_path / "step=3.ckpt", tmp_path / "last.ckpt"):
        state = torch.load(path, weights_only=True)["callbacks"]["FairSampling"]
        assert state["sampler"]["data"]["number of samples"] == 160
    assert_plain(fair.state_dict())


def assert_plain(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            assert type(key) in (str, int)
            assert_plain(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            assert_plain(inner)
    else:
        assert isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str, type(None))


def test_lr_find_leaves_no_trace():
    """The learning rate finder leaves no trace in the state."""
    module, fair = Weighted(), moving()
    fitted = trainer(fair)
    Tuner(fitted).lr_find(module, loader(), num_training=10, update_attr=False)
    module.steps.clear()
    fitted.fit(module, loader())
    assert len(module.steps) == BATCHES
    assert fair.controller.draws == BATCHES


@pytest.mark.parametrize(
    ("every", "settings"), [(7, {}), (4, {"accumulate_grad_batches": 2}), (5, {"limit_train_batches": 5})]
)
def test_resume_at_epoch_end(tmp_path, every, settings):
    """A checkpoint of an epoch's last batch is written before ``on_train_epoch_end``."""

    def run(ckpt_path=None):
        saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        module, trainer = Weighted(), L.Trainer(
            max_epochs=3, callbacks=[moving(), saves], logger=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip
        trainer.fit(module, DataLoader(Indexed((60, 20, 15, 5)), batch_size=16), ckpt_path=ckpt_path)
        return [step.indices for step in module.steps], trainer.global_step

    whole, steps = run()
    for taken in (every, 2 * every):
        rest, after = run(tmp_path / f"step={taken}.ckpt")
        assert rest == whole[len(whole) - len(rest) :]
        assert after == steps


class SavesFirst(L.Callback):
    """Saves a checkpoint at the end of a batch. It is listed before the plugin."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 7:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("way", ["callback", "data module"])
def test_checkpoint_by_earlier_callback(tmp_path, way):
    """A checkpoint that is saved by an earlier callback has the batch reported."""

    def run(ckpt=None):
        fair = moving(feedback_delay=5)
        wrapped = FairDataModule(Indexed(), batch_size=BATCH, fair=fair)
        data, ours = (loader(), [fair]) if way == "callback" else (wrapped, [])
        fit(module := Weighted(), data, SavesFirst(tmp_path / "7.ckpt"), *ours, ckpt=ckpt)
        return [step.indices for step in module.steps]

    whole = run()
    assert run(tmp_path / "7.ckpt") == whole[7:]


def test_statistics_go_on_exactly(tmp_path):
    """The effective sample sizes of a resumed run are those of a run that was not stopped, bit for bit."""

    def run(ckpt=None, **settings):
        fair = moving()
        fitted = fit(Weighted(), loader(), fair, ckpt=ckpt, **settings)
        return fitted, {name: value for name, value in fair.state_dict().items() if name.endswith("_sums")}

    run(max_steps=27)[0].save_checkpoint(tmp_path / "27.ckpt")
    whole = run(max_epochs=3)[1]
    assert run(tmp_path / "27.ckpt", max_epochs=3)[1] == whole
    assert whole["run_sums"][0] == 3 * BATCHES * BATCH > whole["horizon_sums"][0] > 0


def test_validation_checkpoint_leaves_run(tmp_path):
    """Validation from another checkpoint leaves the run as it is."""
    module, fair = Weighted(), moving()
    fitted = fit(module, loader(), fair, max_epochs=1)
    fitted.save_checkpoint(tmp_path / "old.ckpt")
    fitted.fit_loop.max_epochs = 2
    fitted.fit(module, loader())
    before = fair.state_dict()
    fitted.validate(module, loader(shuffle=False), ckpt_path=tmp_path / "old.ckpt")
    assert fair.controller.draws == 2 * BATCHES
    assert fair.state_dict()["run_sums"][0] == before["run_sums"][0] == 2 * BATCHES * BATCH
