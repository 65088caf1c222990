from functools import partial

import lightning.pytorch as L
import numpy as np
import pytest
import reference
import torch
from lightning_helpers import (
    BATCH,
    BATCHES,
    COUNTS,
    TARGET,
    WORKERS,
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
from torch.utils.data import default_collate

from lightning_fair import schedules


class Frozen(Weighted):
    """Trains in evaluation mode, as with frozen batch statistics."""

    def on_train_epoch_start(self):
        self.eval()


class StopsEarly(Weighted):
    """Ends every epoch at its sixth batch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 5 else None


class Ragged:
    """A collate function that drops samples, reverses them, or returns None."""

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
        pytest.param(1, {}, {"max_epochs": 2}, 2 * BATCHES, marks=pytest.mark.slow),
        pytest.param(4, {}, {"max_epochs": 2}, 2 * BATCHES, marks=pytest.mark.slow),
        pytest.param(2, {"persistent_workers": True}, {"max_epochs": 2}, 2 * BATCHES, marks=pytest.mark.slow),
        pytest.param(2, {"prefetch_factor": 4}, {}, BATCHES, marks=pytest.mark.slow),
        (0, {}, {"accumulate_grad_batches": 3}, BATCHES),
        pytest.param(2, {}, {"accumulate_grad_batches": 3}, BATCHES, marks=pytest.mark.slow),
        (0, {}, {"limit_train_batches": 6, "max_epochs": 3}, 18),
        pytest.param(2, {}, {"limit_train_batches": 6, "max_epochs": 3}, 18, marks=pytest.mark.slow),
        pytest.param(
            2, {"persistent_workers": True}, {"limit_train_batches": 0.3, "max_epochs": 3}, 18, marks=pytest.mark.slow
        ),
        pytest.param(
            2,
            {},
            {"reload_dataloaders_every_n_epochs": 1, "limit_train_batches": 6, "max_epochs": 3},
            18,
            marks=pytest.mark.slow,
        ),
        pytest.param(2, {}, {"max_steps": 25, "max_epochs": -1}, 25, marks=pytest.mark.slow),
        pytest.param(2, {"collate_fn": Ragged("reorder")}, {}, BATCHES, marks=pytest.mark.slow),
        pytest.param(2, {"collate_fn": Ragged("drop")}, {}, BATCHES, marks=pytest.mark.slow),
    ],
)
def test_weights_belong_to_own_draw(workers, of_loader, of_trainer, steps):
    """The weight of a sample is that of its own draw."""
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers, **of_loader), moving(), **of_trainer)
    assert len(module.steps) == steps
    assert movement(draws) > 0.05
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_with_skipped_steps(workers):
    """Weights are right if steps are skipped."""
    module = Weighted(skip=(1, 4, 5, 11))
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), moving())
    assert len(module.steps) == BATCHES
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_weights_if_hook_ends_epoch(workers):
    """Weights are right if a hook ends the epoch."""
    module = StopsEarly()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), moving(), max_epochs=3)
    assert len(module.steps) == 15
    assert wrong_steps(module.steps, draws) == 0


def test_weights_in_evaluation_mode():
    """Weights are right in evaluation mode."""
    module = Frozen()
    with recorded_draws() as draws:
        fit(module, loader(), moving())
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_weights_with_none_batches(workers):
    """Weights are right if some batches are None."""
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers, collate_fn=Ragged("none")), moving(), max_epochs=2)
    assert 0 < len(module.steps) < 2 * BATCHES
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_weights_with_validation_within_epoch(workers):
    """Weights are right with validation in the middle of an epoch."""
    module = Weighted()
    with recorded_draws() as draws:
        fitted = trainer(moving(), val_check_interval=5)
        fitted.fit(module, loader(num_workers=workers), loader(shuffle=False))
    # The steps have no record of a validation step.
    assert len(module.steps) == BATCHES
    assert wrong_steps(module.steps, draws) == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_weights_with_moving_target(workers):
    """Weights are those of the target at the draw, with a target that moves and a loader that draws ahead."""
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


@pytest.mark.parametrize("workers", [2])
def test_weight_check_can_fail(workers):
    """Weights do not match the newest class mix if batches are drawn ahead."""
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
        {"reference": "uniform"},
        {"reference": [0.1, 0.2, 0.3, 0.4]},
        {"reference": "prior", "max_weight": 2.0},
        {"normalize": True},
        {"exponent": 0.5},
        {"exponent": 0.0},
        {"reference": "prior", "max_weight": 1.5, "exponent": 0.7, "normalize": True},
    ],
    ids=str,
)
def test_weights_match_slow_reference(settings):
    """Weights match the slow reference."""
    prior = np.array(COUNTS) / sum(COUNTS)
    mixes = {"prior": prior, "uniform": np.full(4, 0.25), "target": TARGET}
    mix = settings.get("reference", "target")
    mix = mixes[mix] if isinstance(mix, str) else mix

    def weigh(labels, probs):
        return reference.importance_weights(
            labels,
            mix,
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


@pytest.mark.parametrize("workers", WORKERS)
def test_weighted_loss_is_unbiased(workers):
    """The weighted loss is unbiased although hard classes are drawn more often."""
    f = np.array([1.0, 2.0, 3.0, 8.0])
    module = Fixed(f)
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), moving(lambda2=0.5, feedback_delay=5, steps_per_epoch=200))
    q = np.array(TARGET)
    weighted = [(step.weights * f[step.labels]).mean() for step in module.steps]
    plain = [f[step.labels].mean() for step in module.steps]
    # Given the past, each batch's estimate is unbiased, so the errors of n batches add up like those of
    # independent draws. A class's count lies between two neighboring integers, so its deviation is at
    # most 1/2, and that of an estimate at most sum(w * f) / (2 * B).
    worst = max((q / probs * f).sum() / (2 * BATCH) for probs, _ in draws.values())
    tolerance = 4 * worst / np.sqrt(len(weighted))
    assert abs(np.mean(weighted) - q @ f) < tolerance
    assert abs(np.mean(plain) - q @ f) > tolerance


class Fixed(Weighted):
    """The loss of a sample depends on its class only."""

    def __init__(self, f):
        super().__init__()
        self.f = torch.tensor(f, dtype=torch.float32)

    def losses(self, x, y):
        return self.f[y] + 0.0 * self.net(x).sum(1)


def test_losses_reach_controller():
    """The mean loss of each class reaches the controller."""
    module, fair = Weighted(), moving(feedback_delay=1, loss_ema_decay=0.8)
    fit(module, loader(), fair)
    losses = [None] * 4
    for step in module.steps:
        losses = reference.follow_losses(losses, step.labels, step.losses, 0.8)
    np.testing.assert_allclose(fair.controller.ema_loss, losses, rtol=1e-5)


@pytest.mark.parametrize("kind", [Plain, Weighted])
@pytest.mark.parametrize(
    ("workers", "skip"), [(0, ()), (0, (0, 3, 4, 19)), pytest.param(2, (0, 9, 19), marks=pytest.mark.slow)]
)
def test_trained_mix_follows_trained_batches(kind, workers, skip):
    """The trained mix is that of the batches trained on."""
    module, fair = kind(skip=skip), moving(feedback_delay=1, lambda2=0.0)
    fit(module, loader(num_workers=workers), fair)
    trained_mix = list(TARGET)
    for number, step in enumerate(module.steps):
        if number not in skip:
            trained_mix = reference.follow(trained_mix, np.bincount(step.labels, minlength=4), fair.controller.horizon)
    np.testing.assert_allclose(fair.controller.trained_mix, trained_mix, rtol=1e-9)


@pytest.mark.slow
def test_trained_mix_with_skipped_batches():
    """The trained mix is nearly that of the batches trained on if several batches in flight are skipped."""
    skip = (3, 4, 9, 17, 18, 19)
    module, fair = Weighted(skip=skip), moving(feedback_delay=1, lambda2=0.0)
    fit(module, loader(num_workers=2), fair)
    trained_mix = drawn = np.array(TARGET)
    for number, step in enumerate(module.steps):
        counts = np.bincount(step.labels, minlength=4)
        drawn = np.array(reference.follow(drawn, counts, fair.controller.horizon))
        if number not in skip:
            trained_mix = np.array(reference.follow(trained_mix, counts, fair.controller.horizon))
    # A skipped batch is corrected by the mix at its draw, which still contains the batches skipped just before it:
    # an error of the second order in the rate, 1 / horizon. Without a correction the error is of the first order.
    second_order = 1 / fair.controller.horizon**2
    assert np.abs(fair.controller.trained_mix - trained_mix).max() < second_order
    assert np.abs(drawn - trained_mix).max() > second_order


@pytest.mark.parametrize(("kind", "rule"), [(Weighted, "drop"), (Plain, "none")])
def test_lost_samples_are_not_counted(kind, rule):
    """Samples that ``collate_fn`` drops do not count as trained on."""
    module, fair = kind(), moving(feedback_delay=1, lambda2=0.0)
    fit(module, loader(collate_fn=Ragged(rule)), fair)
    trained_mix = list(TARGET)
    for step in module.steps:
        trained_mix = reference.follow(trained_mix, np.bincount(step.labels, minlength=4), fair.controller.horizon)
    np.testing.assert_allclose(fair.controller.trained_mix, trained_mix, rtol=1e-9)


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_do_not_depend_on_workers(workers):
    """The same feedback delay gives the same batches with any number of workers."""

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


@pytest.mark.parametrize(
    ("bad", "workers"), [(np.nan, 0), (np.inf, 0), (-np.inf, 0), pytest.param(np.nan, 2, marks=pytest.mark.slow)]
)
def test_nonfinite_loss_stays_out(bad, workers):
    """A loss that is not finite never enters the state."""

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


def test_statistics_of_run():
    """The callback has the largest weight, and the effective sample size of all samples of the run."""
    module, fair = Weighted(), moving()
    assert np.isnan(fair.effective_sample_size)
    fit(module, loader(), fair)
    assert fair.largest_weight == pytest.approx(max(step.weights.max() for step in module.steps), rel=1e-5)
    weights = np.concatenate([step.weights for step in module.steps]).tolist()
    assert fair.effective_sample_size == pytest.approx(reference.effective_sample_size(weights) / len(weights), 1e-5)
    assert fair.clipped_mass == 0.0  # the draw keeps the bound


def test_unused_mixin_warns_once():
    """A module that never calls ``weighted_loss`` gives one warning."""

    class Forgetful(Weighted):
        def reduce(self, losses):
            return losses.mean()

    fair = moving()
    with warnings_about("did not call self.weighted_loss") as warned:
        fit(Forgetful(), loader(), fair)
    assert len(warned) == 1
    np.testing.assert_allclose(fair.controller.trained_mix, TARGET, atol=0.06)


def test_every_step_has_own_draw():
    """Every step has a draw of its own."""
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=2), moving(), max_epochs=2)
    assert [own_draw(step, draws) for step in module.steps] == list(range(2 * BATCHES))


def test_weights_without_mixin_are_one():
    """Without the mixin all logged weights are one."""
    fair = moving()
    fit(Plain(), loader(), fair, max_epochs=2)
    assert fair.largest_weight == 1.0
    assert fair.effective_sample_size == 1.0
