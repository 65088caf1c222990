"""Warnings of class weights and of mixed samples, and runs that give none."""

import pytest
import torch
from lightning_helpers import (
    BATCH,
    BATCHES,
    TARGET,
    Indexed,
    Plain,
    Weighted,
    fit,
    loader,
    moving,
    warnings_about,
)
from torch.nn import functional as F
from torch.utils.data import default_collate

from lightning_fair import FairSampling, ImportanceWeightedMixin, importance_weights, logit_adjustment
from lightning_fair.integration.loss_check import LossCheck

W = torch.tensor([1.0, 2.0, 3.0, 4.0])
OTHER = 2.0 * torch.eye(4)  # another head


def one_hot(y, K=4):
    return F.one_hot(y, K).float()


class OfBatch:
    """The losses of a module are a function of the network's outputs and the labels."""

    def __init__(self, losses, **settings):
        super().__init__(**settings)
        self.of_batch = losses

    def training_step(self, batch, batch_idx):
        x, y, *_ = batch
        return self.reduce(self.of_batch(self.net(x), y))


class Own(OfBatch, Weighted):
    """With importance weights."""


class OwnPlain(OfBatch, Plain):
    """The same without the mixin."""


def warned_of(words, module, fair=None, data=None, **settings):
    with warnings_about(words) as warned:
        fit(module, data or loader(), fair or moving(), **settings)
    return warned


# -- class weights ---------------------------------------------------------------------------------------------

WEIGHTED = {
    "cross_entropy": lambda z, y: F.cross_entropy(z, y, weight=W, reduction="none"),
    "label smoothing": lambda z, y: F.cross_entropy(z, y, weight=W, label_smoothing=0.1, reduction="none"),
    "nll_loss": lambda z, y: F.nll_loss(z.log_softmax(1), y, weight=W, reduction="none"),
    "multi_margin_loss": lambda z, y: F.multi_margin_loss(z, y, weight=W, reduction="none"),
    "one-hot cross_entropy": lambda z, y: F.cross_entropy(z, one_hot(y), weight=W, reduction="none"),
    "weight of BCE": lambda z, y: F.binary_cross_entropy_with_logits(z, one_hot(y), W, reduction="none").mean(1),
    "pos_weight": lambda z, y: F.binary_cross_entropy_with_logits(
        z, one_hot(y), pos_weight=torch.full((4,), 3.0), reduction="none"
    ).mean(1),
    "binary_cross_entropy": lambda z, y: F.binary_cross_entropy(z.sigmoid(), one_hot(y), W, reduction="none").mean(1),
    "focal loss": lambda z, y: (
        (1 - z.softmax(1).gather(1, y[:, None])[:, 0]) ** 2 * F.cross_entropy(z, y, weight=W, reduction="none")
    ),
    "beside another": lambda z, y: F.cross_entropy(z, y, weight=W, reduction="none") + 0.1 * z.square().mean(1),
}


@pytest.mark.parametrize("losses", WEIGHTED.values(), ids=WEIGHTED)
def test_functional_class_weights_warn_once(losses):
    """A functional loss with class weights gives one warning, with and without the mixin."""
    for module in (Own(losses), OwnPlain(losses)):
        (warning,) = warned_of("correct twice", module, max_epochs=2)
        assert "target_probs='prior'" in warning
        assert "reduction='none'" in warning


UNWEIGHTED = {
    "no weights": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "equal weights": lambda z, y: F.cross_entropy(z, y, weight=torch.ones(4), reduction="none"),
    "pos_weight of one": lambda z, y: F.binary_cross_entropy_with_logits(
        z, one_hot(y), pos_weight=torch.ones(4), reduction="none"
    ).mean(1),
    "weights of samples": lambda z, y: F.binary_cross_entropy_with_logits(
        z, one_hot(y), torch.rand(len(y), 4), reduction="none"
    ).mean(1),
    "another target": lambda z, y: (
        F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z @ OTHER, (y + 1) % 4, weight=W, reduction="none")
    ),
    "another number of classes": lambda z, y: (
        F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z[:, :2], y % 2, weight=W[:2], reduction="none")
    ),
    "pixels": lambda z, y: F.cross_entropy(
        z[:, :, None, None].expand(-1, -1, 3, 3), y[:, None, None].expand(-1, 3, 3), weight=W, reduction="none"
    ).mean((1, 2)),
}


@pytest.mark.parametrize("losses", UNWEIGHTED.values(), ids=UNWEIGHTED)
def test_losses_without_class_weights(losses):
    """A loss without class weights, and one with weights for something else, give no warning."""
    assert warned_of("correct twice", Own(losses)) == []


OBJECTIVES = {
    "target": ({}, "target_probs='prior'"),
    "uniform": ({"target_probs": "prior", "reference": "uniform"}, "reference='prior'"),
    "mix": ({"target_probs": "prior", "reference": TARGET}, "reference='prior'"),
    "logits": ({"correction": "logits"}, "target_probs='prior'"),
    "logits to uniform": ({"reference": "uniform", "correction": "logits"}, "reference='prior'"),
    "none": ({"correction": "none"}, "target_probs='prior'"),
    "none with a reference": ({"reference": "prior", "correction": "none"}, "target_probs='prior'"),
}


@pytest.mark.parametrize(("settings", "remedy"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_remedy_for_class_weights(settings, remedy):
    """Class weights correct twice unless the loss stands for the prior, which the remedy brings about."""
    (warning,) = warned_of("correct twice", Own(WEIGHTED["cross_entropy"]), moving(**settings))
    assert f"or set {remedy}." in warning
    fair = moving(**{**settings, **eval(f"dict({remedy})")})
    assert warned_of("correct twice", Own(WEIGHTED["cross_entropy"]), fair) == []


def test_class_weights_without_mixin():
    """Without the mixin the loss stands for the drawn mix, whatever the reference is."""
    for settings, expected in (({"reference": "prior"}, 1), ({"target_probs": "prior", "reference": "uniform"}, 0)):
        assert len(warned_of("correct twice", OwnPlain(WEIGHTED["cross_entropy"]), moving(**settings))) == expected


def test_class_weights_without_values():
    """Weights on the meta device, of a module that gets its values later, are passed over."""
    module = Plain()
    module.loss = torch.nn.CrossEntropyLoss(weight=torch.ones(4, device="meta"))
    module.pair_loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(4, device="meta"))
    assert LossCheck(FairSampling().settings, module)


@pytest.mark.parametrize("in_sum", [True, False])
def test_class_weights_of_two_classes(in_sum):
    """The usual ``pos_weight`` of a binary loss is noticed."""

    def losses(z, y):
        z = z[:, 0] if in_sum else z[:, :1]
        y = y.float().reshape(z.shape)
        return F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor([9.0]), reduction="none").flatten()

    data = loader(Indexed((120, 40)))
    assert len(warned_of("correct twice", Own(losses), FairSampling(), data)) == 1


def by_environment(**settings):
    """A callback that balances eight groups: the classes in two environments."""
    y = Indexed().targets
    return FairSampling(labels=2 * y + torch.arange(len(y)) % 2, **settings)


def test_class_weights_of_groups():
    """With groups, targets cannot be compared with labels, and weights of any number of classes count."""
    assert len(warned_of("correct twice", Own(WEIGHTED["cross_entropy"]), by_environment())) == 1
    assert warned_of("correct twice", Own(UNWEIGHTED["no weights"]), by_environment()) == []


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
def test_weighted_modules_warn_once(losses, target, expected):
    """A loss module with class weights gives one warning."""
    module = Weighted()
    module.criteria = torch.nn.ModuleList(losses)
    with warnings_about("correct twice") as warned:
        fit(module, loader(), moving(target_probs=target), fast_dev_run=True)
    assert len(warned) == expected


def test_module_and_function_warn_once():
    """A module with class weights is warned of at set-up, and not again when it is called."""
    module = Own(torch.nn.CrossEntropyLoss(W, reduction="none"))
    assert len(warned_of("correct twice", module, max_epochs=2)) == 1


def test_remedies_for_class_weights():
    """Divided by their mean over the samples, class weights leave the scale of torch's mean."""
    y = Indexed().targets
    z = torch.randn(len(y), 4, generator=torch.Generator().manual_seed(0))
    scaled = W / W[y].mean()
    expected = F.cross_entropy(z, y, weight=W)
    assert F.cross_entropy(z, y, weight=W, reduction="none").mean() > 1.2 * expected
    torch.testing.assert_close(F.cross_entropy(z, y, weight=scaled, reduction="none").mean(), expected)


# -- losses that are no softmax ------------------------------------------------------------------------------------

OF_EACH_CLASS = {
    "BCE": lambda z, y: F.binary_cross_entropy_with_logits(z, one_hot(y), reduction="none").mean(1),
    "BCE of probabilities": lambda z, y: F.binary_cross_entropy(z.sigmoid(), one_hot(y), reduction="none").mean(1),
    "smoothed BCE": lambda z, y: F.binary_cross_entropy_with_logits(z, 0.9 * one_hot(y) + 0.025, reduction="none").mean(
        1
    ),
    "hinge": lambda z, y: F.multi_margin_loss(z, y, reduction="none"),
}


@pytest.mark.parametrize("losses", OF_EACH_CLASS.values(), ids=OF_EACH_CLASS)
def test_adjusted_logits_without_softmax_warn_once(losses):
    """A sigmoid or a hinge of each class gives one warning if logits are adjusted, and the remedy none."""
    fair = moving(correction="logits", lambda2=0.0)
    (warning,) = warned_of("loss of each class", adjusting_too(Own(losses)), fair, max_epochs=2)
    assert "correction='weights'" in warning
    assert warned_of("loss of each class", adjusting_too(Own(losses)), moving(correction="weights")) == []


SOFTMAX = {
    "classes": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "soft labels": lambda z, y: F.cross_entropy(z, soft(y), reduction="none"),
    "tags beside": lambda z, y: (
        F.cross_entropy(z, y, reduction="none")
        + F.binary_cross_entropy_with_logits(z @ OTHER, (torch.rand(len(y), 4) > 0.5).float(), reduction="none").mean(1)
    ),
}


@pytest.mark.parametrize("losses", SOFTMAX.values(), ids=SOFTMAX)
def test_softmax_gives_no_warning(losses):
    """The cross entropy of a softmax gives no warning, and other targets beside it do not either."""
    assert warned_of("loss of each class", adjusting_too(Own(losses)), moving(correction="logits", lambda2=0.0)) == []


@pytest.mark.parametrize("in_sum", [True, False])
def test_one_logit_gives_no_warning(in_sum):
    """The sigmoid of one logit is the softmax of two classes."""

    def losses(z, y):
        z = z[:, 0] if in_sum else z[:, :1]
        return F.binary_cross_entropy_with_logits(z, y.float().reshape(z.shape), reduction="none").flatten()

    fair, data = FairSampling(correction="logits"), loader(Indexed((120, 40)))
    module = Own(lambda z, y: losses(module.adjusted_logits(z[:, :1]), y))
    assert warned_of("loss of each class", module, fair, data) == []


# -- offsets that are scaled ---------------------------------------------------------------------------------------


class Scaled(Plain):
    """A cosine classifier: the logits are scaled, before or after the offsets."""

    def __init__(self, scale=None, temperature=False):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0)) if scale is None else scale
        self.temperature, self.last = temperature, torch.nn.Identity()

    def losses(self, x, y):
        z = self.last(self.net(x) / self.scale if self.temperature else self.scale * self.net(x))
        return F.cross_entropy(z, y, reduction="none")


class ScaledByMixin(ImportanceWeightedMixin, Scaled):
    def losses(self, x, y):
        return F.cross_entropy(self.adjusted_logits(self.scale * self.net(x)), y, reduction="none")


@pytest.mark.parametrize("temperature", [False, True])
@pytest.mark.parametrize("scale", [None, 16.0])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_scaled_offsets_warn_once(scale, temperature, precision):
    """Offsets that are scaled with the logits give one warning, and each remedy none."""
    settings = {"correction": "logits", "lambda2": 0.0, "reference": "uniform"}
    words, runs = "after their offsets were added", {"max_epochs": 2, "precision": precision}
    module = Scaled(scale, temperature)
    assert len(warned_of(words, module, moving(**settings, logits="net"), **runs)) == 1
    assert warned_of(words, module, moving(**settings, logits="last"), **runs) == []
    assert warned_of(words, ScaledByMixin(scale), moving(**settings), **runs) == []
    assert warned_of(words, module, moving(), **runs) == []


NOT_SCALED = {
    "classes": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "flattened": lambda z, y: F.cross_entropy(z[None].flatten(0, 1), y, reduction="none"),
    "distillation": lambda z, y: (
        F.cross_entropy(z, y, reduction="none")
        + F.kl_div((z / 4.0).log_softmax(1), (8.0 * one_hot(y)).softmax(1), reduction="none").sum(1)
        + F.kl_div((z / 4.0).log_softmax(1), torch.rand(len(y), 4).softmax(1), reduction="none").sum(1)
    ),
    "focal loss": lambda z, y: (
        (1 - z.softmax(1).gather(1, y[:, None])[:, 0]) ** 2 * F.cross_entropy(z, y, reduction="none")
    ),
    "another head": lambda z, y: (
        F.cross_entropy(z, y, reduction="none") + F.cross_entropy(2.0 * (z @ OTHER), y, reduction="none")
    ),
}


@pytest.mark.parametrize("losses", NOT_SCALED.values(), ids=NOT_SCALED)
def test_no_false_alarm_of_scale(losses):
    """Losses of the adjusted logits themselves give no warning."""
    fair = moving(correction="logits", lambda2=0.0)
    assert warned_of("after their offsets were added", adjusting_too(Own(losses)), fair) == []


# -- mixed samples ---------------------------------------------------------------------------------------------


def roll(y):
    return y.roll(1, 0)


def soft(y, lam=0.7):
    return lam * one_hot(y) + (1 - lam) * one_hot(roll(y))


MIXED = {
    "soft cross entropy": lambda z, y: F.cross_entropy(z, soft(y), reduction="none"),
    "soft and smoothed": lambda z, y: F.cross_entropy(z, soft(y), label_smoothing=0.1, reduction="none"),
    "soft and class weights": lambda z, y: F.cross_entropy(z, soft(y), weight=W, reduction="none"),
    "written out": lambda z, y: -(soft(y) * z.log_softmax(-1)).sum(-1),
    "timm": lambda z, y: torch.sum(-soft(y) * F.log_softmax(z, dim=-1), dim=-1),
    "kl_div": lambda z, y: F.kl_div(z.log_softmax(1), soft(y), reduction="none").sum(1),
    "BCE": lambda z, y: F.binary_cross_entropy_with_logits(z, soft(y), reduction="none").sum(1),
    "by hand": lambda z, y: (
        0.7 * F.cross_entropy(z, y, reduction="none") + 0.3 * F.cross_entropy(z, roll(y), reduction="none")
    ),
    "by hand, half precision": lambda z, y: (
        0.7 * F.cross_entropy(z.half().float(), y, reduction="none")
        + 0.3 * F.cross_entropy(z.half().float(), roll(y), reduction="none")
    ),
    "log softmax by hand": lambda z, y: (
        lambda p: 0.7 * F.nll_loss(p, y, reduction="none") + 0.3 * F.nll_loss(p, roll(y), reduction="none")
    )(z.log_softmax(1)),
}
MIXED |= {
    "beside clean samples": lambda z, y: (
        F.cross_entropy(z @ OTHER, y, reduction="none") + F.cross_entropy(z, soft(y), reduction="none")
    ),
    "by hand, temperature": lambda z, y: (
        F.cross_entropy(z / 2.0, y, reduction="none") + F.cross_entropy(z / 2.0, roll(y), reduction="none")
    ),
}
LEADS_ASTRAY = {
    "prior": {"reference": "prior", "lambda2": 0.0},
    "prior and feedback": {"reference": "prior"},
    "feedback": {},
    "validation moves the objective": {"feedback": "val/recall", "feedback_to": "objective"},
    "logits and feedback": {"correction": "logits"},
    "no correction and feedback": {"correction": "none"},
}


def adjusting_too(module):
    """Let the module adjust its logits, as a step that serves every setting does."""
    of_batch = module.of_batch
    module.of_batch = lambda z, y: of_batch(module.adjusted_logits(z), y)
    return module


@pytest.mark.parametrize("settings", list(LEADS_ASTRAY.values())[:3], ids=list(LEADS_ASTRAY)[:3])
@pytest.mark.parametrize("losses", MIXED.values(), ids=MIXED)
def test_mixed_samples_warn_once(losses, settings):
    """The loss of mixed samples gives one warning with ``reference="prior"`` or loss feedback."""
    (warning,) = warned_of("mixed samples", Own(losses), moving(**settings), limit_train_batches=10, max_epochs=2)
    assert ("correction='none'" in warning) == ("reference" in settings)
    assert ("lambda2=0.0" in warning) == ("lambda2" not in settings)


@pytest.mark.parametrize(
    ("kind", "expected"), [("soft cross entropy", 1), ("by hand", 1), ("one-hot", 0), ("reconstruction", 0)]
)
def test_mixed_samples_of_groups(kind, expected):
    """Mixing is noticed if the labels are groups."""
    losses = {**MIXED, **NOT_MIXED}[kind]
    assert len(warned_of("mixed samples", Own(losses), by_environment(reference="prior"))) == expected


@pytest.mark.parametrize("settings", LEADS_ASTRAY.values(), ids=LEADS_ASTRAY)
def test_remedies_for_mixed_samples(settings):
    """After each remedy nothing depends on the class that a mixed sample was drawn for."""
    losses = MIXED["soft cross entropy"]
    (warning,) = warned_of("mixed samples", adjusting_too(Own(losses)), moving(**settings))
    remedy = eval(f"dict({warning.split('FairSampling(')[1].split(')')[0]})")
    remedies = [remedy, {**remedy, "correction": "logits"}] if "or with correction='logits'" in warning else [remedy]
    assert remedies
    for remedy in remedies:
        module, fair = Weighted(), moving(**{**settings, **remedy})
        module.losses = lambda x, y, module=module: losses(module.adjusted_logits(module.net(x)), y)
        assert warned_of("mixed samples", module, fair) == []
        if fair.settings.correction != "weights":  # else the weights are those of the target, close to one
            assert all((abs(step.weights - 1.0) < 1e-6).all() for step in module.steps)
        assert fair.controller.draws == BATCHES


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (OwnPlain, {"reference": "prior"}),
        (Own, {"lambda2": 0.0}),
        (Own, {"lambda2": 0.0, "target_probs": "prior"}),
        (Own, {"lambda2": 0.0, "target_probs": "prior", "reference": "prior"}),
        (Own, {"lambda2": 0.0, "reference": TARGET}),
        (Own, {"lambda2": 0.0, "reference": "prior", "correction": "none"}),
        (Own, {"lambda2": 0.0, "reference": "prior", "correction": "logits"}),
    ],
    ids=["no mixin", "balanced", "no balancing", "prior twice", "target twice", "none", "logits"],
)
def test_mixing_that_is_allowed(module, settings):
    """Without weights far from one and without feedback, samples may be mixed."""
    assert warned_of("mixed samples", module(MIXED["soft cross entropy"]), moving(**settings)) == []


def masked(y):
    return y.masked_fill(torch.arange(len(y)) % 2 == 0, -100)


NOT_MIXED = {
    "classes": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "label smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2, reduction="none"),
    "one-hot": lambda z, y: F.cross_entropy(z, one_hot(y), reduction="none"),
    "smoothed one-hot": lambda z, y: F.cross_entropy(z, one_hot(y), label_smoothing=0.2, reduction="none"),
    "one-hot BCE": lambda z, y: F.binary_cross_entropy_with_logits(z, one_hot(y), reduction="none").sum(1),
    "smoothed BCE": lambda z, y: F.binary_cross_entropy_with_logits(z, 0.9 * one_hot(y) + 0.025, reduction="none").sum(
        1
    ),
    "the same twice": lambda z, y: F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z, y),
    "another head": lambda z, y: (
        F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z @ OTHER, roll(y), reduction="none")
    ),
    "two halves": lambda z, y: (
        F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z, masked(y), reduction="none")
    ),
    "distillation": lambda z, y: (
        F.cross_entropy(z, y, reduction="none")
        + F.kl_div((z / 4.0).log_softmax(1), torch.rand(len(y), 4).softmax(1), reduction="none").sum(1)
    ),
    "entropy": lambda z, y: F.cross_entropy(z, y, reduction="none") - (z.softmax(1) * z.log_softmax(1)).sum(1),
    "reconstruction": lambda z, y: F.binary_cross_entropy_with_logits(
        z.repeat(1, 3), torch.rand(len(y), 12), reduction="none"
    ).mean(1),
    "prototypes": lambda z, y: -(torch.rand(len(y), 8).softmax(1) * z.repeat(1, 2).log_softmax(1)).sum(1),
    "contrastive": lambda z, y: F.cross_entropy(z @ z.T, torch.arange(len(y)), reduction="none"),
    "regression": lambda z, y: (z[:, 0] - torch.rand(len(y))) ** 2,
    "real and fake": lambda z, y: (
        F.binary_cross_entropy_with_logits(z[:, 0], torch.full((len(y),), 0.9))
        + F.binary_cross_entropy_with_logits(2 * z[:, 0], torch.rand(len(y)))
        + F.cross_entropy(z, y, reduction="none")
    ),
    "importance weights": lambda z, y: torch.rand(len(y)) * F.cross_entropy(z, y, reduction="none"),
}


@pytest.mark.parametrize("losses", NOT_MIXED.values(), ids=NOT_MIXED)
def test_no_false_alarm_of_mixing(losses):
    """Losses that only look like those of mixed samples give no warning."""
    assert warned_of("mixed samples", Own(losses), moving(reference="prior"), max_epochs=2) == []


def mixing_collate(mix, share=1.0):
    def collate(samples):
        x, y, index = default_collate(samples)
        return (*mix(x, y), index) if torch.rand(()) < share else (x, one_hot(y), index)

    return collate


@pytest.mark.parametrize("kind", ["MixUp", "CutMix"])
@pytest.mark.parametrize("place", ["collate_fn", "on_after_batch_transfer", "training_step"])
def test_torchvision_mixing(kind, place):
    """MixUp and CutMix of torchvision are noticed wherever they are applied."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    mix = getattr(v2, kind)(num_classes=4)

    def images(x, y):
        x, y = mix(x.repeat(1, 16).reshape(-1, 1, 8, 8), y)
        return x.flatten(1)[:, :4], y

    class Mixing(Own):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            x, y, index = batch
            return (*images(x, y), index) if place == "on_after_batch_transfer" else batch

        def training_step(self, batch, batch_idx):
            batch = images(*batch[:2]) if place == "training_step" else batch
            return super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    module = Mixing(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    data = loader(collate_fn=mixing_collate(images)) if place == "collate_fn" else loader()
    assert len(warned_of("mixed samples", module, moving(reference="prior"), data)) == 1


def test_mixing_of_some_batches():
    """Mixing is noticed if only some batches are mixed, or only later epochs."""
    torch.manual_seed(0)
    module = Own(lambda z, y: F.cross_entropy(z, y, reduction="none"))
    data = loader(collate_fn=mixing_collate(lambda x, y: (x, soft(y)), share=0.3))
    assert len(warned_of("mixed samples", module, None, data)) == 1

    class Later(Weighted):
        def losses(self, x, y):
            return F.cross_entropy(self.net(x), soft(y) if self.current_epoch == 2 else y, reduction="none")

    assert warned_of("mixed samples", Later(), max_epochs=2) == []
    assert len(warned_of("mixed samples", Later(), max_epochs=3)) == 1


# -- logits that are not those of the loss -------------------------------------------------------------------------


class Layers(Plain):
    """Its only linear layer with as many outputs as classes is ``net.0``, and others may follow."""

    def __init__(self, *after):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), *(layer() for layer in after))

    def losses(self, x, y):
        return F.cross_entropy(self.net(x).flatten(1), y, reduction="none")


class LayersByMixin(ImportanceWeightedMixin, Layers):
    def losses(self, x, y):
        return F.cross_entropy(self.net[1:](self.adjusted_logits(self.net[0](x))).flatten(1), y, reduction="none")


def convolution():
    return torch.nn.Sequential(torch.nn.Unflatten(1, (4, 1, 1)), torch.nn.Conv2d(4, 4, 1))


class Product(torch.nn.Module):
    """A linear layer that is no ``nn.Linear``."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x @ self.weight


FOLLOWS = {
    "batch norm": [lambda: torch.nn.BatchNorm1d(4)],
    "layer norm": [lambda: torch.nn.LayerNorm(4)],
    "convolution": [torch.nn.ReLU, convolution],
    "product": [torch.nn.ReLU, Product],
}


TO_UNIFORM = {"correction": "logits", "lambda2": 0.0, "reference": "uniform"}


@pytest.mark.parametrize("layers", FOLLOWS.values(), ids=FOLLOWS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_layer_after_adjusted_logits_warns_once(layers, precision):
    """If a layer follows the adjusted logits, one warning says so, and the remedies give none."""
    words, runs = "got the offsets of correction='logits', but the loss", {"max_epochs": 2, "precision": precision}
    (warning,) = warned_of(words, Layers(*layers), moving(**TO_UNIFORM), **runs)
    assert "The output of net.0" in warning
    assert "FairSampling(logits=...)" in warning
    assert warned_of(words, Layers(*layers, torch.nn.Flatten), moving(**TO_UNIFORM, logits="net"), **runs) == []
    assert warned_of(words, Layers(*layers), moving(reference="uniform"), **runs) == []
    (warning,) = warned_of(words, LayersByMixin(*layers), moving(**TO_UNIFORM), **runs)
    assert "The tensor that self.adjusted_logits returned" in warning


class OtherHead(Layers):
    """The loss has logits of another head."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 4)

    def losses(self, x, y):
        return F.cross_entropy(self.head(x), y, reduction="none") + self.net(x).square().mean(1)


def test_loss_of_another_head_warns_once():
    words = "The output of net.0 got the offsets"
    assert len(warned_of(words, OtherHead(), moving(**TO_UNIFORM, logits="net.0"), max_epochs=2)) == 1
    assert warned_of(words, OtherHead(), moving(**TO_UNIFORM, logits="head")) == []


OF_LOGITS = {
    "as they are": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "soft labels": lambda z, y: F.cross_entropy(z, soft(y), reduction="none"),
    "casts and views": lambda z, y: F.cross_entropy(z.double()[:, :, None].permute(2, 0, 1)[0], y, reduction="none"),
    "mean of views": lambda z, y: F.cross_entropy(torch.stack((z, z)).mean(0), y, reduction="none"),
    "pooling": lambda z, y: F.cross_entropy(
        (torch.full((len(y), 1, 2), 0.5) @ torch.stack((z, z), 1))[:, 0], y, reduction="none"
    ),
    "log of softmax": lambda z, y: F.nll_loss(z.softmax(1).log(), y, reduction="none"),
    "residual": lambda z, y: F.cross_entropy(z + z.detach() @ OTHER, y, reduction="none"),
    "gather": lambda z, y: -z.log_softmax(1).gather(1, y[:, None])[:, 0],
    "another head": lambda z, y: F.cross_entropy(z, y, reduction="none") + F.cross_entropy(z @ OTHER, y),
    "something else": lambda z, y: (z @ OTHER).square().mean(1),
}


@pytest.mark.parametrize("losses", OF_LOGITS.values(), ids=OF_LOGITS)
@pytest.mark.parametrize("kind", ["hook", "mixin"])
def test_losses_of_adjusted_logits(losses, kind):
    """The loss of adjusted logits, and of views, casts and means of them, gives no warning."""
    module = OwnPlain(losses) if kind == "hook" else adjusting_too(Own(losses))
    assert warned_of("got the offsets", module, moving(**TO_UNIFORM), max_epochs=2) == []


class Other(Indexed):
    """The target of the loss is batch[1], and batch[2] is another attribute of as many classes."""

    def __getitem__(self, index):
        x, y, _ = super().__getitem__(index)
        return x, y, int(self.other[index])

    @property
    def other(self):
        return self.targets.roll(7)


def test_other_targets_warn_once():
    """If the head predicts something else than the balanced labels, one warning says so, and the remedies none."""
    words, data, losses = "targets of the loss are not the labels", loader(Other()), OF_LOGITS["as they are"]
    fair = lambda **own: moving(**{**TO_UNIFORM, "target_probs": "uniform", "labels": 2, **own})  # noqa: E731
    for module in (OwnPlain(losses), adjusting_too(Own(losses))):
        (warning,) = warned_of(words, module, fair(), data, max_epochs=2)
        assert "FairSampling(labels=1)" in warning
        assert warned_of(words, module, fair(labels=1), data) == []
        assert warned_of(words, module, fair(correction="weights"), data) == []


# -- labels that are smoothed --------------------------------------------------------------------------------------

SMOOTHED = {
    "cross_entropy": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1, reduction="none"),
    "probabilities": lambda z, y: F.cross_entropy(z, 0.9 * one_hot(y) + 0.025, reduction="none"),
    "one-hot": lambda z, y: F.cross_entropy(z, one_hot(y), label_smoothing=0.1, reduction="none"),
    "mixed": lambda z, y: F.cross_entropy(z, soft(y), label_smoothing=0.1, reduction="none"),
    "timm": lambda z, y: (lambda log: -0.9 * log.gather(-1, y[:, None])[:, 0] - 0.1 * log.mean(-1))(z.log_softmax(-1)),
    "by hand": lambda z, y: F.cross_entropy(z, y, reduction="none") - 0.1 * z.log_softmax(1).sum(1),
}


@pytest.mark.parametrize("losses", SMOOTHED.values(), ids=SMOOTHED)
def test_smoothed_labels_warn_once(losses):
    """Smoothed labels give one warning if logits are adjusted, and the remedy none."""
    for module in (OwnPlain(losses), adjusting_too(Own(losses))):
        (warning,) = warned_of("are smoothed toward uniform", module, moving(**TO_UNIFORM), max_epochs=2)
        assert "correction='weights'" in warning
    module = adjusting_too(Own(losses))
    assert warned_of("are smoothed", module, moving(**{**TO_UNIFORM, "correction": "weights"})) == []
    assert warned_of("are smoothed", module, moving(correction="logits", lambda2=0.0)) == []  # close to the target


def test_smoothed_label_of_one_logit_warns_once():
    """The same of one logit."""

    def losses(z, y):
        return F.binary_cross_entropy_with_logits(z[:, 0], 0.9 * y + 0.05, reduction="none")

    fair, data = (
        FairSampling(correction="logits", target_probs="prior", reference="uniform"),
        loader(Indexed((120, 40))),
    )
    module = Own(lambda z, y: losses(module.adjusted_logits(z[:, :1]), y))
    assert len(warned_of("are smoothed", module, fair, data)) == 1
    plain = Own(lambda z, y: losses(module.adjusted_logits(z[:, :1]), (y - 0.05) / 0.9))
    assert warned_of("are smoothed", plain, fair, data) == []


def minimizer(correction, smoothing):
    """Return the softmax that minimizes the expected loss of draws from ``p`` over free logits, one row for each x.

    Also returns the posterior at the uniform mix.
    """
    joint = torch.tensor([[0.45, 0.02, 0.01], [0.03, 0.3, 0.02], [0.02, 0.03, 0.12]], dtype=torch.float64)
    given_class, p, uniform = joint / joint.sum(0), torch.tensor([0.9, 0.09, 0.01]), torch.full((3,), 1 / 3)
    logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    x, y = (index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    drawn = (given_class * p)[x, y]
    if correction == "weights":
        drawn = drawn * importance_weights(y, uniform, p)
    offsets = logit_adjustment(p, uniform) if correction == "logits" else 0.0
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        losses = F.cross_entropy((logits + offsets)[x], y, label_smoothing=smoothing, reduction="none")
        (drawn * losses).sum().backward()
        return (drawn * losses).sum()

    optimizer.step(closure)
    return logits.detach().softmax(1), given_class / given_class.sum(1, keepdim=True)


def test_remedies_for_smoothed_labels():
    """Smoothed labels let the rarest class win after an adjustment; each remedy gives the posterior, or it smoothed."""
    wrong, posterior = minimizer("logits", 0.1)
    assert posterior.argmax(1).tolist() == [0, 1, 2]
    assert wrong.argmax(1).tolist() == [2, 1, 2]
    p = torch.tensor([0.9, 0.09, 0.01])
    drawn = posterior * p / (posterior * p).sum(1, keepdim=True)
    moved = (0.9 * drawn + 0.1 / 3) / (3 * p)
    torch.testing.assert_close(wrong, moved / moved.sum(1, keepdim=True), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(minimizer("logits", 0.0)[0], posterior, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(minimizer("weights", 0.1)[0], 0.9 * posterior + 0.1 / 3, atol=1e-4, rtol=0.0)


NOT_SMOOTHED = {
    **SOFTMAX,
    "distillation": lambda z, y: (
        F.cross_entropy(z, y, reduction="none")
        + F.kl_div((z / 4.0).log_softmax(1), torch.rand(len(y), 4).softmax(1), reduction="none").sum(1)
    ),
    "entropy": lambda z, y: F.cross_entropy(z, y, reduction="none") - (z.softmax(1) * z.log_softmax(1)).sum(1),
    "one-hot": lambda z, y: F.cross_entropy(z, one_hot(y), reduction="none"),
    "gather": OF_LOGITS["gather"],
}


@pytest.mark.parametrize("losses", NOT_SMOOTHED.values(), ids=NOT_SMOOTHED)
def test_no_false_alarm_of_smoothing(losses):
    """Soft labels that are the probabilities of the samples may be adjusted."""
    assert warned_of("are smoothed", adjusting_too(Own(losses)), moving(**TO_UNIFORM), max_epochs=2) == []


# -- every way to train ----------------------------------------------------------------------------------------


class Manual(Own):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class SecondOrder(Own):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)


@pytest.mark.parametrize("losses", [WEIGHTED["cross_entropy"], MIXED["by hand"]])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Own, {"fast_dev_run": True}),
        (Own, {"accumulate_grad_batches": 4}),
        (Own, {"precision": "bf16-mixed"}),
        (Own, {"precision": "bf16-true"}),
        (Manual, {}),
        (SecondOrder, {"limit_train_batches": 4}),
    ],
    ids=["one step", "accumulation", "mixed precision", "half precision", "manual", "LBFGS"],
)
def test_every_optimization(kind, settings, losses):
    """Both warnings come with every kind of optimization."""
    cast = lambda z, y: losses(z.float(), y)  # noqa: E731
    expected = "correct twice" if losses is WEIGHTED["cross_entropy"] else "mixed samples"
    assert len(warned_of(expected, kind(cast), **settings)) == 1


def test_look_changes_nothing(monkeypatch):
    """The parameters after the training are the same without the look."""

    def trained():
        torch.manual_seed(0)
        module = Own(MIXED["soft cross entropy"])
        fit(module, loader(), moving())
        return module.net.weight.tolist()

    with_look = trained()
    monkeypatch.setattr("lightning_fair.integration.loss_check.LossCheck.look", lambda *_: None)
    assert trained() == with_look


def test_first_steps_only(monkeypatch):
    """Only the first steps of an epoch are looked at."""
    looks = []
    terms = "lightning_fair.integration.loss_check.find_terms"
    monkeypatch.setattr(terms, lambda loss, *_: looks.append(loss) or [])
    fit(Weighted(), loader(), moving(), max_epochs=2)
    assert len(looks) == 2 * 8


class Checkpointed(Own):
    def __init__(self, *args):
        super().__init__(*args)
        self.norm, self.calls = torch.nn.BatchNorm1d(4), 0

    def loss_of(self, x, y):
        self.calls += 1
        return self.of_batch(self.net(self.norm(x)), y)

    def training_step(self, batch, batch_idx):
        return self.weighted_loss(torch.utils.checkpoint.checkpoint(self.loss_of, *batch[:2], use_reentrant=False))


@pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"), reason="this torch does not show hooks of saved tensors"
)
def test_checkpointed_function_is_not_computed_again():
    """It would count a batch twice in the statistics of a batch norm, so a loss inside is not seen."""
    module = Checkpointed(MIXED["by hand"])
    assert warned_of("mixed samples", module) == []
    assert module.calls == module.norm.num_batches_tracked == 2 * module.trainer.global_step


class Freed(ImportanceWeightedMixin, Plain):
    """Runs a part of the graph backward before the rest."""

    def training_step(self, batch, batch_idx):
        x, y, _ = batch
        losses = F.cross_entropy(self.net(x), y, weight=W, reduction="none")
        losses.sum().backward()
        return self.weighted_loss(losses.detach() * self.net(x).sum(1)) + 0.0 * losses.sum().detach()


def test_graph_that_is_freed():
    assert warned_of("correct twice", Freed()) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_module(backend):
    """A compiled module trains as before, with one graph for the training step."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    module = Own(WEIGHTED["cross_entropy"])
    warned = warned_of("correct twice", torch.compile(module, backend=counting))
    assert len(graphs) == 1
    assert len(warned) == (backend == "eager")  # else the loss is inside one compiled function


@pytest.mark.slow
@pytest.mark.parametrize("losses", [WEIGHTED["cross_entropy"], MIXED["by hand"]])
def test_compiled_network(losses):
    """A compiled network in a module that is not compiled hides nothing."""
    torch._dynamo.reset()
    module = Own(losses)
    module.net.compile(backend="aot_eager")
    expected = "correct twice" if losses is WEIGHTED["cross_entropy"] else "mixed samples"
    assert len(warned_of(expected, module)) == 1


# -- several labels a sample -----------------------------------------------------------------------------------

BCE = F.binary_cross_entropy_with_logits
POSITIVE = torch.tensor([9.0, 2.0, 1.0, 5.0])


def label_sets(K=4):
    """Labels of which each sample has some, the last one alone or all but the last."""
    labels = torch.rand(BATCH, K, generator=torch.Generator().manual_seed(0)) < 0.4
    labels[:, -1] = ~labels[:, :-1].any(1)
    return labels


def warned_of_sets(losses, words, num_classes=4, **settings):
    """Look at a loss of scores and float label sets as the callback does."""
    labels = label_sets()
    z = torch.randn(BATCH, 4, requires_grad=True)
    with warnings_about(words) as warned:
        check = LossCheck(FairSampling(**settings).settings, Own(None))
        check.look(losses(z, labels.float()).mean(), labels, num_classes)
        check.end_epoch()
    return warned


def mix(y):
    return 0.7 * y + 0.3 * roll(y)


OF_SETS = {
    "BCE": lambda z, y: BCE(z, y),
    "BCE of probabilities": lambda z, y: F.binary_cross_entropy(z.sigmoid(), y),
    "without the class none": lambda z, y: BCE(z[:, :3], y[:, :3]),
    "smoothed": lambda z, y: BCE(z, 0.9 * y + 0.05),
    "shared softmax": lambda z, y: F.cross_entropy(z, y / y.sum(1, keepdim=True)),
    "distillation": lambda z, y: BCE(z, y) + BCE(z, torch.rand(BATCH, 4)),
    "another head": lambda z, y: BCE(z, y) + BCE(z @ OTHER, roll(y)),
    "another task": lambda z, y: BCE(z, y) + F.cross_entropy(z @ OTHER, torch.arange(BATCH) % 4, weight=W),
    "another width": lambda z, y: BCE(z, y) + BCE(z[:, :2], mix(y[:, :2]), pos_weight=POSITIVE[:2]),
    "weights of samples": lambda z, y: BCE(z, y, torch.rand(BATCH, 4)),
    "equal weights": lambda z, y: BCE(z, y, torch.ones(4), pos_weight=torch.ones(4)),
}


@pytest.mark.parametrize("num_classes", [4, None])
@pytest.mark.parametrize("losses", OF_SETS.values(), ids=OF_SETS)
def test_losses_of_label_sets(losses, num_classes):
    """The loss of several labels a sample is none of mixed samples, and has no class weights by itself."""
    assert warned_of_sets(losses, "mixed samples", num_classes, reference="prior") == []
    assert warned_of_sets(losses, "correct twice", num_classes) == []


MIXED_SETS = {
    "MixUp": lambda z, y: BCE(z, mix(y)),
    "MixUp without the class none": lambda z, y: BCE(z[:, :3], mix(y[:, :3])),
    "by hand": lambda z, y: 0.7 * BCE(z, y) + 0.3 * BCE(z, roll(y)),
    "shared softmax": lambda z, y: F.cross_entropy(z, mix(y / y.sum(1, keepdim=True))),
}


@pytest.mark.parametrize("num_classes", [4, None])
@pytest.mark.parametrize("losses", MIXED_SETS.values(), ids=MIXED_SETS)
def test_mixed_label_sets_warn_once(losses, num_classes):
    (warning,) = warned_of_sets(losses, "mixed samples", num_classes, reference="prior")
    remedy = eval(f"dict({warning.split('FairSampling(')[1].split(')')[0]})")
    assert warned_of_sets(losses, "mixed samples", num_classes, **{"reference": "prior", **remedy}) == []


WEIGHTED_SETS = {
    "weight": lambda z, y: BCE(z, y, W),
    "weight of BCE of probabilities": lambda z, y: F.binary_cross_entropy(z.sigmoid(), y, W),
    "pos_weight": lambda z, y: BCE(z, y, pos_weight=POSITIVE),
    "pos_weight without the class none": lambda z, y: BCE(z[:, :3], y[:, :3], pos_weight=POSITIVE[:3]),
    "pos_weight of smoothed labels": lambda z, y: BCE(z, 0.9 * y + 0.05, pos_weight=POSITIVE),
}


@pytest.mark.parametrize("num_classes", [4, None])
@pytest.mark.parametrize("losses", WEIGHTED_SETS.values(), ids=WEIGHTED_SETS)
def test_class_weights_of_label_sets_warn_once(losses, num_classes):
    (warning,) = warned_of_sets(losses, "correct twice", num_classes)
    assert "target_probs='prior'" in warning
    assert warned_of_sets(losses, "correct twice", num_classes, target_probs="prior") == []


@pytest.mark.parametrize("module", [torch.nn.MultiLabelSoftMarginLoss(W), torch.nn.BCELoss(W)])
def test_modules_with_class_weights_of_label_sets(module):
    plain = Plain()
    plain.loss = module
    with warnings_about("correct twice") as warned:
        LossCheck(FairSampling().settings, plain)
    assert len(warned) == 1
    assert warned[0].startswith("loss has class weights")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_wait_for_gpu():
    """A look does not make the host wait for the GPU."""
    from lightning_fair.integration.loss_check import LossCheck

    check = LossCheck(FairSampling(reference="prior").settings, Own(None))
    z, y = torch.randn(BATCH, 4, device="cuda", requires_grad=True), torch.arange(BATCH) % 4
    losses = MIXED["by hand"](z, y.cuda())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        check.look(losses.mean(), y, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with warnings_about("mixed samples") as warned:
        check.end_epoch()
    assert len(warned) == 1
