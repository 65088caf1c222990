"""Runs with dropout and augmentation, interrupted and resumed, against uninterrupted ones."""

import copy
import pickle
import random

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_helpers import Indexed, Plain, fit, loader, trainer, warnings_about

from lightning_fair import FairSampling, RandomStates

COUNTS = (24, 10, 6)  # 5 batches
SAVES = {
    "step": {"every_n_train_steps": 2},
    "epoch end": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "validation end": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
}


class Augmented(Indexed):
    """Draws with torch, NumPy and Python."""

    def __getitem__(self, index):
        x, y, index = super().__getitem__(index)
        return x + torch.randn(4) + np.random.normal() + random.random(), y, index  # noqa: NPY002


class Noisy(Plain):
    """With dropout. It also draws when training and its epochs start, and validation does, as its loader shuffles."""

    def __init__(self):
        super().__init__(len(COUNTS))
        self.dropout = torch.nn.Dropout(0.3)

    def losses(self, x, y):
        return super().losses(self.dropout(x), y)

    def on_train_start(self):
        torch.randn(3)

    def on_train_epoch_start(self):
        torch.randn(1)


def run(
    folder,
    saves="step",
    ckpt=None,
    *,
    fair=True,
    states=True,
    validates=True,
    val_shuffles=True,
    of_loader=None,
    seed=1,
    **settings,
):
    """Return the module and the metrics at the end."""
    L.seed_everything(seed, verbose=False)
    module = Noisy()
    # Last, so that the order of the callbacks does not matter.
    callbacks = [RandomStates()] * states + [FairSampling(feedback_delay=5, seed=0)] * fair
    saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, **SAVES[saves])
    train = loader(Augmented(COUNTS), **(of_loader or {}))
    loaders = [train, loader(Augmented((4, 4, 4)), shuffle=val_shuffles)] if validates else train
    fitted = trainer(*callbacks, saving, max_epochs=3, enable_checkpointing=True, **settings)
    fitted.fit(module, *(loaders if validates else [loaders]), ckpt_path=ckpt)
    return module, fitted.callback_metrics


def assert_same(one, other):
    for mine, theirs in zip(one[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert one[1] == other[1]


@pytest.mark.parametrize("saves", SAVES)
def test_resumed_run_ends_as_uninterrupted(tmp_path, saves):
    """Within an epoch and at its end, with a validation at the end of each."""
    whole = run(tmp_path / "whole", saves)
    steps = (2, 8) if saves == "step" else (5, 10)
    for step in steps:
        ckpt = tmp_path / "whole" / f"step={step}.ckpt"
        # Another seed, so that nothing is the same by chance.
        assert_same(run(tmp_path / str(step), saves, ckpt, seed=step), whole)
    lost, _ = run(tmp_path / "lost", saves, ckpt, states=False)
    assert not torch.equal(lost.net.weight, whole[0].net.weight)


def test_resume_after_last_batch(tmp_path, monkeypatch):
    """Lightning then skips what follows in the old epoch, and the hooks that begin the new one."""
    monkeypatch.delattr(Noisy, "on_train_epoch_start")
    whole = run(tmp_path / "whole", validates=False)
    assert_same(run(tmp_path / "rest", ckpt=tmp_path / "whole" / "step=10.ckpt", validates=False, seed=2), whole)


@pytest.mark.parametrize("settings", [{"check_val_every_n_epoch": 2}, {"val_check_interval": 2}, {}], ids=str)
def test_skipped_validation_takes_its_seeds(tmp_path, monkeypatch, settings):
    """Those of its loader if it was due after the last batch of an epoch, and none if it was not."""
    monkeypatch.delattr(Noisy, "on_train_epoch_start")
    monkeypatch.setattr(Augmented, "__getitem__", Indexed.__getitem__)
    monkeypatch.setitem(SAVES, "step", {"every_n_train_steps": 5})
    settings = {"val_shuffles": False, **settings}
    whole, _ = run(tmp_path / "whole", **settings)
    for step in (5, 10):
        rest, _ = run(tmp_path / f"{step}", ckpt=tmp_path / "whole" / f"step={step}.ckpt", seed=2, **settings)
        assert_same((rest, {}), (whole, {}))  # without the metrics of the skipped validation


def test_plain_loader_resumes_between_epochs(tmp_path):
    """Its order is that of the uninterrupted run, too."""
    whole = run(tmp_path / "whole", "epoch end", fair=False)
    resumed = run(tmp_path / "rest", "epoch end", tmp_path / "whole" / "step=5.ckpt", fair=False, seed=2)
    assert [step.indices for step in resumed[0].steps] == [step.indices for step in whole[0].steps[5:]]
    assert_same(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("fair", [True, False])
def test_workers_have_their_seeds_between_epochs(tmp_path, fair):
    workers = {"of_loader": {"num_workers": 2}, "fair": fair}
    whole = run(tmp_path / "whole", "epoch end", **workers)
    assert_same(run(tmp_path / "rest", "epoch end", tmp_path / "whole" / "step=10.ckpt", seed=2, **workers), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_workers_do_not_shift_the_numbers(tmp_path, kept):
    """Dropout is that of the uninterrupted run within an epoch too; the workers' own numbers are not."""
    clean = {"of_loader": {"num_workers": 2, "persistent_workers": kept}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Augmented, "__getitem__", Indexed.__getitem__)
        whole = run(tmp_path / "whole", **clean)
        for step in (2, 8):
            ckpt = tmp_path / "whole" / f"step={step}.ckpt"
            assert_same(run(tmp_path / f"{step}", ckpt=ckpt, seed=2, **clean), whole)
    whole = run(tmp_path / "augmented", **clean)
    rest, _ = run(tmp_path / "rest", ckpt=tmp_path / "augmented" / "step=8.ckpt", **clean)
    assert not torch.equal(rest.net.weight, whole[0].net.weight)


def test_state_is_plain(tmp_path):
    """It loads with ``weights_only=True``, and a copy of the callback has none of it."""
    run(tmp_path)
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["callbacks"]["RandomStates"]
    assert len(state["ranks"]) == 1
    assert pickle.loads(pickle.dumps(RandomStates())).state_dict().keys() == state.keys()
    assert copy.deepcopy(RandomStates()).state_key == "RandomStates"


def test_checkpoint_without_states_is_told(tmp_path):
    """Or with those of another number of ranks."""
    run(tmp_path / "without", states=False)
    with pytest.warns(UserWarning, match="has no random states. Save checkpoints with RandomStates among"):
        run(tmp_path / "a", ckpt=tmp_path / "without" / "step=2.ckpt")
    run(tmp_path / "with")
    path = tmp_path / "with" / "step=2.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["RandomStates"]["ranks"] *= 2
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match="has the random states of 2 ranks, and this run has 1. Resume on 2"):
        run(tmp_path / "b", ckpt=path)


def test_validation_needs_no_states(tmp_path):
    """``validate`` and ``test`` draw nothing that has to go on."""
    run(tmp_path, states=False)
    with warnings_about("random states") as told:
        trainer(RandomStates()).validate(Noisy(), loader(Augmented(COUNTS)), tmp_path / "step=2.ckpt", verbose=False)
    assert told == []


@pytest.mark.parametrize("generator", ["torch", "numpy", "python"])
def test_damaged_state_changes_nothing(generator):
    callback = RandomStates()
    state = callback.state_dict()
    values = state["ranks"][0]
    values[generator] = values[generator][:-1]
    before = callback.state_dict()
    with pytest.raises(ValueError, match=rf"RandomStates state is damaged.*ranks\[0\]\.{generator}"):
        callback.load_state_dict(state)
    assert torch.equal(before["ranks"][0]["torch"], torch.get_rng_state())


def test_nothing_stays_patched(tmp_path):
    """A fit that ends before its first epoch leaves nothing to the next one, whose numbers are its own."""

    class Stops(L.Callback):
        def on_train_start(self, trainer, pl_module):
            raise InterruptedError

    run(tmp_path)
    states = RandomStates()
    fitted = trainer(states, Stops(), max_epochs=3)
    with pytest.raises(InterruptedError):
        fitted.fit(Noisy(), loader(Augmented(COUNTS)), ckpt_path=tmp_path / "step=4.ckpt")
    assert "on_advance_start" in vars(fitted.fit_loop)
    states.setup(fitted, fitted.lightning_module, "fit")
    assert "on_advance_start" not in vars(fitted.fit_loop)
    assert "on_run_start" not in vars(fitted.fit_loop.epoch_loop)


def test_works_with_both_packages():
    pytorch_lightning = pytest.importorskip("pytorch_lightning")
    assert all(isinstance(RandomStates(), package.Callback) for package in (L, pytorch_lightning))
    assert fit(Noisy(), loader(Augmented(COUNTS)), RandomStates()).global_step == 5
