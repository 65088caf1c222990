import copy
import multiprocessing
import pickle
from functools import partial

import lightning.pytorch as L
import numpy as np
import pytest
import reference
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning_helpers import (
    BATCH,
    BATCHES,
    COUNTS,
    TARGET,
    Indexed,
    KeysAndNames,
    Plain,
    Weighted,
    as_expected,
    by_target,
    fit,
    loader,
    movement,
    moving,
    own_draw,
    recorded_draws,
    trainer,
    warnings_about,
    wrong_steps,
)
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from lightning_fair import FairDataModule, FairSampling, schedules

# -- the weight of a sample is that of its own draw ----------------------------------------------------------


class Frozen(Weighted):
    """In evaluation mode throughout, as for frozen batch statistics."""

    def on_train_epoch_start(self):
        self.eval()


class StopsEarly(Weighted):
    """Ends every epoch at its sixth batch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 5 else None


class Ragged:
    """A collate function that drops, reorders or swallows: each by its own rule."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, samples):
        first = samples[0][2]
        if self.rule == "none" and first % 4 == 0:
            return None
        if self.rule == "reorder":
            samples = samples[::-1]
        if self.rule == "drop":
            samples = samples[: 3 + first % 4]
        return default_collate(samples)


@pytest.mark.parametrize(
    ("workers", "of_loader", "of_trainer", "steps"),
    [
        (0, {}, {"max_epochs": 2}, 2 * BATCHES),
        (1, {}, {"max_epochs": 2}, 2 * BATCHES),
        (4, {}, {"max_epochs": 2}, 2 * BATCHES),
        (2, {"persistent_workers": True}, {"max_epochs": 2}, 2 * BATCHES),
        (2, {"prefetch_factor": 4}, {}, BATCHES),
        (0, {}, {"accumulate_grad_batches": 3}, BATCHES),
        (2, {}, {"accumulate_grad_batches": 3}, BATCHES),
        (0, {}, {"limit_train_batches": 6, "max_epochs": 3}, 18),
        (2, {}, {"limit_train_batches": 6, "max_epochs": 3}, 18),
        (2, {"persistent_workers": True}, {"limit_train_batches": 0.3, "max_epochs": 3}, 18),
        (2, {}, {"reload_dataloaders_every_n_epochs": 1, "limit_train_batches": 6, "max_epochs": 3}, 18),
        (2, {}, {"max_steps": 25, "max_epochs": -1}, 25),
        (2, {"collate_fn": Ragged("reorder")}, {}, BATCHES),
        (2, {"collate_fn": Ragged("drop")}, {}, BATCHES),
    ],
)
def test_weights_are_those_of_the_samples_own_draw(workers, of_loader, of_trainer, steps):
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers, **of_loader), moving(), **of_trainer)
    assert len(module.steps) == steps
    assert movement(draws) > 0.05
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_are_right_where_steps_are_skipped(workers):
    module = Weighted(skip=(1, 4, 5, 11))
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), moving())
    assert len(module.steps) == BATCHES
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_are_right_where_a_hook_ends_the_epoch(workers):
    module = StopsEarly()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), moving(), max_epochs=3)
    assert len(module.steps) == 15
    assert wrong_steps(module.steps, draws) == 0


def test_weights_are_right_in_evaluation_mode():
    module = Frozen()
    with recorded_draws() as draws:
        fit(module, loader(), moving())
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_are_right_where_some_batches_are_none(workers):
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers, collate_fn=Ragged("none")), moving(), max_epochs=2)
    assert 0 < len(module.steps) < 2 * BATCHES
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_are_right_with_validation_in_the_middle_of_an_epoch(workers):
    module = Weighted()
    with recorded_draws() as draws:
        made = trainer(moving(), val_check_interval=5)
        made.fit(module, loader(num_workers=workers), loader(shuffle=False))
    # The record of a validation step (with the plain mean) is not among the steps.
    assert len(module.steps) == BATCHES
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_are_those_of_the_target_at_the_draw(workers):
    """A target that moves with every batch, and a loader that runs ahead."""
    module = Weighted()
    shift = schedules.Shift(schedules.Linear(0.0, 1.0, BATCHES), start=TARGET)
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), moving(target_probs=shift))
    right = newest = 0
    for step in module.steps:
        draw_id = own_draw(step, draws)

        def weigh(labels, probs, moved):
            target = (1 - moved / BATCHES) * np.array(TARGET) + moved / BATCHES / len(TARGET)
            return target[labels] / probs[labels]

        right += as_expected(step, draws[draw_id][0], partial(weigh, moved=draw_id))
        newest += as_expected(step, draws[draw_id][0], partial(weigh, moved=min(draw_id + 1, BATCHES)))
    assert right == len(module.steps) == BATCHES
    assert newest < BATCHES / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_check_of_the_weights_can_fail(workers):
    """The same steps against the newest class mix at the time: wrong as soon as batches are drawn ahead."""
    module = Weighted()
    with recorded_draws() as draws:
        module.draws = draws
        fit(module, loader(num_workers=workers), moving())
    wrong = sum(not as_expected(step, draws[step.newest][0], by_target) for step in module.steps)
    assert wrong > BATCHES / 2


@pytest.mark.parametrize(
    "settings",
    [
        {"reference": "prior"},
        {"max_weight": 1.0},
        {"normalize": True},
        {"exponent": 0.5},
        {"exponent": 0.0},
        {"reference": "prior", "max_weight": 1.5, "exponent": 0.7, "normalize": True},
    ],
    ids=str,
)
def test_weights_are_those_of_the_slow_reference(settings):
    prior = np.array(COUNTS) / sum(COUNTS)

    def weigh(labels, probs):
        return reference.importance_weights(
            labels,
            prior if settings.get("reference") == "prior" else TARGET,
            probs,
            settings.get("max_weight"),
            normalize=settings.get("normalize", False),
            exponent=settings.get("exponent", 1.0),
        )

    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(), moving(**settings))
    assert movement(draws) > 0.05
    assert wrong_steps(module.steps, draws, weigh) == 0
    assert wrong_steps(module.steps, draws, by_target) > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_weighted_loss_is_unbiased_while_p_leans_to_the_hard_classes(workers):
    f = np.array([1.0, 2.0, 3.0, 8.0])
    module = Fixed(f)
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), moving(lambda2=0.5, feedback_delay=5, steps_per_epoch=200))
    q = np.array(TARGET)
    weighted = [(step.weights * f[step.labels]).mean() for step in module.steps]
    plain = [f[step.labels].mean() for step in module.steps]
    # Given the past, each batch's estimate is unbiased, so the errors of n batches add up like those of
    # independent draws. A class's count lies between two neighbouring integers, so its deviation is at
    # most 1/2, and that of an estimate at most sum(w * f) / (2 * B).
    worst = max((q / probs * f).sum() / (2 * BATCH) for probs, _ in draws.values())
    tolerance = 4 * worst / np.sqrt(len(weighted))
    assert abs(np.mean(weighted) - q @ f) < tolerance
    assert abs(np.mean(plain) - q @ f) > tolerance


class Fixed(Weighted):
    """Every sample's loss is that of its class."""

    def __init__(self, f):
        super().__init__()
        self.f = torch.tensor(f, dtype=torch.float32)

    def losses(self, x, y):
        return self.f[y] + 0.0 * self.net(x).sum(1)


# -- what is fed back ----------------------------------------------------------------------------------------


def test_losses_reach_the_controller_class_by_class():
    module, fair = Weighted(), moving(feedback_delay=1, loss_ema_decay=0.8)
    fit(module, loader(), fair)
    losses = [None] * 4
    for step in module.steps:
        losses = reference.follow_losses(losses, step.labels, step.losses, 0.8)
    np.testing.assert_allclose(fair.controller.ema_loss, losses, rtol=1e-5)


@pytest.mark.parametrize("kind", [Plain, Weighted])
@pytest.mark.parametrize(("workers", "skip"), [(0, ()), (0, (0, 3, 4, 19)), (2, (0, 9, 19))])
def test_trained_mix_is_that_of_the_batches_trained_on(kind, workers, skip):
    module, fair = kind(skip=skip), moving(feedback_delay=1, lambda2=0.0)
    fit(module, loader(num_workers=workers), fair)
    trained_mix = list(TARGET)
    for number, step in enumerate(module.steps):
        if number not in skip:
            trained_mix = reference.follow(trained_mix, np.bincount(step.labels, minlength=4), fair.controller.horizon)
    np.testing.assert_allclose(fair.controller.trained_mix, trained_mix, rtol=1e-9)


def test_trained_mix_is_nearly_that_where_several_batches_in_flight_are_skipped():
    skip = (3, 4, 9, 17, 18, 19)
    module, fair = Weighted(skip=skip), moving(feedback_delay=1, lambda2=0.0)
    fit(module, loader(num_workers=2), fair)
    trained_mix = drawn = np.array(TARGET)
    for number, step in enumerate(module.steps):
        counts = np.bincount(step.labels, minlength=4)
        drawn = np.array(reference.follow(drawn, counts, fair.controller.horizon))
        if number not in skip:
            trained_mix = np.array(reference.follow(trained_mix, counts, fair.controller.horizon))
    # A skipped batch is put right by the mix at its draw, when the ones skipped just before it were still
    # believed in: an error of the second order in the rate, 1 / horizon. Nothing put right: of the first.
    second_order = 1 / fair.controller.horizon**2
    assert np.abs(fair.controller.trained_mix - trained_mix).max() < second_order
    assert np.abs(drawn - trained_mix).max() > second_order


@pytest.mark.parametrize(("kind", "rule"), [(Weighted, "drop"), (Plain, "none")])
def test_samples_lost_in_the_pipeline_do_not_count_as_trained_on(kind, rule):
    module, fair = kind(), moving(feedback_delay=1, lambda2=0.0)
    fit(module, loader(collate_fn=Ragged(rule)), fair)
    trained_mix = list(TARGET)
    for step in module.steps:
        trained_mix = reference.follow(trained_mix, np.bincount(step.labels, minlength=4), fair.controller.horizon)
    np.testing.assert_allclose(fair.controller.trained_mix, trained_mix, rtol=1e-9)


@pytest.mark.parametrize("workers", [0, 2])
def test_same_lag_gives_the_same_batches_with_any_number_of_workers(workers):
    def indices(workers):
        L.seed_everything(0, verbose=False)
        module = Weighted()
        fit(
            module,
            loader(num_workers=workers),
            moving(feedback_delay=5, seed=3),
            max_epochs=2,
            limit_train_batches=7,
        )
        return [step.indices for step in module.steps]

    assert indices(workers) == indices(1)


@pytest.mark.parametrize(("bad", "workers"), [(np.nan, 0), (np.inf, 0), (-np.inf, 0), (np.nan, 2)])
def test_loss_that_is_not_finite_never_enters_the_state(bad, workers):
    class Poisoned(Weighted):
        def losses(self, x, y):
            fine = super().losses(x, y)
            return torch.where(y == 3, bad, fine) if len(self.steps) % 2 else fine

    module, fair = Poisoned(lr=0.0), moving()
    with warnings_about("NaN or infinite") as warned:
        fit(module, loader(num_workers=workers), fair, max_epochs=2)
    assert len(warned) == 1
    assert np.isfinite(fair.controller.ema_loss).all()
    assert np.isfinite(fair.controller.trained_mix).all()
    assert np.isfinite(fair.controller.get_probs()).all()


def test_run_knows_its_largest_weight_and_mean_effective_sample_size():
    module, fair = Weighted(), moving()
    assert np.isnan(fair.effective_sample_size)
    fit(module, loader(), fair)
    assert fair.largest_weight == pytest.approx(max(step.weights.max() for step in module.steps), rel=1e-5)
    sizes = [reference.effective_sample_size(step.weights.tolist()) for step in module.steps]
    assert fair.effective_sample_size == pytest.approx(np.mean(sizes), rel=1e-5)


# -- where the data comes from -------------------------------------------------------------------------------


class OwnLoader(Weighted):
    def train_dataloader(self):
        return loader()


@pytest.mark.parametrize("source", ["loader", "data module", "module", "dict", "subset", "concat", "labels", "scan"])
def test_every_source_of_a_training_loader_is_made_fair(source):
    settings, data, module = {}, loader(), Weighted()
    if source == "data module":
        data = KeysAndNames()
    elif source == "module":
        data, module = None, OwnLoader()
    elif source == "dict":
        data, module = {"images": loader()}, FromDict()
    elif source == "subset":
        data = loader(Subset(Indexed(), range(0, 160, 2)))
    elif source == "concat":
        data = loader(ConcatDataset([Indexed(), Indexed()]))
    elif source in ("labels", "scan"):
        data, settings = loader(Bare()), {"labels": Indexed().targets if source == "labels" else "scan"}
    fit(module, data, moving(lambda2=0.0, **settings), limit_train_batches=10)
    seen = np.bincount([y for step in module.steps for y in step.labels], minlength=4)
    # Class 0 has 0.6 of the data, so plain batches are twice the tolerance away.
    np.testing.assert_allclose(seen / 80, TARGET, atol=0.1)


class Bare(Dataset):
    """Samples without any list of their labels."""

    def __init__(self):
        self.inner = Indexed()

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


class FromDict(Weighted):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["images"], batch_idx)


@pytest.mark.parametrize("workers", [0, 2])
def test_users_loader_and_data_set_are_untouched(workers):
    data = loader(num_workers=workers, persistent_workers=bool(workers))
    before, of_dataset = dict(data.__dict__), dict(data.dataset.__dict__)
    fit(Weighted(), data, moving(), max_epochs=2)
    assert data.__dict__.keys() == before.keys()
    assert all(data.__dict__[name] is value for name, value in before.items())
    assert all(data.dataset.__dict__[name] is value for name, value in of_dataset.items())
    assert type(data) is DataLoader


def test_users_data_module_is_untouched():
    def state(data):
        return {name: value for name, value in vars(data).items() if name != "trainer"}, type(data)

    data, fairly = KeysAndNames(), KeysAndNames()
    fit(Weighted(), data, max_epochs=1, limit_train_batches=2)
    fit(Weighted(), fairly, moving(), max_epochs=1, limit_train_batches=2)
    assert state(data)[0].keys() == state(fairly)[0].keys()
    assert data.calls == fairly.calls
    assert state(data)[1] is state(fairly)[1] is KeysAndNames


def test_validation_loaders_stay_the_users_own():
    seen = []

    class Watching(Weighted):
        def validation_step(self, batch, batch_idx):
            seen.extend(batch[2].tolist())

    theirs = loader(shuffle=False)
    made = trainer(moving(), val_check_interval=10, num_sanity_val_steps=-1)
    made.fit(Watching(), loader(), theirs)
    assert made.val_dataloaders is theirs
    assert seen == 3 * list(range(160))  # the sanity check and two runs: in order and complete


def test_settings_of_the_users_loader_are_those_of_the_fair_one():
    data = loader(num_workers=2, pin_memory=False, timeout=30, prefetch_factor=3, drop_last=True)
    made = fit(Weighted(), data, moving(), limit_train_batches=2)
    theirs = made.train_dataloader
    for name in ("dataset", "num_workers", "timeout", "prefetch_factor", "drop_last", "batch_size", "collate_fn"):
        assert getattr(theirs, name) is getattr(data, name)
    assert isinstance(theirs, DataLoader)


def test_fast_dev_run_runs_one_fair_batch():
    module, fair = Weighted(), moving()
    fit(module, loader(), fair, fast_dev_run=True)
    assert len(module.steps) == 1
    assert len(module.steps[0].indices) == BATCH
    assert fair.sampler.trained.sum() == BATCH


def test_sampler_follows_a_loader_that_is_another_one_each_epoch():
    class Growing(L.LightningDataModule):
        def train_dataloader(self):
            return loader(batch_size=8 if self.trainer.current_epoch == 0 else 16)

    module = Weighted()
    fit(module, Growing(), moving(), max_epochs=2, reload_dataloaders_every_n_epochs=1, limit_train_batches=3)
    assert [len(step.indices) for step in module.steps] == [8, 8, 8, 16, 16, 16]


def test_samples_that_the_users_sampler_leaves_out_are_never_trained_on():
    """The held-out half of a data set that is split by SubsetRandomSampler must not leak into training."""
    kept = list(range(0, 160, 2))
    data = DataLoader(Indexed(), batch_size=BATCH, sampler=torch.utils.data.SubsetRandomSampler(kept))
    with pytest.raises(ValueError, match=r"SubsetRandomSampler.*Subset\(dataset, indices\)"):
        fit(Weighted(), data, moving())
    inner = torch.utils.data.BatchSampler(torch.utils.data.SubsetRandomSampler(kept), BATCH, drop_last=False)
    with pytest.raises(ValueError, match="SubsetRandomSampler"):
        fit(Weighted(), DataLoader(Indexed(), batch_sampler=inner), moving())


# -- nothing is left behind ----------------------------------------------------------------------------------


class Breaks(Weighted):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("out of luck")
        return super().training_step(batch, batch_idx)


def assert_nothing_left(made, module):
    assert "process_dataloader" not in vars(made.strategy)
    assert module._step_weights is None


def test_nothing_is_left_behind_after_a_fit():
    module = Weighted()
    made = fit(module, loader(), moving())
    assert_nothing_left(made, module)
    made.fit_loop.max_epochs = 2
    made.fit(module, loader())
    assert_nothing_left(made, module)
    assert len(module.steps) == 2 * BATCHES


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_after_an_exception(error):
    class Raises(Weighted):
        def training_step(self, batch, batch_idx):
            raise error("out of luck")

    module, made = Raises(), trainer(moving())
    with pytest.raises((error, SystemExit)):
        made.fit(module, loader())
    assert_nothing_left(made, module)


@pytest.mark.parametrize("persistent", [False, True])
def test_no_worker_process_outlives_the_fit(persistent):
    before = set(multiprocessing.active_children())
    made = fit(Weighted(), loader(num_workers=2, persistent_workers=persistent), moving(), limit_train_batches=5)
    del made
    for process in set(multiprocessing.active_children()) - before:
        process.join(5)
    assert set(multiprocessing.active_children()) <= before


def test_another_plugins_hold_on_the_loaders_outlives_the_fit():
    seen = []
    made = trainer(moving())

    def theirs(data):
        seen.append(data)
        return data

    made.strategy.process_dataloader = theirs
    made.fit(Weighted(), loader())
    assert seen
    assert vars(made.strategy).get("process_dataloader") is theirs


def test_a_fit_after_an_exception_is_a_whole_one():
    fair, module = moving(), Weighted()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(Breaks(), loader(), fair)
    fit(module, loader(), fair)
    assert len(module.steps) == BATCHES


def test_a_second_fit_with_another_batch_size_has_that_batch_size():
    fair, module = moving(), Weighted()
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    fit(module, loader(batch_size=16), fair)
    assert [len(step.indices) for step in module.steps] == [16] * 10


def test_a_second_fit_with_overfit_batches_is_left_alone():
    fair, module = moving(), Weighted()
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    fit(module, loader(), fair, overfit_batches=2)
    assert [step.weights.tolist() for step in module.steps] == [[1.0] * BATCH] * 2


def test_callback_is_pickled_and_copied_before_a_fit():
    fair = moving(alpha=schedules.Linear(0.0, 8.0, 5), labels=[0, 1])
    assert pickle.loads(pickle.dumps(fair)).settings.target_probs == TARGET
    assert copy.deepcopy(fair).settings.labels == [0, 1]


def test_callback_is_copied_after_a_fit():
    fair = moving()
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    assert copy.deepcopy(fair).sampler.trained.sum() == 2 * BATCH


def test_callback_is_pickled_after_a_fit():
    fair = moving()
    fit(Weighted(), loader(), fair, limit_train_batches=2)
    assert pickle.loads(pickle.dumps(fair)).sampler.trained.sum() == 2 * BATCH


# -- where it has nothing to do, or cannot do it -------------------------------------------------------------


@pytest.mark.parametrize("kind", [Plain, Weighted])
def test_overfit_batches_are_left_alone_with_one_warning(kind):
    module, fair = kind(), moving()
    with warnings_about("overfit_batches") as warned:
        fit(module, loader(shuffle=False), fair, overfit_batches=2, max_epochs=2)
    assert len(warned) == 1
    assert [step.indices for step in module.steps] == 2 * [list(range(8)), list(range(8, 16))]
    assert all((step.weights == 1.0).all() for step in module.steps)
    assert fair.controller is None


def test_module_without_the_mixin_trains_with_one_warning():
    module, fair = Plain(), moving(lambda2=0.0)
    with warnings_about("ImportanceWeightedMixin") as warned:
        fit(module, loader(), fair, max_epochs=2)
    assert len(warned) == 1
    assert "weighted_loss" in warned[0]
    assert len(module.steps) == 2 * BATCHES
    assert np.isnan(fair.controller.ema_loss).all()
    np.testing.assert_allclose(fair.controller.trained_mix, TARGET, atol=0.06)


def test_module_with_the_mixin_that_never_calls_it_gets_one_warning():
    class Forgetful(Weighted):
        def reduce(self, losses):
            return losses.mean()

    fair = moving()
    with warnings_about("did not call self.weighted_loss") as warned:
        fit(Forgetful(), loader(), fair)
    assert len(warned) == 1
    np.testing.assert_allclose(fair.controller.trained_mix, TARGET, atol=0.06)


@pytest.mark.parametrize(
    ("losses", "target", "expected"),
    [
        ([torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0]))], TARGET, 1),
        ([torch.nn.NLLLoss(torch.tensor([1.0, 9.0])), torch.nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))], TARGET, 1),
        ([torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([9.0]))], TARGET, 1),
        ([torch.nn.CrossEntropyLoss()], TARGET, 0),
        ([torch.nn.CrossEntropyLoss(torch.ones(4))], TARGET, 0),
        ([torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0]))], "prior", 0),
    ],
    ids=["weights", "two losses", "pos_weight", "no weights", "equal weights", "steered to the prior"],
)
def test_loss_that_has_class_weights_gets_one_warning(losses, target, expected):
    module = Weighted()
    module.criteria = torch.nn.ModuleList(losses)
    with warnings_about("correct twice") as warned:
        fit(module, loader(), moving(target_probs=target), fast_dev_run=True)
    assert len(warned) == expected


class Stream(IterableDataset):
    def __iter__(self):
        yield from (Indexed()[i] for i in range(16))


class Looping(Weighted):
    def training_step(self, dataloader_iter):
        batch, *_ = next(dataloader_iter)
        return super().training_step(batch, 0)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda: DataLoader(Stream(), batch_size=8), "is a stream"),
        (lambda: DataLoader(Indexed(), batch_size=None), "batch_size=None"),
        (lambda: {"a": loader(), "b": loader()}, r"one training .* several: 'a', 'b'\. .*loader='a'"),
        (lambda: [loader(), loader()], r"one training .* several: 0, 1\. .*loader=0"),
        (lambda: loader(Bare()), "labels='scan'"),
        (lambda: DataLoader(TensorDataset(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))), "empty"),
        (lambda: loader(Labelled([0, 1, 4, 1])), r"lie in \[0, 4\), got 4"),
        (lambda: loader(Labelled([0, 1, -1, 1])), "at least 0, got -1"),
        (lambda: loader(Labelled([0.0, 1.0, 2.0, 3.0])), "integers, got float32"),
        (lambda: loader(Labelled([[0, 1], [1, 0]])), r"shape \(N,\)"),
        (lambda: loader(Labelled([0, 1, 1, 2])), "No samples of class 3"),
    ],
    ids=[
        "stream",
        "batch_size None",
        "two in a dict",
        "two in a list",
        "no labels",
        "empty",
        "label too large",
        "negative label",
        "float labels",
        "two-dimensional labels",
        "class without samples",
    ],
)
def test_bad_data_is_refused_before_the_first_step(data, match):
    module, made = Weighted(), trainer(moving())
    with pytest.raises((TypeError, ValueError), match=match):
        made.fit(module, data())
    assert module.steps == []
    assert_nothing_left(made, module)


class Labelled(Dataset):
    def __init__(self, targets):
        self.targets = torch.tensor(targets)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.zeros(4), self.targets[index], index


def test_training_step_that_takes_the_iterator_is_refused():
    """It fetches its batch by itself, after the weights of the step have been set."""
    module = Looping()
    with pytest.raises((TypeError, ValueError), match="dataloader_iter"):
        fit(module, loader(), moving())
    assert module.steps == []


def test_class_without_samples_is_skipped_on_request():
    module, fair = Weighted(), moving(empty_classes="skip")
    fit(module, loader(Labelled([0] * 10 + [1] * 10 + [2] * 10)), fair)
    np.testing.assert_allclose(fair.controller.q, [4 / 9, 3 / 9, 2 / 9, 0.0])
    assert {y for step in module.steps for y in step.labels} == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target_probs": [0.5, 0.6, -0.1]}, "must not be negative"),
        ({"target_probs": [0.5, float("nan")]}, "must be finite"),
        ({"target_probs": [0.5, 0.4]}, "must sum to one"),
        ({"target_probs": [0.5, 0.5], "num_classes": 3}, "one entry per class"),
        ({"target_probs": "balanced"}, "must be 'uniform'"),
        ({"min_prob": 0.25, "num_classes": 4}, r"min_prob must lie in \[0, 1/K\)"),
        ({"min_prob": 0.5, "target_probs": [0.5, 0.5]}, r"min_prob must lie in \[0, 1/K\)"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"alpha": float("nan")}, "finite"),
        ({"lambda1": -1.0}, "lambda1 must be"),
        ({"lambda2": float("inf")}, "lambda2 must be"),
        ({"loss_ema_decay": 1.0}, "loss_ema_decay must lie in"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"horizon": 0.5}, "horizon must be at least 1"),
        ({"feedback_delay": 0}, "feedback_delay must be an integer of at least 1"),
        ({"max_weight": 0.0}, "must be positive"),
        ({"exponent": 1.5}, "exponent must lie in"),
        ({"reference": "balanced"}, "reference must be"),
        ({"empty_classes": "ignore"}, "empty_classes must be"),
        ({"seed": -1}, "seed must be"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be"),
        ({"class_names": ["a", "b"], "num_classes": 3}, "class_names"),
        # Unstable: alpha >= 2 * horizon - 1. The default horizon of a uniform target of few classes is 16.
        ({"alpha": 31.0, "num_classes": 4}, "largest stable alpha"),
        ({"alpha": 31.0, "target_probs": [0.5, 0.5]}, "largest stable alpha"),
        ({"alpha": 8.0, "horizon": 4}, "largest stable alpha"),
        ({"alpha": 4.0, "lambda1": 2.0, "horizon": 4}, "largest stable alpha"),
        ({"alpha": schedules.Linear(0.0, 8.0, 100), "horizon": 4}, "largest stable alpha"),
    ],
    ids=str,
)
def test_bad_setting_is_refused_by_the_constructor(settings, match):
    with pytest.raises(ValueError, match=match):
        FairSampling(**settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"alpha": 31.0}, "largest stable alpha"),
        ({"min_prob": 0.25}, r"min_prob must lie in \[0, 1/K\)"),
        ({"target_probs": {0: 1.2}}, "target_probs"),
        ({"target_probs": {9: 0.2}}, "target_probs"),
        ({"target_probs": [0.5, 0.5]}, r"lie in \[0, 2\), got 3"),
        ({"num_classes": 3}, r"lie in \[0, 3\), got 3"),
        ({"num_classes": 6}, "No samples of class 4, 5"),
        ({"labels": [0, 1, 2]}, "one per sample: got 3 for 160"),
        ({"class_names": ["a", "b"]}, "class_names"),
    ],
    ids=str,
)
def test_setting_that_does_not_suit_the_data_is_refused_before_the_first_step(settings, match):
    module, made = Weighted(), trainer(FairSampling(**settings))
    with pytest.raises(ValueError, match=match):
        made.fit(module, loader())
    assert module.steps == []
    assert_nothing_left(made, module)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 30.9, "num_classes": 4},
        {"alpha": 8.0, "horizon": 4.6},
        {"alpha": 31.0, "target_probs": [0.99, 0.01]},  # the rare class needs a longer horizon
        {"alpha": 31.0, "target_probs": "prior", "num_classes": 4},  # as this might, too
        {"alpha": 1000.0, "num_classes": 4, "lambda1": 0.0},
    ],
    ids=str,
)
def test_alpha_that_may_be_stable_is_taken(settings):
    assert FairSampling(**settings).controller is None


@pytest.mark.parametrize("later", [False, True])
def test_two_callbacks_are_refused(later):
    def both():
        made = trainer(moving(), *([] if later else [moving()]))
        if later:
            made.callbacks.append(moving())
        made.fit(module, loader())

    module = Weighted()
    with pytest.raises((RuntimeError, ValueError), match=r"more than one .*FairSampling"):
        both()
    assert module.steps == []


# -- resume --------------------------------------------------------------------------------------------------


class KeepAll(ModelCheckpoint):
    def __init__(self, folder, **settings):
        super().__init__(folder, "{step}", save_top_k=-1, **{"every_n_train_steps": 1, **settings})


def run(folder, workers, ckpt=None, kind=Weighted, settings=None, data=loader, **of_trainer):
    L.seed_everything(1, verbose=False)
    module, fair = kind(), moving(seed=5, feedback_delay=5)
    made = fit(
        module,
        data(num_workers=workers),
        fair,
        KeepAll(folder, **(settings or {})),
        ckpt=ckpt,
        **{"max_epochs": 2, "limit_train_batches": 7, "enable_checkpointing": True, **of_trainer},
    )
    return module, fair, made


@pytest.mark.parametrize("workers", [0, 2])
def test_run_resumed_at_any_batch_goes_on_as_the_uninterrupted_one(tmp_path, workers):
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
def test_run_resumes_exactly_under_other_ways_to_train(tmp_path, settings, of_trainer):
    whole, _, _ = run(tmp_path / "whole", 2, settings=settings, **of_trainer)
    per_step = of_trainer.get("accumulate_grad_batches", 1)
    saved = sorted((tmp_path / "whole").iterdir(), key=lambda path: int(path.stem.split("=")[1]))
    for path in {saved[0], saved[-2]}:
        stop = per_step * int(path.stem.split("=")[1])
        resumed, _, _ = run(tmp_path / path.stem, 2, ckpt=path, settings=settings, **of_trainer)
        assert [step.indices for step in resumed.steps] == [step.indices for step in whole.steps[stop:]]


def test_resume_with_another_batch_size_is_refused(tmp_path):
    run(tmp_path, 0)
    with pytest.raises(ValueError, match="batch size = 8, this run has 16"):
        run(tmp_path / "again", 0, ckpt=tmp_path / "step=3.ckpt", data=lambda **kw: loader(batch_size=16, **kw))


@pytest.mark.parametrize("workers", [0, 2])
def test_run_with_a_stateful_loader_resumes_exactly(tmp_path, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def data(**settings):
        return stateful(Indexed(), batch_size=BATCH, shuffle=True, **settings)

    whole, _, _ = run(tmp_path / "whole", workers, data=data)
    resumed, _, _ = run(tmp_path / "again", workers, ckpt=tmp_path / "whole" / "step=3.ckpt", data=data)
    assert [step.indices for step in resumed.steps] == [step.indices for step in whole.steps[3:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_checkpoint_holds_only_tensors_and_plain_python(tmp_path, workers):
    _, fair, made = run(tmp_path, workers)
    made.save_checkpoint(tmp_path / "last.ckpt")
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


def test_learning_rate_search_leaves_no_trace_in_the_state():
    module, fair = Weighted(), moving()
    made = trainer(fair)
    Tuner(made).lr_find(module, loader(), num_training=10, update_attr=False)
    module.steps.clear()
    made.fit(module, loader())
    assert len(module.steps) == BATCHES
    assert fair.controller.draws == BATCHES


def test_seed_everything_decides_the_draws(monkeypatch):
    def indices(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        module = Weighted()
        fit(module, loader(), moving(lambda2=0.0, seed=None), limit_train_batches=3)
        return [step.indices for step in module.steps]

    assert indices(1) == indices(1) != indices(2)


def test_epoch_is_as_long_as_steps_per_epoch():
    module = Weighted()
    fit(module, loader(), moving(steps_per_epoch=33))
    assert len(module.steps) == 33


def test_every_step_has_one_draw_of_its_own():
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=2), moving(), max_epochs=2)
    assert [own_draw(step, draws) for step in module.steps] == list(range(2 * BATCHES))


def test_last_class_without_samples_is_named_like_any_other():
    data = Indexed((20, 10))
    data.classes = ["cat", "dog", "owl"]
    with pytest.raises(ValueError, match="No samples of class 2"):
        fit(Weighted(), loader(data), FairSampling())
    fit(Weighted(), loader(data), skipping := FairSampling(empty_classes="skip"))
    assert skipping.controller.q.tolist() == [0.5, 0.5, 0.0]


def test_loader_without_a_whole_batch_says_so():
    with pytest.raises(ValueError, match=r"no batch: .* fewer samples than batch_size=64, and drop_last=True"):
        fit(Weighted(), loader(Indexed((20, 10)), batch_size=64, drop_last=True), FairSampling())


def test_loader_that_is_fair_already_is_refused():
    theirs = FairDataModule(Indexed(), batch_size=8).train_dataloader()
    with pytest.raises(ValueError, match="fair already, with settings of its own"):
        fit(Weighted(), theirs, FairSampling())


def test_samplers_that_lose_their_effect_are_named():
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * len(Indexed()), len(Indexed()))
    with pytest.warns(UserWarning, match="WeightedRandomSampler of the training DataLoader has no effect"):
        fit(Weighted(), DataLoader(Indexed(), batch_size=BATCH, sampler=weighted), moving())


def test_without_the_mixin_the_weights_that_are_logged_are_one():
    fair = moving()
    fit(Plain(), loader(), fair, max_epochs=2)
    assert fair.largest_weight == 1.0
    assert fair.effective_sample_size == BATCH


@pytest.mark.parametrize(
    ("every", "settings"), [(7, {}), (4, {"accumulate_grad_batches": 2}), (5, {"limit_train_batches": 5})]
)
def test_resume_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path, every, settings):
    """Such a checkpoint is written before Lightning says that the epoch has ended."""

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
    """Listed before the plugin, it saves at the end of a batch, before the plugin's own hook would run."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 7:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("way", ["callback", "data module"])
def test_checkpoint_of_a_callback_listed_before_has_the_batch_reported(tmp_path, way):
    def run(ckpt=None):
        fair = moving(feedback_delay=5)
        wrapped = FairDataModule(Indexed(), batch_size=BATCH, fair=fair)
        data, ours = (loader(), [fair]) if way == "callback" else (wrapped, [])
        fit(module := Weighted(), data, SavesFirst(tmp_path / "7.ckpt"), *ours, ckpt=ckpt)
        return [step.indices for step in module.steps]

    whole = run()
    assert run(tmp_path / "7.ckpt") == whole[7:]


def test_validation_from_another_checkpoint_leaves_the_run_as_it_is(tmp_path):
    module, fair = Weighted(), moving()
    made = fit(module, loader(), fair, max_epochs=1)
    made.save_checkpoint(tmp_path / "old.ckpt")
    made.fit_loop.max_epochs = 2
    made.fit(module, loader())
    before = fair.state_dict()
    made.validate(module, loader(shuffle=False), ckpt_path=tmp_path / "old.ckpt")
    assert fair.controller.draws == 2 * BATCHES
    assert fair.state_dict()["steps"] == before["steps"] == 2 * BATCHES


def test_callback_of_another_trainer_starts_anew():
    fair = moving()
    first, second = trainer(fair, max_epochs=1), trainer(fair, max_epochs=1)
    for made in (first, second):
        made.fit(Weighted(), loader())
    first.fit_loop.max_epochs = 2
    first.fit(Weighted(), loader())
    assert fair.controller.draws == BATCHES


def test_numbers_of_a_run_are_of_its_own_data():
    module, fair = Weighted(), moving()
    made = fit(module, loader(), fair)
    made.fit_loop.max_epochs = 2
    made.fit(module, loader(Indexed((40, 20, 10, 10))))
    assert fair.state_dict()["steps"] == 10


def test_callback_is_copied_within_a_fit():
    class Copies(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            copy.deepcopy(fair)
            self.pickled = pickle.dumps(fair)

    fair = moving()
    fit(Weighted(), loader(), fair, copies := Copies(), limit_train_batches=2)
    assert pickle.loads(copies.pickled).sampler.trained.sum() == 2 * BATCH


def test_new_run_with_the_same_callback_starts_anew():
    fair = moving()
    runs = []
    for _ in range(2):
        fit(module := Weighted(), loader(), fair)
        runs.append([step.indices for step in module.steps])
    assert runs[0] == runs[1]
    assert fair.controller.draws == len(runs[0])


def test_scan_reads_the_data_once_however_often_it_is_reloaded():
    class Counting(Indexed):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    data = Counting()
    fair = FairSampling(labels="scan")
    fit(Weighted(), loader(data), fair, max_epochs=2, limit_train_batches=1, reload_dataloaders_every_n_epochs=1)
    assert Counting.reads == len(data) + 2 * BATCH
