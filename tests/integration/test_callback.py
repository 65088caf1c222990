import copy
import multiprocessing
import pickle

import lightning.pytorch as L
import numpy as np
import pytest
from lightning_helpers import (
    BATCH,
    BATCHES,
    TARGET,
    Plain,
    Weighted,
    assert_nothing_left,
    fit,
    loader,
    moving,
    trainer,
    warnings_about,
)

from lightning_fair import schedules


def test_fast_dev_run():
    """``fast_dev_run`` trains on one fair batch."""
    module, fair = Weighted(), moving()
    fit(module, loader(), fair, fast_dev_run=True)
    assert len(module.steps) == 1
    assert len(module.steps[0].indices) == BATCH
    assert fair.sampler.trained.sum() == BATCH


class Breaks(Weighted):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("out of luck")
        return super().training_step(batch, batch_idx)


def test_nothing_is_left_after_fit():
    """Nothing is left behind after a fit."""
    module = Weighted()
    fitted = fit(module, loader(), moving())
    assert_nothing_left(fitted, module)
    fitted.fit_loop.max_epochs = 2
    fitted.fit(module, loader())
    assert_nothing_left(fitted, module)
    assert len(module.steps) == 2 * BATCHES


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_exception(error):
    """Nothing is left behind after an exception."""

    class Raises(Weighted):
        def training_step(self, batch, batch_idx):
            raise error("out of luck")

    module, fitted = Raises(), trainer(moving())
    with pytest.raises((error, SystemExit)):
        fitted.fit(module, loader())
    assert_nothing_left(fitted, module)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_with_fit(persistent):
    """No worker process outlives the fit."""
    before = set(multiprocessing.active_children())
    fitted = fit(Weighted(), loader(num_workers=2, persistent_workers=persistent), moving(), limit_train_batches=5)
    del fitted
    for process in set(multiprocessing.active_children()) - before:
        process.join(60)
    assert set(multiprocessing.active_children()) <= before


def test_fit_after_exception():
    """A fit after an exception is complete."""
    fair, module = moving(), Weighted()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Breaks(), loader(), fair)
    fit(module, loader(), fair)
    assert len(module.steps) == BATCHES


def test_second_fit_with_other_batch_size():
    """A second fit with another batch size uses that batch size."""
    fair, module = moving(), Weighted()
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    fit(module, loader(batch_size=16), fair)
    assert [len(step.indices) for step in module.steps] == [16] * 10


def test_second_fit_with_overfit_batches():
    """A second fit with ``overfit_batches`` is not changed."""
    fair, module = moving(), Weighted()
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    fit(module, loader(), fair, overfit_batches=2)
    assert [step.weights.tolist() for step in module.steps] == [[1.0] * BATCH] * 2


@pytest.mark.parametrize("kind", [Plain, Weighted])
def test_state_is_readable_after_fit(kind, tmp_path):
    """After a fit the sampler and the statistics can be read, and a checkpoint can be saved and resumed from."""
    module, fair = kind(), moving(lambda2=0.0)
    assert (fair.sampler, fair.controller, fair.largest_weight) == (None, None, 0.0)
    fitted = fit(module, loader(), fair)
    assert fair.sampler.trained.sum() == BATCHES * BATCH
    assert fair.controller.draws == BATCHES
    assert fair.controller.in_flight == ()
    assert fair.largest_weight == pytest.approx(max(step.weights.max() for step in module.steps), rel=1e-5)
    assert 0 < fair.effective_sample_size <= 1
    fitted.save_checkpoint(tmp_path / "after.ckpt")
    resumed = kind(), moving(lambda2=0.0)
    fit(resumed[0], loader(), resumed[1], ckpt=tmp_path / "after.ckpt", max_epochs=2)
    assert len(resumed[0].steps) == BATCHES
    assert resumed[1].controller.draws == 2 * BATCHES
    assert fair.controller.draws == BATCHES


def test_callback_has_few_attributes():
    """The state of a fit is in one object, so the callback itself has few attributes, before a fit and after."""
    fair = moving()
    before = set(vars(fair))
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    assert set(vars(fair)) - {"log", "log_dict"} == before  # Lightning adds these two to every callback
    assert len(before) <= 15


def test_copies_before_fit():
    """The callback can be pickled and copied before a fit."""
    fair = moving(alpha=schedules.Linear(0.0, 8.0, 5), labels=[0, 1])
    assert pickle.loads(pickle.dumps(fair)).settings.target_probs == TARGET
    assert copy.deepcopy(fair).settings.labels == [0, 1]


@pytest.mark.parametrize("kind", [Plain, Weighted])
def test_overfit_batches_warn_once(kind):
    """``overfit_batches`` gives one warning, and the batches stay Lightning's."""
    module, fair = kind(), moving()
    with warnings_about("overfit_batches") as warned:
        fit(module, loader(shuffle=False), fair, overfit_batches=2, max_epochs=2)
    assert len(warned) == 1
    assert [step.indices for step in module.steps] == 2 * [list(range(8)), list(range(8, 16))]
    assert all((step.weights == 1.0).all() for step in module.steps)
    assert fair.controller is None


def test_module_without_mixin_warns_once():
    """A module without the mixin trains, with one warning."""
    module, fair = Plain(), moving(lambda2=0.0)
    with warnings_about("ImportanceWeightedMixin") as warned:
        fit(module, loader(), fair, max_epochs=2)
    assert len(warned) == 1
    assert "weighted_loss" in warned[0]
    assert len(module.steps) == 2 * BATCHES
    assert np.isnan(fair.controller.ema_loss).all()
    np.testing.assert_allclose(fair.controller.trained_mix, TARGET, atol=0.06)


@pytest.mark.parametrize("later", [False, True])
def test_two_callbacks_are_refused(later):
    def both():
        fitted = trainer(moving(), *([] if later else [moving()]))
        if later:
            fitted.callbacks.append(moving())
        fitted.fit(module, loader())

    module = Weighted()
    with pytest.raises((RuntimeError, ValueError), match=r"more than one .*FairSampling"):
        both()
    assert module.steps == []


def test_other_trainer_starts_over():
    """The callback starts over with another Trainer."""
    fair = moving()
    first, second = trainer(fair, max_epochs=1), trainer(fair, max_epochs=1)
    for fitted in (first, second):
        fitted.fit(Weighted(), loader())
    first.fit_loop.max_epochs = 2
    first.fit(Weighted(), loader())
    assert fair.sampler.trained.sum() == BATCHES * BATCH


def test_copies_within_fit():
    """A copy that is made within a fit has the settings, and nothing of the fit."""

    class Copies(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.copies = [copy.deepcopy(fair), pickle.loads(pickle.dumps(fair))]

    fair = moving()
    fit(Weighted(), loader(), fair, copies := Copies(), limit_train_batches=2)
    assert [each.settings.target_probs for each in copies.copies] == 2 * [TARGET]
    assert [each.sampler for each in copies.copies] == 2 * [None]


def test_new_run_starts_over():
    """A new run with the same callback starts over."""
    fair = moving()
    runs = []
    for _ in range(2):
        fit(module := Weighted(), loader(), fair)
        runs.append([step.indices for step in module.steps])
    assert runs[0] == runs[1]
    assert fair.controller.draws == len(runs[0])


def test_fit_within_a_fit():
    """A callback cannot be in two fits at once; a copy can."""

    class Inner(L.Callback):
        def __init__(self, fair):
            self.fair = fair

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:
                fit(Weighted(), loader(), self.fair)

    fair, module = moving(), Weighted()
    with pytest.raises(RuntimeError, match="in the fit of another Trainer"):
        fit(Weighted(), loader(), fair, Inner(fair))
    fit(module, loader(), fair, Inner(copy.deepcopy(fair)))
    assert len(module.steps) == BATCHES
    assert (module.steps[-1].weights != 1.0).any()
