import lightning.pytorch as L
import numpy as np
import pytest
import reference
import torch
from lightning_helpers import (
    BATCH,
    BATCHES,
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
    wrong_steps,
)
from torch.nn import functional as F
from torch.utils.data import default_collate

from lightning_fair import FairDataModule, FairSampling, ImportanceWeightedMixin


def fair_callbacks(made):
    return [callback for callback in made.callbacks if isinstance(callback, FairSampling)]


# -- who installs the callback ---------------------------------------------------------------------------------


def test_mixin_alone_installs_one_callback():
    module = Weighted()
    made = fit(module, loader())
    (fair,) = fair_callbacks(made)
    assert fair.controller.draws == BATCHES
    np.testing.assert_allclose(fair.controller.trained_mix, 0.25, atol=0.06)
    made.fit_loop.max_epochs = 2
    made.fit(module, loader())
    assert fair_callbacks(made) == [fair]


def test_mixin_installs_the_callback_it_is_given():
    class Own(Weighted):
        fair_sampling = moving()

    module = Own()
    made = fit(module, loader())
    assert fair_callbacks(made) == [Own.fair_sampling]
    assert Own.fair_sampling.controller.draws == BATCHES


def test_mixin_that_is_told_not_to_installs_none_and_the_loss_is_the_mean():
    module = Weighted()
    module.fair_sampling = False
    made = fit(module, loader(shuffle=False))
    assert fair_callbacks(made) == []
    assert [index for step in module.steps for index in step.indices] == list(range(160))
    assert all((step.weights == 1.0).all() for step in module.steps)


@pytest.mark.parametrize("sampling", [True, False])
@pytest.mark.parametrize("by", ["trainer", "data module", "both"])
def test_callback_of_the_user_is_the_only_one(sampling, by):
    module, fair = Weighted(), moving()
    module.fair_sampling = sampling
    data = loader() if by == "trainer" else FairDataModule(KeysAndNames(), fair=None if by == "both" else fair)
    made = fit(module, data, *([] if by == "data module" else [fair]))
    assert fair_callbacks(made) == [fair]
    assert any((step.weights != 1.0).any() for step in module.steps)


@pytest.mark.parametrize("sampling", [True, False])
def test_data_module_and_mixin_without_settings_share_one_callback(sampling):
    module, data = Weighted(), FairDataModule(KeysAndNames())
    module.fair_sampling = sampling
    made = fit(module, data)
    (fair,) = fair_callbacks(made)
    assert data.controller is fair.controller
    assert fair.controller.draws == BATCHES


@pytest.mark.parametrize("by", ["trainer", "data module"])
def test_two_different_callbacks_are_refused(by):
    module = Weighted()
    module.fair_sampling = moving()
    data = loader() if by == "trainer" else FairDataModule(KeysAndNames(), fair=moving())
    with pytest.raises(ValueError, match=r"Trainer \(or its FairDataModule\) and Weighted.fair_sampling"):
        fit(module, data, *([moving()] if by == "trainer" else []))
    assert module.steps == []


def test_same_callback_given_twice_is_one():
    module, fair = Weighted(), moving()
    module.fair_sampling = fair
    assert fair_callbacks(fit(module, loader(), fair)) == [fair]


@pytest.mark.parametrize("several", [False, True])
def test_callbacks_of_the_users_module_are_kept(several):
    class Counts(L.Callback):
        steps = 0

        def on_train_batch_end(self, *args):
            self.steps += 1

    class Base(Plain):
        def configure_callbacks(self):
            return [counts] if several else counts

    class Own(ImportanceWeightedMixin, Base):
        def reduce(self, losses):
            return self.weighted_loss(losses)

    counts = Counts()
    made = fit(Own(), loader())
    assert counts.steps == BATCHES
    assert len(fair_callbacks(made)) == 1


# -- outside of training ---------------------------------------------------------------------------------------


def test_weighted_loss_is_the_plain_mean_outside_of_training():
    losses = torch.tensor([1.0, 3.0])
    assert Weighted().weighted_loss(losses) == 2.0
    assert Weighted().eval().weighted_loss(losses, torch.tensor([0, 1])) == 2.0


def test_weighted_loss_is_the_plain_mean_in_validation():
    means = []

    class Watching(Weighted):
        def validation_step(self, batch, batch_idx):
            losses = self.losses(*batch[:2])
            means.append((self.weighted_loss(losses).item(), losses.mean().item()))

    module, made = Watching(), trainer(moving(), val_check_interval=7)
    with recorded_draws() as draws:
        made.fit(module, loader(), loader(shuffle=False))
    assert len(means) > 20
    assert all(weighted == mean for weighted, mean in means)
    assert wrong_steps(module.steps, draws) == 0
    made.validate(module, loader(shuffle=False), verbose=False)
    assert all(weighted == mean for weighted, mean in means)


def test_validation_losses_do_not_reach_the_controller():
    def ratio_and_losses(val):
        module, fair = Weighted(), moving(feedback_delay=1)
        trainer(fair, val_check_interval=7).fit(module, loader(), val)
        return fair.controller.trained_mix.tolist(), fair.controller.ema_loss.tolist()

    assert ratio_and_losses(None) == ratio_and_losses(loader(shuffle=False))


# -- every way to train ----------------------------------------------------------------------------------------


class Manual(Weighted):
    """Manual optimisation; returns its loss, or None, which then means nothing."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.record(*batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss if batch_idx % 2 else None


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_and_losses_are_right_under_manual_optimisation(workers):
    module, fair = Manual(), moving(feedback_delay=1)
    before = module.net.weight.clone()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), fair)
    assert len(module.steps) == BATCHES
    assert movement(draws) > 0.05
    assert wrong_steps(module.steps, draws) == 0
    assert_losses_of(module.steps, fair)
    assert (module.net.weight != before).any()


def assert_losses_of(steps, fair, rtol=1e-5):
    losses = [None] * 4
    for step in steps:
        losses = reference.follow_losses(losses, step.labels, step.losses, fair.controller.loss_ema_decay)
    np.testing.assert_allclose(fair.controller.ema_loss, losses, rtol=rtol)


class SecondOrder(Weighted):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)


def test_batch_whose_closure_runs_several_times_counts_once():
    module, fair = SecondOrder(), moving(feedback_delay=1)
    with recorded_draws() as draws:
        fit(module, loader(), fair, limit_train_batches=8)
    assert len(module.steps) > 8
    assert wrong_steps(module.steps, draws) == 0
    trained = {own_draw(step, draws): np.bincount(step.labels, minlength=4) for step in module.steps}
    assert list(trained) == list(range(8))
    trained_mix = list(TARGET)
    for counts in trained.values():
        trained_mix = reference.follow(trained_mix, counts, fair.controller.horizon)
    np.testing.assert_allclose(fair.controller.trained_mix, trained_mix, rtol=1e-9)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_weights_are_right_in_every_precision(precision):
    module, fair = Weighted(), moving(feedback_delay=1, loss_ema_decay=0.5)
    with recorded_draws() as draws:
        fit(module, loader(), fair, precision=precision)
    # The gradient of a bfloat16 loss is rounded to its 8 bits; the weight itself is not.
    tolerance = 2.0**-7 if precision == "bf16-true" else 1e-5
    assert movement(draws) > 0.05
    for step in module.steps:
        expected = by_target(step.labels, draws[own_draw(step, draws)][0])
        np.testing.assert_allclose(step.weights, expected, rtol=tolerance)
    assert_losses_of(module.steps, fair)
    assert fair.controller.ema_loss.dtype == np.float64


class Compiled(Weighted):
    """Without the records, which a graph cannot hold: the returned losses are compared instead."""

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))


class Returned(L.Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append((outputs["loss"].item(), batch))


def test_weights_are_right_in_a_compiled_module_that_is_compiled_once():
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    module, fair, returned = Compiled(lr=0.0), moving(feedback_delay=1), Returned()
    with recorded_draws() as draws:
        fit(torch.compile(module, backend=counting), loader(), returned, fair)
    assert len(returned.steps) == BATCHES
    assert len(graphs) == 1
    losses = [None] * 4
    for draw_id, (loss, (x, y, index)) in enumerate(returned.steps):
        probs, indices = draws[draw_id]
        assert indices == index.tolist()
        each = F.cross_entropy(module.net(x), y, reduction="none").detach().double().numpy()
        assert loss == pytest.approx((by_target(y.tolist(), probs) * each).mean(), rel=1e-5)
        losses = reference.follow_losses(losses, y.tolist(), each, 0.0)
    np.testing.assert_allclose(fair.controller.ema_loss, losses, rtol=1e-5)
    assert module._step_weights is None


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("per_step", [1, 4])
def test_accumulated_gradient_is_the_weighted_one(workers, per_step):
    """One optimiser step at learning rate 1: the parameters move by the mean of the weighted gradients."""
    module = Weighted(lr=1.0)
    start = [p.detach().clone() for p in module.parameters()]
    with recorded_draws() as draws:
        fit(
            module,
            loader(num_workers=workers),
            moving(),
            accumulate_grad_batches=per_step,
            limit_train_batches=per_step,
        )
    expected = [torch.zeros_like(p) for p in start]
    fresh = Weighted()
    for step in module.steps:
        x, y, _ = default_collate([Indexed()[index] for index in step.indices])
        w = torch.tensor(by_target(step.labels, draws[own_draw(step, draws)][0]), dtype=torch.float32)
        loss = (w * fresh.losses(x, y)).mean() / per_step
        for total, grad in zip(expected, torch.autograd.grad(loss, list(fresh.parameters())), strict=True):
            total += grad
    for before, after, grad in zip(start, module.parameters(), expected, strict=True):
        torch.testing.assert_close(before - after, grad, rtol=1e-4, atol=1e-6)


# -- labels of one's own ---------------------------------------------------------------------------------------


class Hidden:
    """A batch in which no labels can be found, in another order than drawn and with samples dropped."""

    def __init__(self, samples):
        self.parts = default_collate(samples[4::-1])

    def to(self, device):
        return self


class Explicit(Weighted):
    def training_step(self, batch, batch_idx):
        self.now = batch.parts[1]
        return self.record(*batch.parts)

    def reduce(self, losses):
        return self.weighted_loss(losses, self.now)


class Implicit(Explicit):
    def reduce(self, losses):
        return self.weighted_loss(losses)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_of_the_users_own_decide_the_weights(workers):
    module, fair = Explicit(), moving(feedback_delay=1, loss_ema_decay=0.5)
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers, collate_fn=Hidden), fair)
    assert [len(step.indices) for step in module.steps] == [5] * BATCHES
    assert wrong_steps(module.steps, draws) == 0
    assert_losses_of(module.steps, fair)


def test_samples_dropped_in_secret_are_an_error_that_names_the_remedy():
    with pytest.raises(ValueError, match=r"got 5 losses, but 8 samples were drawn.*weighted_loss\(losses, labels\)"):
        fit(Implicit(), loader(collate_fn=Hidden), moving())


@pytest.mark.parametrize(
    ("shape", "match"),
    [((), r"got shape \(\)"), ((BATCH, 3), r"got shape \(8, 3\)"), ((BATCH, 1), r"got shape \(8, 1\)")],
)
def test_losses_of_another_shape_are_refused(shape, match):
    class Wrong(Weighted):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(torch.ones(shape, requires_grad=True))

    with pytest.raises(ValueError, match=match):
        fit(Wrong(), loader(), moving())


def test_check_of_the_weights_can_fail_here_too():
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(), moving())
    step = module.steps[10]
    probs, _ = draws[own_draw(step, draws)]
    assert as_expected(step, probs, by_target)
    assert not as_expected(step, np.roll(probs, 1), by_target)
