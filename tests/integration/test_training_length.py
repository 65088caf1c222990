"""The length of a training, as its Trainer's arguments say, and the targets that depend on it."""

import logging
import re

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.tuner import Tuner
from lightning_helpers import BATCH, BATCHES, COUNTS, Indexed, Plain, Weighted, fit, loader, trainer, warnings_about
from torch.utils.data import DataLoader

from lightning_fair import FairDataModule, FairSampling, FairStream, FeedbackController
from lightning_fair.control.target_values import auto_exponent
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.training_length import TrainingLength
from lightning_fair.schedules import Linear, Shift, Step


class Manual(Plain):
    """Optimizes by itself, twice in every batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            loss = self.record(*batch)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        self.batches = getattr(self, "batches", 0) + 1


LENGTHS = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_epochs": -1, "max_steps": 47},
    "epochs, then steps": {"max_epochs": 2, "max_steps": 100},
    "steps, then epochs": {"max_epochs": 20, "max_steps": 30},
    "limit": {"max_epochs": 2, "limit_train_batches": 7},
    "limit above the length": {"max_epochs": 1, "limit_train_batches": 1000},
    "fraction": {"max_epochs": 3, "limit_train_batches": 0.34},
    "accumulated": {"max_epochs": -1, "max_steps": 11, "accumulate_grad_batches": 3},
    "accumulated, all steps of an epoch": {"max_epochs": -1, "max_steps": 14, "accumulate_grad_batches": 3},
    "accumulated, limit": {"max_epochs": 9, "max_steps": 11, "accumulate_grad_batches": 4, "limit_train_batches": 0.5},
    "longer than an epoch": {"max_epochs": -1, "max_steps": 3, "accumulate_grad_batches": 2 * BATCHES},
    "fast_dev_run": {"max_epochs": 10, "fast_dev_run": 3},
}


@pytest.mark.parametrize("settings", LENGTHS.values(), ids=LENGTHS)
def test_length_is_that_of_lightning(settings):
    """The batches that the Trainer's arguments promise are those that it trains on."""
    module = Plain()
    promised = TrainingLength.of(trainer(**settings), module).batches(BATCHES)
    fit(module, loader(), **settings)
    assert len(module.steps) == promised


def test_length_that_is_not_known():
    """No limit; steps of any number of batches; several loaders, whose epoch is not known."""
    endless = TrainingLength.of(trainer(max_epochs=-1), Plain())
    assert endless.batches(BATCHES) is None
    steps = {"max_epochs": -1, "max_steps": 40}
    assert TrainingLength.of(trainer(**steps), Manual()).batches(BATCHES) is None
    assert TrainingLength.of(trainer(max_epochs=2), Manual()).batches(BATCHES) == 2 * BATCHES
    schedule = GradientAccumulationScheduler({0: 1, 2: 4})
    assert TrainingLength.of(trainer(schedule, **steps), Plain()).batches(BATCHES) is None
    assert TrainingLength.of(trainer(schedule, max_epochs=2), Plain()).batches(BATCHES) == 2 * BATCHES
    assert TrainingLength.of(trainer(max_epochs=2), Plain()).batches(None) is None
    assert TrainingLength.of(trainer(**steps), Plain()).batches(None) == 40
    assert TrainingLength.of(trainer(max_epochs=2, max_steps=40), Plain()).batches(None) is None


# -- "auto" and "deferred" in a Trainer -----------------------------------------------------------------------


class StopAfter(L.Callback):
    """Ends a long training early."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.left -= 1
        trainer.should_stop = self.left <= 0


def stream(**settings):
    samples = [(torch.zeros(4), k % 4, k) for k in range(64)]
    return DataLoader(FairStream(samples, batch_size=BATCH, **settings), batch_size=BATCH)


class Targets(L.Callback):
    """Records the target and the class counts of every batch that is trained on."""

    def __init__(self):
        self.targets, self.counts = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (fair,) = (x for x in trainer.callbacks if isinstance(x, FairSampling))
        self.targets.append(fair.controller.q)
        self.counts.append(np.bincount(batch[1].numpy(), minlength=4))


@pytest.fixture
def messages(caplog):
    with caplog.at_level(logging.INFO):
        yield lambda words: [r.getMessage() for r in caplog.records if words in r.getMessage()]


PRIOR = np.array(COUNTS) / sum(COUNTS)


def power(exponent):
    return PRIOR**exponent / (PRIOR**exponent).sum()


def test_auto_keeps_the_repeats(messages):
    """Eight passes over the data: uniform would draw a sample of the rarest class 27 times, the prior 8 times."""
    fair = FairSampling(target_probs="auto", max_repeats=16)
    fit(Weighted(), loader(), fair, max_epochs=8)
    assert fair.sampler.repeats[3] == pytest.approx(16, rel=0.02)
    exponent = auto_exponent(COUNTS, 8 * BATCHES * BATCH, 16)
    np.testing.assert_allclose(fair.controller.q, power(exponent))
    (line,) = messages("FairSampling steers")
    assert f'target_probs="auto" is prior ** {exponent:.3g}, which draws a sample of the rarest class about 16 ' in line
    assert line.endswith("times in 160 batches.")


@pytest.mark.parametrize(("max_repeats", "exponent"), [(1, 1.0), (64, 0.0)])
def test_auto_at_its_ends(max_repeats, exponent, messages):
    """The prior, if even that repeats more often; uniform, if that does not repeat more often."""
    fair = FairSampling(target_probs="auto", max_repeats=max_repeats)
    fit(Weighted(), loader(), fair, max_epochs=2)
    np.testing.assert_allclose(fair.controller.q, power(exponent))
    name = ("uniform", "prior")[round(exponent)]
    assert messages(f'is prior ** {exponent:.0f} ("{name}"), which draws')


def test_auto_without_a_known_length(messages):
    """It is "sqrt", and the log says so: without a limit, and with several loaders."""
    fair = FairSampling(target_probs="auto")
    fit(Weighted(), loader(), fair, StopAfter(2), max_epochs=-1)
    np.testing.assert_allclose(fair.controller.q, power(0.5))
    assert messages('target_probs="auto" is prior ** 0.5 ("sqrt"), because the length of the training is not known.')


class OfTwo(Weighted):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["fair"], batch_idx)


@pytest.mark.parametrize(
    ("settings", "is_known"), [({"max_epochs": 2}, False), ({"max_epochs": -1, "max_steps": 10}, True)], ids=str
)
def test_auto_with_several_loaders(settings, is_known, messages):
    """The other loaders may make an epoch longer."""
    loaders = {"fair": loader(), "other": loader(Indexed((400, 400)))}
    fair = FairSampling(target_probs="auto", dataloader="fair", max_repeats=3)
    fit(OfTwo(), loaders, fair, **settings)
    np.testing.assert_allclose(fair.controller.q, power(auto_exponent(COUNTS, 80, 3) if is_known else 0.5))
    assert bool(messages("is not known")) != is_known


def test_auto_of_a_stream(messages):
    """It is "uniform", and the log says so, unless the stream has a target of its own."""
    fair = FairSampling(target_probs="auto", num_classes=4)
    fit(Weighted(), stream(), fair)
    np.testing.assert_allclose(fair.controller.q, [0.25] * 4)
    assert messages('"auto" is "uniform", because the class counts of a stream are not known')
    own = stream(controller=FeedbackController(4, [0.4, 0.2, 0.2, 0.2]))
    fit(Weighted(), own, FairSampling(target_probs="auto"))
    assert len(messages('"auto"')) == 1


def test_longer_training_goes_on_with_its_target(tmp_path, messages):
    """Its target is that of the checkpoint; the log has its repeats in the longer training."""
    path, settings = tmp_path / "short.ckpt", {"target_probs": "auto", "max_repeats": 16, "seed": 0}
    short = FairSampling(**settings)
    fit(Weighted(), loader(), short, max_epochs=4).save_checkpoint(path)
    longer, seen = FairSampling(**settings), Targets()
    fit(Weighted(), loader(), longer, seen, max_epochs=8, ckpt=path)
    assert len(seen.targets) == 4 * BATCHES
    np.testing.assert_allclose(seen.targets, [short.controller.q] * (4 * BATCHES))
    exponent = auto_exponent(COUNTS, 4 * BATCHES * BATCH, 16)
    assert f'prior ** {exponent:.3g} ("uniform"), which draws a sample' in messages("FairSampling steers")[1]
    with pytest.raises(ValueError, match="The state steers to"):
        fit(Weighted(), loader(), FairSampling(target_probs="prior", seed=0), max_epochs=8, ckpt=path)


def test_restart_has_the_target_of_its_own_training(tmp_path):
    path = tmp_path / "short.ckpt"
    fit(Weighted(), loader(), FairSampling(target_probs="auto", max_repeats=16), max_epochs=4).save_checkpoint(path)
    fair = FairSampling(target_probs="auto", max_repeats=16, resume="restart")
    fit(Weighted(), loader(), fair, max_epochs=8, ckpt=path)
    np.testing.assert_allclose(fair.controller.q, power(auto_exponent(COUNTS, 8 * BATCHES * BATCH, 16)))


@pytest.mark.parametrize("search", ["lr_find", pytest.param("scale_batch_size", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["auto", "deferred"])
def test_search_does_not_count_as_the_training(search, target, tmp_path, monkeypatch):
    """The target is that of a training without a search."""
    monkeypatch.chdir(tmp_path)
    data = FairDataModule(Indexed(), batch_size=8, val=Indexed())
    fair, seen, module = FairSampling(target_probs=target, max_repeats=16), Targets(), Weighted()
    fitted = trainer(fair, seen, max_epochs=8)
    settings = {"init_val": 4, "max_trials": 2} if search == "scale_batch_size" else {"num_training": 10}
    getattr(Tuner(fitted), search)(module, datamodule=data, **settings)
    seen.targets.clear()
    fitted.fit(module, datamodule=data)
    plain = Targets()
    fit(
        Weighted(),
        loader(batch_size=data.batch_size),
        FairSampling(target_probs=target, max_repeats=16),
        plain,
        max_epochs=8,
    )
    np.testing.assert_array_equal(seen.targets, plain.targets)
    assert len(seen.targets) == 8 * len(loader(batch_size=data.batch_size))


def test_loader_outside_of_a_fit(messages):
    data = FairDataModule(Indexed(), batch_size=8, fair=FairSampling(target_probs="auto"))
    next(iter(data.train_dataloader()))
    np.testing.assert_allclose(data.controller.q, power(0.5))
    data.train_dataloader()
    assert len(messages('FairSampling: target_probs="auto" is prior ** 0.5 ("sqrt"), because')) == 1


def test_deferred_is_balanced_in_the_last_fifth(messages):
    seen = Targets()
    fit(Weighted(), loader(), FairSampling(target_probs="deferred"), seen, max_epochs=3, limit_train_batches=10)
    np.testing.assert_allclose(seen.targets[:24], [PRIOR] * 24)
    np.testing.assert_allclose(seen.targets[24:], [[0.25] * 4] * 6)
    assert messages("the target moves from the prior to uniform at batch 24 of 30.")


def test_second_fit_goes_on(messages):
    """With the target of the first one, whatever its own length is."""
    fair, seen = FairSampling(target_probs="deferred"), Targets()
    fitted = fit(Weighted(), loader(), fair, seen, max_epochs=3, limit_train_batches=10)
    assert messages("at batch 24 of 30.")
    fitted.fit_loop.max_epochs = 4
    fitted.fit(Weighted(), loader())
    assert messages("at batch 24 of 40.")
    np.testing.assert_allclose(seen.targets[24:], [[0.25] * 4] * 16)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_deferred_is_balanced_in_the_last_batch_at_least(steps):
    seen = Targets()
    fit(Weighted(), loader(), FairSampling(target_probs="deferred"), seen, max_epochs=-1, max_steps=steps)
    assert len(seen.targets) == steps
    np.testing.assert_allclose(seen.targets[-1], [0.25] * 4)


def test_deferred_needs_the_length():
    """The remedies of the error work."""
    fair = FairSampling(target_probs="deferred")
    with pytest.raises(ValueError, match=r"length of the training is not known\. Set max_epochs or max_steps"):
        fit(Weighted(), loader(), fair, max_epochs=-1)
    fit(Weighted(), loader(), FairSampling(target_probs="deferred"), max_epochs=-1, max_steps=4)
    with pytest.raises(ValueError, match="max_epochs alone with manual optimization"):
        fit(Manual(), loader(), FairSampling(preset="deferred"), max_epochs=-1, max_steps=4)
    fit(Manual(), loader(), FairSampling(preset="deferred"), max_epochs=1)
    loaders, several = {"fair": loader(), "other": loader()}, {"preset": "deferred", "dataloader": "fair"}
    with pytest.raises(ValueError, match="max_steps alone if it has several training loaders"):
        fit(OfTwo(), loaders, FairSampling(**several), max_epochs=1)
    fit(OfTwo(), loaders, FairSampling(**several), max_epochs=-1, max_steps=4)
    outside = FairDataModule(Indexed(), batch_size=8, fair=FairSampling(preset="deferred"))
    with pytest.raises(ValueError, match=r"Or choose the batch: target_probs=Shift\(Step\(0\.0, 1\.0, at=1000\)\)"):
        outside.train_dataloader()
    by_hand = Shift(Step(0.0, 1.0, at=1000))
    fit(Weighted(), loader(), FairSampling(target_probs=by_hand), StopAfter(2), max_epochs=-1)
    of_stream = FairSampling(target_probs="deferred", num_classes=4)
    with pytest.raises(ValueError, match="A stream has no prior"):
        fit(Weighted(), stream(), of_stream)


def test_auto_counts_the_samples_of_all_ranks():
    """Two ranks with half of the batch each draw as one does."""
    labels, settings = Indexed().targets, FairSettings(preset="long_tail", max_repeats=16)
    one = settings.make_sampler(labels, BATCH, total_batches=160)
    two = settings.make_sampler(labels, BATCH // 2, total_batches=160, rank=1, world_size=2)
    np.testing.assert_array_equal(two.controller.q, one.controller.q)
    np.testing.assert_allclose(one.controller.q, power(auto_exponent(COUNTS, 160 * BATCH, 16)))


@pytest.mark.parametrize("target", ["balanced", "Auto"])
def test_unknown_name_is_refused_at_once(target):
    with pytest.raises(ValueError, match=f"got '{target}'"):
        FairSampling(target_probs=target)


def test_max_repeats_is_checked():
    with pytest.raises(ValueError, match=r"max_repeats must lie in \[1, inf\], got 0\.5"):
        FairSampling(max_repeats=0.5)


# -- samples that are repeated too often ----------------------------------------------------------------------

RARE = (110, 32, 16, 2)  # 20 batches of 8 an epoch: 20 draws of each of the two for "uniform"


def told(epochs, target, **settings):
    with warnings_about("are expected") as messages:
        fair = FairSampling(target_probs=target, **settings)
        fit(Weighted(), loader(Indexed(RARE)), fair, StopAfter(2), max_epochs=epochs)
    return messages


@pytest.mark.parametrize(
    ("epochs", "target", "times"),
    [
        (9, "uniform", None),  # 180
        (11, "uniform", 220),
        (36, "sqrt", None),
        (60, "sqrt", 315),
        (300, "prior", None),  # as often as every other sample
        (300, "auto", None),
        (20, [0.2, 0.3, 0.4, 0.1], None),
        (20, [0.2, 0.2, 0.1, 0.5], 800),
        (30, "deferred", None),  # a fifth of 600, and some of the prior's
        (60, "deferred", 288),
        (60, Shift(Linear(0.0, 1.0, 60, unit="epoch")), 620),
    ],
    ids=str,
)
def test_too_many_repeats_are_told_once(epochs, target, times):
    messages = told(epochs, target)
    assert len(messages) == (times is not None)
    if times is not None:
        number = re.match(r"The samples of class 3 \(2\) are expected (\d+) times each in the", messages[0])[1]
        assert float(number) == pytest.approx(times, rel=0.02)
        assert "Set target_probs='auto'" in messages[0]
        assert not told(epochs, "auto")


def test_repeats_are_told_once_a_training(tmp_path):
    """Not again when it is resumed, nor by a search."""
    fair, path = FairSampling(), tmp_path / "first.ckpt"
    with warnings_about("are expected") as messages:
        fit(Weighted(), loader(Indexed(RARE)), fair, StopAfter(2), max_epochs=60).save_checkpoint(path)
        fit(Weighted(), loader(Indexed(RARE)), FairSampling(), StopAfter(2), max_epochs=60, ckpt=path)
    assert len(messages) == 1
    assert re.search(r"'auto' \(\d+ times\) or target_probs='sqrt' \(\d+ times\)", messages[0])
