import lightning.pytorch as L
import numpy as np
import pytest
import reference
import torch
from lightning.pytorch.tuner import Tuner
from lightning_helpers import (
    BATCH,
    BATCHES,
    TARGET,
    WORKERS,
    Indexed,
    KeysAndNames,
    Named,
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
from torch.nn import functional as F
from torch.utils.data import default_collate

from lightning_fair import FairDataModule, FairSampling, ImportanceWeightedMixin


def fair_callbacks(fitted):
    return [callback for callback in fitted.callbacks if isinstance(callback, FairSampling)]


# -- who installs the callback ---------------------------------------------------------------------------------


def test_mixin_installs_callback():
    """The mixin installs one callback if there is none."""
    module = Weighted()
    fitted = fit(module, loader())
    (fair,) = fair_callbacks(fitted)
    assert fair.controller.draws == BATCHES
    np.testing.assert_allclose(fair.controller.trained_mix, 0.25, atol=0.06)
    fitted.fit_loop.max_epochs = 2
    fitted.fit(module, loader())
    assert fair_callbacks(fitted) == [fair]


def test_mixin_installs_given_callback():
    """The mixin installs the given callback."""

    class Own(Weighted):
        fair_sampling = moving()

    module = Own()
    fitted = fit(module, loader())
    assert fair_callbacks(fitted) == [Own.fair_sampling]
    assert Own.fair_sampling.controller.draws == BATCHES


def test_mixin_without_fair_sampling():
    """With ``fair_sampling=False`` the mixin installs no callback, and the loss is the mean."""
    module = Weighted()
    module.fair_sampling = False
    fitted = fit(module, loader(shuffle=False))
    assert fair_callbacks(fitted) == []
    assert [index for step in module.steps for index in step.indices] == list(range(160))
    assert all((step.weights == 1.0).all() for step in module.steps)


@pytest.mark.parametrize("sampling", [True, False])
@pytest.mark.parametrize("by", ["trainer", "data module", "both"])
def test_users_callback_is_kept(sampling, by):
    """The mixin installs no second callback."""
    module, fair = Weighted(), moving()
    module.fair_sampling = sampling
    data = loader() if by == "trainer" else FairDataModule(KeysAndNames(), fair=None if by == "both" else fair)
    fitted = fit(module, data, *([] if by == "data module" else [fair]))
    assert fair_callbacks(fitted) == [fair]
    assert any((step.weights != 1.0).any() for step in module.steps)


@pytest.mark.parametrize("sampling", [True, False])
def test_datamodule_and_mixin_share_callback(sampling):
    """Data module and mixin share one callback."""
    module, data = Weighted(), FairDataModule(KeysAndNames())
    module.fair_sampling = sampling
    fitted = fit(module, data)
    (fair,) = fair_callbacks(fitted)
    assert data.controller is fair.controller
    assert fair.controller.draws == BATCHES


@pytest.mark.parametrize("by", ["trainer", "data module"])
def test_two_callbacks_are_refused(by):
    """Two different callbacks are refused."""
    module = Weighted()
    module.fair_sampling = moving()
    data = loader() if by == "trainer" else FairDataModule(KeysAndNames(), fair=moving())
    with pytest.raises(ValueError, match=r"Trainer \(or its FairDataModule\) and Weighted.fair_sampling"):
        fit(module, data, *([moving()] if by == "trainer" else []))
    assert module.steps == []


def test_shared_callback_is_one():
    """The same callback may be given twice."""
    module, fair = Weighted(), moving()
    module.fair_sampling = fair
    assert fair_callbacks(fit(module, loader(), fair)) == [fair]


@pytest.mark.parametrize("several", [False, True])
def test_own_callbacks_are_kept(several):
    """Callbacks of the user's module are kept."""

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
    fitted = fit(Own(), loader())
    assert counts.steps == BATCHES
    assert len(fair_callbacks(fitted)) == 1


# -- a mixin that does not act ---------------------------------------------------------------------------------


class Branch(Plain):
    """Between the user's module and LightningModule."""


class OwnMixin(ImportanceWeightedMixin):
    """Between the user's module and the mixin."""


@pytest.mark.parametrize(
    ("bases", "order"),
    [
        ((L.LightningModule, ImportanceWeightedMixin), "ImportanceWeightedMixin, LightningModule"),
        ((Branch, ImportanceWeightedMixin), "ImportanceWeightedMixin, Branch"),
        ((L.LightningModule, OwnMixin), "OwnMixin, LightningModule"),
        ((Branch, OwnMixin), "OwnMixin, Branch"),
        ((Branch, ImportanceWeightedMixin, torch.nn.Module), "ImportanceWeightedMixin, Branch, Module"),
    ],
)
def test_wrong_order_of_bases_is_refused(bases, order):
    """A class with the mixin after LightningModule is refused, and the order in the message works."""
    with pytest.raises(TypeError, match=rf"must come before LightningModule.*Write class Own\({order}\)\."):
        type("Own", bases, {})
    right = type("Own", tuple(sorted(bases, key=lambda base: not issubclass(base, ImportanceWeightedMixin))), {})
    type("Deeper", (right,), {})
    type("Joined", (right, Branch), {})


class Deaf(L.LightningModule):
    def __init_subclass__(cls, **kwargs):
        pass


def test_wrong_order_without_init_subclass():
    """If a base class keeps Python from calling the mixin's check, the first training step raises."""

    class Own(Deaf, ImportanceWeightedMixin):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 4)

        def training_step(self, batch, batch_idx):
            return self.weighted_loss(F.cross_entropy(self.net(batch[0]), batch[1], reduction="none"))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(RuntimeError, match="weighted_loss of Own has no effect"):
        fit(Own(), loader())
    fit(Own(), loader(), moving())


class Without(Weighted):
    """Overrides ``configure_callbacks`` without ``super()``."""

    def configure_callbacks(self):
        return []


class DeepWithout(Without):
    pass


@pytest.mark.parametrize("kind", [Without, DeepWithout])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}])
def test_configure_callbacks_without_super_raises(kind, settings):
    """An override of ``configure_callbacks`` without ``super()`` raises in the first training step."""
    remedy = rf"weighted_loss of {kind.__name__} has no effect.*\[\*super\(\)\.configure_callbacks\(\), \.\.\.\]"
    with pytest.raises(RuntimeError, match=remedy):
        fit(kind(), loader(), **settings)


def test_configure_callbacks_with_super():
    """The remedy works: ``configure_callbacks`` with ``super()``."""

    class With(Weighted):
        def configure_callbacks(self):
            return [*super().configure_callbacks(), L.Callback()]

    assert len(fair_callbacks(fit(With(), loader()))) == 1


@pytest.mark.parametrize("by", ["trainer", "data module", "nobody"])
def test_override_is_allowed_if_callback_is_elsewhere(by):
    """Without ``super()`` the callback may be in the Trainer or in a FairDataModule, or not wanted."""
    module = Without()
    module.fair_sampling = by != "nobody"
    data = FairDataModule(KeysAndNames(), fair=moving()) if by == "data module" else loader()
    fit(module, data, *([moving()] if by == "trainer" else []))
    assert any((step.weights != 1.0).any() for step in module.steps) == (by != "nobody")


def test_later_trainer_without_callback_raises():
    """That an earlier Trainer had the callback does not count."""
    module = Without()
    fit(module, loader(), moving(), limit_train_batches=2)
    with pytest.raises(RuntimeError, match="has no effect"):
        fit(module, loader())


def test_override_in_validation():
    """Without a callback, validation and its sanity check get the plain mean."""
    module, fitted = Without(), trainer(num_sanity_val_steps=2)
    fitted.validate(module, loader(shuffle=False), verbose=False)
    with pytest.raises(RuntimeError, match="has no effect"):
        fitted.fit(module, loader(), loader(shuffle=False))
    assert fitted.global_step == 0


@pytest.mark.parametrize("callbacks", [(), (moving(),)])
@pytest.mark.parametrize("kind", [Weighted, Without])
def test_overfit_batches_with_mixin(kind, callbacks):
    """With ``overfit_batches`` the callback is off, and the loss is the plain mean."""
    module = kind()
    fit(module, loader(shuffle=False), *callbacks, overfit_batches=2)
    assert all((step.weights == 1.0).all() for step in module.steps)


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", [(), (moving(),)])
@pytest.mark.parametrize("search", ["lr_find", "scale_batch_size"])
def test_tuner_trains_without_callbacks(search, callbacks, tmp_path):
    """The tuner empties the Trainer's callbacks during its search, which is no error."""

    class Data(KeysAndNames):
        batch_size = 2

        def train_dataloader(self):
            return loader(self.data, batch_size=self.batch_size)

        def val_dataloader(self):
            return loader(self.data, shuffle=False)

    module = Without() if callbacks else Weighted()
    tuned = trainer(*callbacks, default_root_dir=tmp_path, max_epochs=1)
    tuner = Tuner(tuned)
    if search == "lr_find":
        tuner.lr_find(module, datamodule=Data(), num_training=5)
    else:
        tuner.scale_batch_size(module, datamodule=Data(), max_trials=2, steps_per_trial=2)
    assert module.steps
    tuned.fit(module, datamodule=Data())
    assert (module.steps[-1].weights != 1.0).any()


def test_loaded_module_has_weights(tmp_path):
    """A module loaded from a checkpoint, and a training that is resumed, have weights."""
    fitted = fit(Weighted(), loader(), limit_train_batches=4)
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    module = Weighted.load_from_checkpoint(tmp_path / "last.ckpt")
    assert module.weighted_loss(torch.tensor([1.0, 3.0])) == 2.0
    fit(module, loader(), ckpt=tmp_path / "last.ckpt", max_epochs=2)
    assert len(module.steps) == BATCHES


def test_module_in_module_raises():
    """A module with the mixin inside the trained module has no effect, which is an error."""

    class Outer(Plain):
        def __init__(self):
            super().__init__()
            self.inner = Weighted()

        def training_step(self, batch, batch_idx):
            return self.inner.weighted_loss(self.losses(*batch[:2]))

    with pytest.raises(RuntimeError, match="Call weighted_loss of the module that the Trainer trains"):
        fit(Outer(), loader(), moving())


@pytest.mark.slow
def test_compiled_override_raises():
    """A compiled module without the callback raises too."""

    class Own(Compiled):
        def configure_callbacks(self):
            return []

    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="weighted_loss of Own has no effect"):
        fit(torch.compile(Own(), backend="eager"), loader())
    fit(torch.compile(Own(), backend="eager"), loader(), moving(), limit_train_batches=2)


# -- outside of training ---------------------------------------------------------------------------------------


def test_plain_mean_outside_training():
    """Weighted loss is the plain mean outside of training."""
    losses = torch.tensor([1.0, 3.0])
    assert Weighted().weighted_loss(losses) == 2.0
    assert Weighted().eval().weighted_loss(losses, torch.tensor([0, 1])) == 2.0


def test_plain_mean_in_validation():
    """Weighted loss is the plain mean in validation."""
    means = []

    class Watching(Weighted):
        def validation_step(self, batch, batch_idx):
            losses = self.losses(*batch[:2])
            means.append((self.weighted_loss(losses).item(), losses.mean().item()))

    module, fitted = Watching(), trainer(moving(), val_check_interval=7)
    with recorded_draws() as draws:
        fitted.fit(module, loader(), loader(shuffle=False))
    assert len(means) > 20
    assert all(weighted == mean for weighted, mean in means)
    assert wrong_steps(module.steps, draws) == 0
    fitted.validate(module, loader(shuffle=False), verbose=False)
    assert all(weighted == mean for weighted, mean in means)


def test_validation_losses_are_not_reported():
    """Validation losses do not reach the controller."""

    def ratio_and_losses(val):
        module, fair = Weighted(), moving(feedback_delay=1)
        trainer(fair, val_check_interval=7).fit(module, loader(), val)
        return fair.controller.trained_mix.tolist(), fair.controller.ema_loss.tolist()

    assert ratio_and_losses(None) == ratio_and_losses(loader(shuffle=False))


# -- every way to train ----------------------------------------------------------------------------------------


class Manual(Weighted):
    """Trains with manual optimization, and returns the loss or None: both have no meaning then."""

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


@pytest.mark.parametrize("workers", WORKERS)
def test_manual_optimization(workers):
    """Weights and losses are right under manual optimization."""
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


def test_lbfgs_batch_counts_once():
    """A batch whose closure runs several times counts once."""
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
def test_every_precision(precision):
    """Weights are right in every precision."""
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
    """Has no records, because a graph cannot hold them: the tests compare the returned losses."""

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))


class Returned(L.Callback):
    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append((outputs["loss"].item(), batch))


@pytest.mark.slow
def test_compiled_module_compiles_once():
    """Weights are right in a compiled module, which is compiled once."""
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
    assert module._step_correction is None


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("per_step", [1, 4])
def test_accumulated_gradient(workers, per_step):
    """One optimizer step at learning rate 1: the parameters move by the mean of the weighted gradients."""
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
    """A batch without visible labels, in reverse order and without some of the samples."""

    __slots__ = ("parts",)

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


@pytest.mark.parametrize("workers", WORKERS)
def test_explicit_labels_set_weights(workers):
    """Labels that are passed to ``weighted_loss`` decide the weights."""
    module, fair = Explicit(), moving(feedback_delay=1, loss_ema_decay=0.5)
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers, collate_fn=Hidden), fair)
    assert [len(step.indices) for step in module.steps] == [5] * BATCHES
    assert wrong_steps(module.steps, draws) == 0
    assert_losses_of(module.steps, fair)


def test_dropped_samples_raise():
    """Dropped samples without labels raise an error that names the remedy."""
    with pytest.raises(ValueError, match=r"got 5 losses, but 8 samples were drawn.*weighted_loss\(losses, labels\)"):
        fit(Implicit(), loader(collate_fn=Hidden), moving())


@pytest.mark.parametrize(
    ("shape", "match"),
    [((), r"got shape \(\)"), ((BATCH, 3), r"got shape \(8, 3\)"), ((BATCH, 1), r"got shape \(8, 1\)")],
)
def test_bad_loss_shape_is_refused(shape, match):
    """Losses of a wrong shape are refused."""

    class Wrong(Weighted):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(torch.ones(shape, requires_grad=True))

    with pytest.raises(ValueError, match=match):
        fit(Wrong(), loader(), moving())


def test_weight_check_can_fail():
    """The check of the weights can fail."""
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(), moving())
    step = module.steps[10]
    probs, _ = draws[own_draw(step, draws)]
    assert as_expected(step, probs, by_target)
    assert not as_expected(step, np.roll(probs, 1), by_target)


class PassesClasses(Weighted):
    """Passes the classes of the batch to ``weighted_loss``, although groups of them are balanced."""

    def record(self, x, y, index):
        return self.weighted_loss(self.losses(x, y), y)


class Adjusted(Weighted):
    """A step that serves every setting, and records what was added to the logits."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.added = []

    def losses(self, x, y):
        logits = self.net(x)
        adjusted = self.adjusted_logits(logits)
        self.added.append(None if adjusted is logits else (adjusted - logits).detach())
        return F.cross_entropy(adjusted, y, reduction="none")


class PassesOthers(Adjusted):
    """Passes labels of other samples to ``adjusted_logits``."""

    def losses(self, x, y):
        return F.cross_entropy(self.adjusted_logits(self.net(x), (y + 1) % 4), y, reduction="none")


def test_labels_of_other_logits_warn():
    """The same for labels of ``adjusted_logits``, which are used only if losses are fed back."""
    for lambda2, expected in ((0.3, 1), (0.0, 0)):
        with warnings_about("adjusted_logits(logits, labels) got samples of other classes") as messages:
            fit(PassesOthers(), loader(), moving(correction="logits", lambda2=lambda2), max_epochs=2)
        assert len(messages) == expected


@pytest.mark.parametrize("groups", [True, False])
def test_labels_of_other_classes_warn(groups):
    """Labels that are as many as were drawn, but of other classes, give one warning."""
    classes = Indexed().targets.numpy()
    fair = FairSampling(labels=(3 - classes) * 2 + np.arange(160) % 2 if groups else classes)
    with warnings_about("got samples of other") as messages:
        fit(PassesClasses(), loader(), fair, max_epochs=2)
    assert len(messages) == groups
    assert all("got samples of other groups than were drawn" in message for message in messages)


def test_labels_in_other_numbers_warn():
    """Names are numbered in sorted order; numbers of the batch that are passed to weighted_loss are others."""
    with warnings_about("weighted_loss(losses, labels)") as messages:
        fit(PassesClasses(), loader(Named()), FairSampling(), max_epochs=2)
    assert len(messages) == 1
    assert "(ant = 0, bee = 1, cow = 2, zebra = 3), and batch[1] has other numbers" in messages[0]
    with warnings_about("weighted_loss(losses, labels)") as messages:
        fit(Weighted(), loader(Named()), FairSampling(), max_epochs=2)
    assert not messages


# -- logits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("correction", ["weights", "logits", "none"])
def test_one_step_serves_every_correction(correction, workers):
    """Weights and offsets are those of the batch's own draw, or one and nothing, and nobody is warned."""
    module, fair = Adjusted(), moving(correction=correction, reference="uniform", lambda2=0.0)
    with recorded_draws() as draws, warnings_about("training_step") as warned:
        fit(module, loader(num_workers=workers), fair)
    assert movement(draws) > 0.05
    assert warned == []
    for step, added in zip(module.steps, module.added, strict=True):
        probs, _ = draws[own_draw(step, draws)]
        weights = 0.25 / probs[step.labels] if correction == "weights" else np.ones(len(step.labels))
        np.testing.assert_allclose(step.weights, weights, rtol=1e-5)
        assert (added is None) == (correction != "logits")
        if added is not None:
            np.testing.assert_allclose(added, np.broadcast_to(np.log(probs / 0.25), added.shape), atol=1e-5)


@pytest.mark.parametrize("feedback_to", ["draw", "objective"])
@pytest.mark.parametrize("correction", ["weights", "logits", "none"])
def test_losses_that_are_fed_back(correction, feedback_to):
    """Fed back to the draw are losses without weight and adjustment; to the objective, those that it has."""
    settings = {"feedback_to": feedback_to, "feedback_delay": 1, "loss_ema_decay": 0.8}
    module, fair = Adjusted(), moving(correction=correction, reference="uniform", **settings)
    raw = []
    plain = module.net.forward
    module.net.forward = lambda x: raw.append(plain(x)) or raw[-1]
    fit(module, loader(), fair)
    losses = [None] * 4
    for step, logits in zip(module.steps, raw, strict=True):
        costs = F.cross_entropy(logits.detach(), torch.tensor(step.labels), reduction="none").numpy()
        has_adjusted = correction == "logits" and feedback_to == "objective"
        losses = reference.follow_losses(losses, step.labels, step.losses if has_adjusted else costs, 0.8)
    np.testing.assert_allclose(fair.controller.ema_loss, losses, rtol=1e-5)
    np.testing.assert_allclose(fair.controller.trained_mix.sum(), 1.0)


def test_logits_outside_training():
    """Outside of a training step, and in validation, ``adjusted_logits`` returns its argument itself."""
    logits, same = torch.randn(2, 4), []
    assert Adjusted().adjusted_logits(logits) is logits

    class Validating(Adjusted):
        def validation_step(self, batch, batch_idx):
            logits = self.net(batch[0])
            same.append(self.adjusted_logits(logits) is logits)

        def on_train_batch_end(self, *args):
            same.append(self.adjusted_logits(logits) is logits)

    module = Validating()
    trainer(moving(correction="logits"), val_check_interval=7).fit(module, loader(), loader(shuffle=False))
    assert len(same) > 40
    assert all(same)
    assert module.adjusted_logits(logits) is logits


def test_adjusted_logits_without_fair_sampling_raises():
    """A training that lost its FairSampling is an error in ``adjusted_logits`` too."""

    class Own(Without):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.adjusted_logits(self.net(batch[0])), batch[1])

    with pytest.raises(RuntimeError, match=r"adjusted_logits of Own has no effect.*super\(\)\.configure_callbacks"):
        fit(Own(), loader())
    fit(Own(), loader(), moving(correction="logits"))


UNCALLED = {
    "weights": ({}, {}, "did not call self.weighted_loss(losses), so its loss has no importance weights"),
    "weights, not fed back": ({"lambda2": 0.0}, {}, "so its loss has no importance weights. Return"),
    "logits": ({"correction": "logits"}, {}, "did not call self.adjusted_logits(logits)"),
    "losses": ({"correction": "none"}, {"lambda2": 0.0}, "self.weighted_loss(losses), so no losses are fed back"),
}


@pytest.mark.parametrize(("settings", "remedy", "words"), UNCALLED.values(), ids=UNCALLED)
def test_step_that_calls_nothing_warns_once(settings, remedy, words):
    """A step that does not call what its setting needs is told once; each remedy ends the warning."""

    class Own(ImportanceWeightedMixin, Plain):
        pass

    with warnings_about("training_step did not call") as warned:
        fit(Own(), loader(), moving(**settings), max_epochs=2)
    assert len(warned) == 1
    assert words in warned[0]
    remedies = [(Adjusted, settings), (Own, {**settings, **remedy, "correction": "none", "lambda2": 0.0})]
    if "adjusted_logits" in warned[0]:
        remedies.append((Own, {**settings, "logits": "net"}))
    for module, changed in remedies:
        with warnings_about("training_step did not call") as warned:
            fit(module(), loader(), moving(**changed))
        assert warned == []


def test_module_without_mixin_is_told_of_logits():
    """The warning of a module without the mixin names corrections that need none, and these give no warning."""
    for lambda2 in (0.0, 0.3):
        with warnings_about("The batches are balanced") as warned:
            fit(Plain(), loader(), moving(lambda2=lambda2))
        (message,) = warned
        assert "ImportanceWeightedMixin" in message
        assert ("feeds no losses back" in message) == (lambda2 > 0)
    assert (
        "FairSampling(correction='logits') corrects the outputs of its last linear layer (logits='model.fc'" in message
    )
    assert "correction='none', lambda2=0.0" in message
    for settings in ({"correction": "logits"}, {"correction": "logits", "logits": "net"}, {"correction": "none"}):
        with warnings_about("The batches are balanced") as warned:
            fit(Plain(), loader(), moving(**{"lambda2": 0.0, **settings}))
        assert warned == []
    with warnings_about("feeds no losses back") as warned:
        fit(Plain(), loader(), moving(correction="none"))
    assert len(warned) == 1


class CompiledAdjusted(Compiled):
    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        return self.weighted_loss(F.cross_entropy(self.adjusted_logits(self.net(x)), y, reduction="none"))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"lambda2": 0.0}, {"feedback_to": "objective"}], ids=str)
def test_compiled_logits_compile_once(settings):
    """A compiled module that adjusts its logits is compiled once, and trains as one that is not compiled."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    modules = [CompiledAdjusted(), CompiledAdjusted()]
    for module, run in zip(modules, (torch.compile(modules[0], backend=counting), modules[1]), strict=True):
        fit(run, loader(), moving(correction="logits", reference="uniform", **settings), max_epochs=2)
        assert module._step_correction is None
    assert len(graphs) == 1
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)
