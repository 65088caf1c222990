"""The hook that adjusts the logits of a module that nobody changed."""

import copy
import logging
import pickle

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning_helpers import (
    BATCHES,
    WORKERS,
    Indexed,
    Named,
    fit,
    loader,
    movement,
    moving,
    recorded_draws,
    trainer,
    warnings_about,
)
from lightning_utilities.core import rank_zero
from torch import nn
from torch.nn import functional as F

from lightning_fair import FairSampling, FairStream, ImportanceWeightedMixin
from lightning_fair.integration.callback import find_callback


class Net(nn.Module):
    def __init__(self, outputs=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, outputs)

    def forward(self, x):
        return self.fc(self.body(x).relu())


class Classifier(L.LightningModule):
    """A user's module, which knows nothing of the plugin."""

    def __init__(self, net=None, lr=0.1):
        super().__init__()
        self.model, self.lr = net or Net(), lr

    def logits(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y, *_ = batch
        return F.cross_entropy(self.logits(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Adjusting(ImportanceWeightedMixin, Classifier):
    """The same with the mixin."""

    def logits(self, x):
        return self.adjusted_logits(self.model(x))


class Watching(Classifier):
    """Records what the hook adds in each call of the network."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = []  # indices of the samples, and the offsets of the logits

    def logits(self, x):
        adjusted = self.model(x)
        with torch.no_grad():
            self.added = (adjusted - self.model(x)).detach()
        return adjusted

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.steps.append((batch[2].tolist(), self.added))
        return loss


def adjusting(**settings):
    """A callback whose p moves and that corrects the logits to another mix than the target."""
    logits = {"correction": "logits", "logits": "model.fc", "reference": "uniform"}
    return moving(**{**logits, "lambda2": 0.0, **settings})


def assert_offsets(steps, draws, reference=(0.25,) * 4):
    """Check that each step added the offsets of its own draw."""
    assert movement(draws) > 0.05
    for indices, added in steps:
        (probs,) = [probs for probs, drawn in draws.values() if set(indices) <= set(drawn)]
        expected = np.broadcast_to(np.log(probs / np.array(reference)), added.shape)
        np.testing.assert_allclose(added, expected, rtol=1e-4, atol=1e-5)


def parameters(module):
    return [p.tolist() for p in module.parameters()]


def hooks_of(module):
    return [name for name, part in module.named_modules() if part._forward_hooks]


# -- which submodule -----------------------------------------------------------------------------------------------


def lines_of_fit(module, fair, **settings):
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler, log = Handler(), rank_zero.log  # each package of Lightning puts a logger of its own there
    log.addHandler(handler)
    try:
        fit(module, loader(), fair, fast_dev_run=True, **settings)
    finally:
        log.removeHandler(handler)
    return [line for line in lines if "adjusts the logits" in line]


def test_named_submodule():
    """The output of the named submodule is adjusted, and the log says nothing of a search."""
    module = Watching()
    with recorded_draws() as draws:
        fit(module, loader(), adjusting())
    assert len(module.steps) == BATCHES
    assert_offsets(module.steps, draws)
    assert lines_of_fit(Watching(), adjusting()) == []


def test_only_fitting_layer_is_found():
    """Without a name the only linear layer with as many outputs as classes is adjusted, and the log names it."""
    module = Watching()
    with recorded_draws() as draws:
        fit(module, loader(), adjusting(logits=None))
    assert_offsets(module.steps, draws)
    (line,) = lines_of_fit(Watching(), adjusting(logits=None))
    assert "FairSampling adjusts the logits of model.fc (6 -> 4)" in line


class Binary(Watching):
    """Has one or two logits for two classes."""

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        z = self.logits(x)
        self.steps.append((index.tolist(), self.added))
        return F.cross_entropy(z, y) if z.shape[1] == 2 else F.binary_cross_entropy_with_logits(z[:, 0], y.float())


@pytest.mark.parametrize("outputs", [1, 2])
def test_head_of_two_classes(outputs):
    """With two classes a layer with one or two outputs fits; one output gets the difference of the offsets."""
    module = Binary(Net(outputs))
    with recorded_draws() as draws:
        fit(module, loader(Indexed((120, 40))), adjusting(logits=None, target_probs=(0.7, 0.3)))
    if outputs == 1:
        for indices, added in module.steps:
            (p,) = [p for p, drawn in draws.values() if set(indices) <= set(drawn)]
            np.testing.assert_allclose(added[:, 0], np.log(p[1] / p[0]), rtol=1e-4, atol=1e-5)
    else:
        assert_offsets(module.steps, draws, (0.5, 0.5))


class OneByOne(nn.Module):
    """Calls a network for one sample at a time."""

    def __init__(self, net, how):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, x):
        return torch.vmap(self.net)(x) if self.how == "vmap" else torch.stack([self.net(row) for row in x])


@pytest.mark.parametrize("batch_size", [2, 8])
@pytest.mark.parametrize("how", ["loop", "vmap"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_head_of_two_classes_for_one_sample(outputs, how, batch_size):
    """The head may be called for one sample: its two outputs are two logits, and its one output is one."""
    module = Binary(OneByOne(Net(outputs), how))
    settings = {"logits": "model.net.fc", "target_probs": (0.7, 0.3)}
    with recorded_draws() as draws:
        fit(module, loader(Indexed((120, 40)), batch_size=batch_size), adjusting(**settings))
    for indices, added in module.steps:
        (p,) = [p for p, drawn in draws.values() if set(indices) <= set(drawn)]
        expected = np.log(p[1] / p[0]) if outputs == 1 else np.log(2.0 * p)
        np.testing.assert_allclose(added, np.broadcast_to(expected, added.shape), rtol=1e-4, atol=1e-5)
    assert module.steps


class TwoHeads(Classifier):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(4, 4)


class Convolutional(Classifier):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1), nn.Flatten())
        self.projection = nn.Linear(4, 7)


class Teacher(Watching):
    """Has a copy of its network that is not trained."""

    def __init__(self):
        super().__init__()
        self.a_teacher = copy.deepcopy(self.model).requires_grad_(False)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)


def test_frozen_layer_is_no_candidate():
    """The head of a frozen teacher is not taken, and not listed."""
    module = Teacher()
    with recorded_draws() as draws:
        fit(module, loader(), adjusting(logits=None))
    assert_offsets(module.steps, draws)


class Distilled(Teacher):
    """Computes the teacher with gradients."""

    def training_step(self, batch, batch_idx):
        x = batch[0]
        plain = F.linear(self.teacher.body(x).relu(), self.teacher.fc.weight, self.teacher.fc.bias)
        assert torch.equal(self.teacher(x), plain)
        return super().training_step(batch, batch_idx)


def test_named_teacher_warns_once():
    """The logits of a frozen teacher are not adjusted, and one warning says that the loss is not corrected."""
    with warnings_about("did not call teacher.fc with gradients") as warned:
        fit(Distilled(), loader(), adjusting(logits="teacher.fc"), max_epochs=2)
    assert len(warned) == 1
    with warnings_about("did not call") as warned:
        fit(Distilled(), loader(), adjusting())
    assert warned == []


CANDIDATES = {
    "two heads": (TwoHeads, None, ["Several", "4 outputs", "auxiliary (4 -> 4)", "model.fc (6 -> 4)"], "model.fc"),
    "none": (Convolutional, None, ["No linear layer", "projection (4 -> 7)", "correction='weights'"], "model.2"),
    "wrong name": (Classifier, "model.head", ["no submodule 'model.head'", "model.fc (6 -> 4)"], "model.fc"),
}


@pytest.mark.parametrize(("kind", "name", "words", "remedy"), CANDIDATES.values(), ids=CANDIDATES)
def test_error_lists_candidates(kind, name, words, remedy):
    """Without exactly one fitting layer, and for a wrong name, an error lists the candidates before the first step."""
    module = kind()
    before = parameters(module)
    with pytest.raises(ValueError, match="FairSampling") as error:
        fit(module, loader(), adjusting(logits=name))
    for word in words:
        assert word in str(error.value)
    assert "FairSampling(logits='" in str(error.value)
    assert parameters(module) == before
    assert hooks_of(module) == []
    fit(module, loader(), adjusting(logits=remedy))
    assert parameters(module) != before


class Tuples(Classifier):
    """Returns the features too."""

    def __init__(self, kind):
        super().__init__()
        self.model.fc.register_forward_hook(lambda module, args, output: kind(output))

    def logits(self, x):
        out = self.model(x)
        return out[0] if isinstance(out, tuple) else out.float() @ torch.eye(out.shape[-1])[:, :4]


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (lambda z: (z, z), TypeError, "The output of model.fc must be a floating point tensor of logits, got tuple"),
        (lambda z: z.argmax(1), TypeError, "The output of model.fc must be .*, got torch.int64"),
        (lambda z: torch.cat((z, z), 1), ValueError, r"The output of model.fc must be one logit.*got shape \(8, 8\)"),
    ],
    ids=["tuple", "integers", "other shape"],
)
def test_output_that_is_no_logits(kind, error, words):
    """An output that is no tensor of logits is an error that names the submodule."""
    module = Tuples(kind)
    with pytest.raises(error, match=words):
        fit(module, loader(), adjusting())


# -- when ----------------------------------------------------------------------------------------------------------


class Everywhere(Watching):
    """Calls the network in every stage, also as a teacher."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.elsewhere = []

    def look(self, x):
        adjusted = self.model(x)
        plain = F.linear(self.model.body(x).relu(), self.model.fc.weight, self.model.fc.bias)
        self.elsewhere.append((adjusted - plain).abs().max().item())

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.look(batch[0])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            self.look(batch[0])

    test_step = predict_step = validation_step

    def on_train_epoch_end(self):
        self.look(torch.ones(2, 4))

    on_train_start = on_validation_start = on_train_end = on_train_epoch_end


def test_only_in_training_steps():
    """Nothing is added in validation, sanity check, test, prediction, hooks of the module and under no_grad."""
    module, fair = Everywhere(), adjusting()
    fitted = trainer(fair, val_check_interval=7, inference_mode=False, max_epochs=2)
    with recorded_draws() as draws:
        fitted.fit(module, loader(), loader(shuffle=False))
    for run in (fitted.test, fitted.validate, fitted.predict):
        run(module, loader(shuffle=False))
    assert len(module.elsewhere) > 100
    assert max(module.elsewhere) == 0.0
    assert_offsets(module.steps, draws)


@pytest.mark.parametrize("how", ["end", "exception", "interrupt", "error at set-up", "max_steps"])
def test_gone_after_fit(how):
    """The hook is gone after the fit, however it ends, and a second fit adds the offsets once."""

    class Fails(Watching):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 3 and how == "exception":
                raise ArithmeticError
            if batch_idx == 3 and how == "interrupt":
                raise KeyboardInterrupt

    class Refuses(L.Callback):
        def on_train_start(self, trainer, pl_module):
            if how == "error at set-up":
                raise ArithmeticError

    module, settings = Fails(), {"max_steps": 3} if how == "max_steps" else {}
    fitted = trainer(adjusting(), Refuses(), **settings)
    try:
        fitted.fit(module, loader())
    except (ArithmeticError, SystemExit):
        assert how != "end"
    assert hooks_of(module) == []
    assert "process_dataloader" not in vars(fitted.strategy)
    second, how = Watching(module.model), "end"
    with recorded_draws() as draws:
        fit(second, loader(), adjusting())
    assert len(second.steps) == BATCHES
    assert_offsets(second.steps, draws)


def test_hook_of_user_stays():
    """A hook of the user's own stays, and gets the adjusted logits if it was registered later."""
    module, seen = Watching(), []
    module.model.fc.register_forward_hook(lambda *_: seen.append(1))
    fit(module, loader(), adjusting())
    assert len(seen) == 2 * BATCHES
    assert hooks_of(module) == ["model.fc"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copy_is_a_teacher(duplicate):
    """A network that is copied in a training step adds nothing, and the original goes on."""

    class Teaching(Watching):
        def training_step(self, batch, batch_idx):
            teacher = duplicate(self.model)
            x, hidden = batch[0], self.model.body(batch[0]).relu()
            plain = F.linear(hidden, self.model.fc.weight, self.model.fc.bias)
            assert torch.equal(teacher(x), plain)
            return super().training_step(batch, batch_idx)

    module = Teaching()
    with recorded_draws() as draws:
        fit(module, loader(), adjusting())
    assert_offsets(module.steps, draws)


def test_saved_network_has_no_plugin(tmp_path):
    """A network that is saved in the fit loads without a hook that acts."""

    class Saves(Classifier):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            torch.save(self.model, tmp_path / "net.pt")

    module = Saves()
    fit(module, loader(), adjusting())
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), module.model(x))


# -- the same as the mixin -----------------------------------------------------------------------------------------


class Manual:
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class SecondOrder:
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)


class TwoViews:
    """Calls the head twice a step."""

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        views = [super(TwoViews, self).training_step((view, y, index), batch_idx) for view in (x, x + 0.1)]
        return sum(views)


class Recomputes:
    """Computes the network again in the backward pass."""

    def logits(self, x):
        return torch.utils.checkpoint.checkpoint(super().logits, x, use_reentrant=False)


class Base:
    pass


KINDS = {
    "plain": (Base, {}),
    "found": (Base, {"logits": None}),
    "losses to the draw": (Base, {"lambda2": 0.3}),
    "losses to the objective": (Base, {"lambda2": 0.3, "feedback_to": "objective"}),
    "manual": (Manual, {}),
    "LBFGS": (SecondOrder, {"lambda2": 0.3}),
    "two views": (TwoViews, {"lambda2": 0.3}),
    "checkpointed": (Recomputes, {}),
}


def trained(base, kind, fair, precision="32-true", **settings):
    module = type("Own", (kind, base), {})()
    fit(module, loader(num_workers=0), fair, precision=precision, max_epochs=-1, max_steps=50, **settings)
    return parameters(module)


@pytest.mark.parametrize(("kind", "settings"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "precision", ["32-true", *(pytest.param(p, marks=pytest.mark.slow) for p in ("bf16-mixed", "bf16-true", "64-true"))]
)
def test_hook_equals_mixin(kind, settings, precision):
    """After 50 steps the parameters are those of the mixin, bit for bit, and not those without a correction."""
    hook = adjusting(loss_ema_decay=0.5, **settings)
    mixin = adjusting(loss_ema_decay=0.5, **{**settings, "logits": None})
    with_hook = trained(Classifier, kind, hook, precision)
    assert with_hook == trained(Adjusting, kind, mixin, precision)
    assert hook.controller.ema_loss.tolist() == mixin.controller.ema_loss.tolist() or not settings.get("lambda2")
    assert hook.controller.trained_mix.tolist() == mixin.controller.trained_mix.tolist()
    assert with_hook != trained(Classifier, kind, adjusting(correction="none", logits=None), precision)


def test_hook_equals_mixin_when_accumulating():
    """The same with gradients that are accumulated over batches."""
    settings = {"max_epochs": 3, "max_steps": -1, "accumulate_grad_batches": 4}
    modules = [Classifier(), Adjusting()]
    for module, name in zip(modules, ("model.fc", None), strict=True):
        fit(module, loader(), adjusting(logits=name), **settings)
    assert parameters(modules[0]) == parameters(modules[1])


@pytest.mark.parametrize("workers", WORKERS)
def test_offsets_of_own_draw(workers):
    """The offsets are those of the batch's own draw, with workers that draw ahead too."""
    module = Watching()
    with recorded_draws() as draws:
        fit(module, loader(num_workers=workers), adjusting(), accumulate_grad_batches=2)
    assert_offsets(module.steps, draws)


def test_both_are_refused():
    """A hook and ``adjusted_logits`` in one step are an error, and each alone is not."""
    with pytest.raises(ValueError, match=r"Both self.adjusted_logits and FairSampling\(logits='model.fc'\)"):
        fit(Adjusting(), loader(), adjusting())

    class Unused(ImportanceWeightedMixin, Watching):
        pass

    module = Unused()
    with recorded_draws() as draws:
        fit(module, loader(), adjusting())  # the mixin without a call
    assert_offsets(module.steps, draws)
    fit(Adjusting(), loader(), adjusting(logits=None))


@pytest.mark.parametrize("feedback_to", ["draw", "objective"])
def test_resume_is_exact(feedback_to, tmp_path):
    """A training that is resumed within an epoch has the parameters of one that was not stopped, bit for bit."""
    settings = {"lambda2": 0.3, "feedback_to": feedback_to, "feedback_delay": 2}
    whole, resumed = Classifier(), Classifier()
    keep = ModelCheckpoint(tmp_path, "cut", every_n_train_steps=27)
    fit(whole, loader(), adjusting(**settings), keep, max_epochs=2, enable_checkpointing=True)
    fit(resumed, loader(), adjusting(**settings), max_epochs=2, ckpt=tmp_path / "cut.ckpt")
    assert parameters(resumed) == parameters(whole) != parameters(Classifier())


@pytest.mark.slow
def test_searches_and_fit(tmp_path):
    """After a search for the learning rate, the offsets of the fit are added once."""
    module, fair = Watching(), adjusting()
    searched = trainer(fair, default_root_dir=tmp_path)
    before = parameters(module)
    Tuner(searched).lr_find(module, loader(), num_training=5, update_attr=False)
    assert hooks_of(module) == []
    assert parameters(module) == before
    assert any(added.abs().max() > 0.1 for _, added in module.steps)
    module.steps.clear()
    with recorded_draws() as draws:
        searched.fit(module, loader())
    assert len(module.steps) == BATCHES
    assert_offsets(module.steps, draws)


def arriving():
    """Samples of three of the four classes, and of the last one only at the end."""
    data = Indexed((60, 60, 60, 60))
    order = np.random.default_rng(0).permutation(180).tolist() * 4 + list(range(180, 240))
    return [data[index] for index in order]


@pytest.mark.parametrize("workers", WORKERS)
def test_stream(workers):
    """A class that a stream lacks at present leaves the softmax, and the offsets are those of the batch's own draw."""

    class Streaming(Watching):
        def training_step(self, batch, batch_idx):
            draw = find_callback(self.trainer)._run.current.draw
            self.draws.append((draw.probs, draw.reference))
            return super().training_step(batch, batch_idx)

    module = Streaming()
    module.draws = []
    stream = FairStream(arriving(), batch_size=8, label_fn=lambda sample: sample[1], buffer_size=64)
    data = torch.utils.data.DataLoader(stream, batch_size=8, num_workers=workers)
    settings = {"num_classes": 4, "correction": "logits", "logits": "model.fc"}
    fit(module, data, FairSampling(**settings), limit_train_batches=60)
    assert len(module.draws) > 20
    lacks = 0
    for (probs, reference), (_, added) in zip(module.draws, module.steps, strict=True):
        expected = np.log(np.maximum(probs, 1e-12) / reference)
        lacks += probs[3] == 0
        np.testing.assert_allclose(added, np.broadcast_to(expected, added.shape), rtol=1e-3, atol=1e-4)
    assert lacks > 10


class Validated(Watching):
    """Logs the recall of each class, and records the reference of each draw."""

    def __init__(self):
        super().__init__()
        self.references, self.hits = [], []

    def training_step(self, batch, batch_idx):
        self.references.append(find_callback(self.trainer)._run.current.draw.reference)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        self.hits.append((y, self.model(x).argmax(1) == y))

    def on_validation_epoch_end(self):
        y, hit = (torch.cat(each) for each in zip(*self.hits, strict=True))
        self.hits.clear()
        self.log_dict({f"val/recall/{c}": hit[y == c].float().mean() for c in range(4)})


@pytest.mark.parametrize(
    "preset", [{"preset": "worst_class"}, {"preset": "long_tail", "feedback": "val/recall"}], ids=str
)
def test_preset_moves_objective_of_unchanged_module(preset):
    """One line is enough: the recall of the validation moves the reference, and the offsets follow it."""
    module, fair = Validated(), FairSampling(**preset, logits="model.fc", feedback_delay=1, horizon=16)
    with recorded_draws() as draws:
        trainer(fair, max_epochs=4).fit(module, loader(), loader(shuffle=False))
    assert np.ptp(module.references, axis=0).max() > 0.05
    for mix, step in zip(module.references, module.steps, strict=True):
        (probs,) = [probs for probs, drawn in draws.values() if drawn == step[0]]
        np.testing.assert_allclose(step[1], np.broadcast_to(np.log(probs / mix), step[1].shape), rtol=1e-4, atol=1e-5)


class OfSamples(Watching):
    """Computes the gradient of each sample with ``torch.func``, beside the loss."""

    def gradients(self, x, y):
        def loss(parameters, x, y):
            z = torch.func.functional_call(self.model, parameters, (x[None],))
            return F.cross_entropy(z, y[None])

        detached = {name: p.detach() for name, p in self.model.named_parameters()}
        return torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(detached, x, y)["fc.bias"]

    def training_step(self, batch, batch_idx):
        gradients = self.gradients(*batch[:2])
        loss = super().training_step(batch, batch_idx)
        (expected,) = torch.autograd.grad(loss, self.model.fc.bias, retain_graph=True)
        torch.testing.assert_close(gradients.mean(0), expected)
        return loss


class OnlyOfSamples(OfSamples):
    """Trains with these gradients alone, as private training does."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.model.fc.bias.grad = self.gradients(*batch[:2]).mean(0)
        optimizer.step()


@pytest.mark.parametrize("kind", [OfSamples, OnlyOfSamples])
def test_gradients_of_samples(kind):
    """The hook acts within ``torch.func.grad`` and ``vmap``, and the step counts as one that called it."""
    with warnings_about("did not call") as warned:
        fit(kind(), loader(), adjusting())
    assert warned == []


@pytest.mark.parametrize("feedback_to", ["draw", "objective"])
def test_gradients_of_samples_with_loss_feedback(feedback_to):
    """Within a transform losses cannot be summed: an error says so, with remedies."""
    fair = adjusting(lambda2=0.3, feedback_to=feedback_to)
    with pytest.raises(RuntimeError, match=r"model.fc was called within a transform of torch.func .* lambda2=0.0"):
        fit(OfSamples(), loader(), fair)
    fit(OfSamples(), loader(), adjusting(lambda2=0.0))


# -- labels that the batch numbers otherwise -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Classifier, Adjusting])
def test_other_class_numbers_are_refused(kind):
    """If the batch numbers the classes in another way, the offsets would hit other outputs: an error."""
    name = "model.fc" if kind is Classifier else None
    with pytest.raises(ValueError, match=r"FairSampling's class numbers, and batch\[1\] has others") as error:
        fit(kind(), loader(Named()), adjusting(target_probs="uniform", logits=name))
    for settings in ({"labels": "scan"}, {"labels": lambda data: data.numbers}):
        fit(kind(), loader(Named()), adjusting(target_probs="uniform", logits=name, **settings))
    fit(kind(), loader(Named()), adjusting(target_probs="uniform", logits=None, correction="weights"))
    assert "labels='scan'" in str(error.value)
    assert "correction='weights'" in str(error.value)


@pytest.mark.parametrize("kind", [Classifier, Adjusting])
def test_groups_are_refused(kind):
    """If groups are balanced, and the outputs are classes, an error says so, whatever the number of outputs is."""
    classes = Indexed().targets.numpy()
    settings = {
        "labels": 2 * classes + np.arange(len(classes)) % 2,
        "target_probs": "uniform",
        "logits": "model.fc" if kind is Classifier else None,
    }
    with pytest.raises(ValueError, match=r"one logit for each of the 8 groups .* got shape \(8, 4\)") as error:
        fit(kind(), loader(), adjusting(**settings))
    assert "correction='weights'" in str(error.value)
    with pytest.raises(ValueError, match=r"be the groups that FairSampling balances, and batch\[1\] merges these"):
        fit(kind(Net(8)), loader(), adjusting(**settings))
    fit(kind(), loader(), adjusting(**{**settings, "correction": "weights", "logits": None}))


# -- steps that do not call it -------------------------------------------------------------------------------------


class Bypasses(Classifier):
    def logits(self, x):
        return F.linear(self.model.body(x).relu(), self.model.fc.weight, self.model.fc.bias)


class Reentrant(Classifier):
    """Computes the network without gradients first, and again in the backward pass."""

    def logits(self, x):
        return torch.utils.checkpoint.checkpoint(super().logits, x.requires_grad_(), use_reentrant=True)


class ReentrantAdjusting(Adjusting):
    def logits(self, x):
        return torch.utils.checkpoint.checkpoint(super().logits, x.requires_grad_(), use_reentrant=True)


def test_head_that_is_called_without_gradients_warns_once():
    """A reentrant checkpoint gives the loss logits that the hook leaves as they are; the mixin works there."""
    with warnings_about("did not call model.fc with gradients") as warned:
        fit(Reentrant(), loader(), adjusting(), max_epochs=2)
    assert len(warned) == 1
    modules = ReentrantAdjusting(), Adjusting()
    for module in modules:
        with warnings_about("did not call") as warned:
            fit(module, loader(), adjusting(logits=None))
        assert warned == []
    assert parameters(modules[0]) == parameters(modules[1])


def test_head_that_is_not_called_warns_once():
    """If the training step does not call the submodule, one warning says so."""
    with warnings_about("did not call model.fc with gradients") as warned:
        fit(Bypasses(), loader(), adjusting(), max_epochs=2)
    assert len(warned) == 1
    with warnings_about("did not call") as warned:
        fit(Bypasses(), loader(), adjusting(correction="none", logits=None))
    assert warned == []


# -- compiled ------------------------------------------------------------------------------------------------------


def compiled(way, backend="eager"):
    """Return a module that is compiled in one of the ways that users have, and its part with the records."""
    torch._dynamo.reset()
    if way == "module":
        module = Classifier()
        return torch.compile(module, backend=backend), module
    module = Watching()
    if way == "network":
        module.model = torch.compile(module.model, backend=backend)
    elif way == "in place":
        module.model.compile(backend=backend)
    elif way == "head":
        module.model.fc = torch.compile(module.model.fc, backend=backend)
    if way != "head":
        module.model(torch.ones(8, 4))  # compiled before there is a hook
    module.model(torch.ones(8, 4))
    return module, module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.fc", None])
@pytest.mark.parametrize("way", ["network", "in place", "head"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_network(way, name, backend):
    """The hook acts in a network that was compiled, and run, before the fit, and in two fits."""
    module, _ = compiled(way, backend)
    for _ in range(2):
        module.steps.clear()
        with recorded_draws() as draws:
            fit(module, loader(), adjusting(logits=name))
        assert_offsets(module.steps, draws)
    x = torch.randn(8, 4)
    plain = F.linear(module.model.body(x).relu(), module.model.fc.weight, module.model.fc.bias)
    torch.testing.assert_close(module.model(x), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.fc", None])
@pytest.mark.parametrize("lambda2", [0.0, 0.3])
def test_compiled_module(name, lambda2):
    """A module that is compiled as a whole trains as the one that is not, with one graph for the training step."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    fair = adjusting(logits=name, lambda2=lambda2)
    whole, module = compiled("module", counting)
    fit(whole, loader(), fair, max_steps=15)
    eager = Classifier()
    fit(eager, loader(), adjusting(logits=name, lambda2=lambda2), max_steps=15)
    for one, other in zip(module.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert len(graphs) == 1
    assert hooks_of(module) == []


def test_head_with_more_outputs_than_the_data_have_classes():
    """A part of the data without the last class: the error names the remedy, which trains the other classes."""
    part = loader(Indexed((80, 40, 40)))
    with pytest.raises(ValueError, match=r"has 3 outputs.*set num_classes=\.\.\. and empty_classes='skip'"):
        fit(Watching(), part, adjusting(logits=None, target_probs="uniform"))
    fair = adjusting(logits=None, target_probs="uniform", num_classes=4, empty_classes="skip")
    fit(Watching(), part, fair)
    np.testing.assert_allclose(fair.controller.q, [1 / 3, 1 / 3, 1 / 3, 0.0])
