"""Lightning modules whose samples have several labels."""

import numpy as np
import pytest
import reference
import torch
from control_helpers import same
from label_set_helpers import K
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_helpers import (
    WORKERS,
    fit,
    loader,
    movement,
    own_draw,
    recorded_draws,
    trainer,
    warnings_about,
)
from tag_helpers import PlainTagger, Tagged, Tagger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import default_collate

from lightning_fair import FairDataModule, FairSampling, FeedbackController

NAMES = ["0", "1", "2", "3", "4", "none"]
pytestmark = pytest.mark.filterwarnings("ignore:The reference needs weights", "ignore:No draws bring the target")


def fair_of(**settings):
    """A callback whose p moves from draw to draw."""
    return FairSampling(**{"target_probs": "sqrt", "lambda2": 0.3, "loss_ema_decay": 0.0, "horizon": 16.0, **settings})


def expected_weights(step, draws, fair, data):
    """The weights of the samples of a step, by the formula."""
    controller = fair.controller
    weights = reference.set_weights(
        data.lists,
        draws[own_draw(step, draws)][0].tolist(),
        controller.reference.tolist(),
        is_prior=fair.settings.reference == "prior",
    )
    return np.array(weights)[step.indices]


def assert_weights(module, draws, fair, data, change=lambda weights: np.minimum(weights, 10.0)):
    assert module.steps
    for step in module.steps:
        np.testing.assert_allclose(step.weights, change(expected_weights(step, draws, fair, data)), rtol=1e-4)


@pytest.fixture
def reports(monkeypatch):
    """What is reported of each batch."""
    reports, original = [], FeedbackController.report

    def report(self, *args, **kwargs):
        reports.append(args)
        original(self, *args, **kwargs)

    monkeypatch.setattr(FeedbackController, "report", report)
    return reports


# -- weights and losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["target", "prior", "uniform"])
@pytest.mark.parametrize("losses_of", ["samples", "labels", "classes"])
@pytest.mark.parametrize("pass_labels", [False, True])
def test_weights_and_losses_are_those_of_the_formula(losses_of, pass_labels, mix, reports):
    data, module = Tagged(), Tagger(losses_of, pass_labels=pass_labels)
    fair = fair_of(reference=mix)
    with recorded_draws() as draws:
        fit(module, loader(data), fair)
    assert movement(draws) > 0.1
    assert_weights(module, draws, fair, data)
    assert len(reports) == len(module.steps) == 20
    for step, (counts, sums, numbers) in zip(module.steps, reports, strict=True):
        sets = [data.lists[index] for index in step.indices]
        means = reference.set_losses(sets, step.losses.tolist(), K)
        np.testing.assert_array_equal(counts, reference.class_sizes(sets, K))
        np.testing.assert_array_equal(numbers, counts)
        seen = counts > 0
        np.testing.assert_allclose((sums / np.maximum(numbers, 1))[seen], np.array(means, float)[seen], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"normalize": True}, lambda weights: weights / weights.mean()),
        ({"exponent": 0.5}, np.sqrt),
        ({"max_weight": 1.2, "reference": "prior"}, lambda weights: np.minimum(weights, 1.2)),
        ({"correction": "none"}, np.ones_like),
        ({"preset": "long_tail", "correction": "weights"}, lambda weights: np.minimum(weights, 10.0)),
        ({"preset": "calibrated", "correction": "none"}, np.ones_like),
    ],
)
def test_settings_change_the_weights(settings, change):
    data, module, fair = Tagged(), Tagger(), fair_of(**{"target_probs": "uniform", **settings})
    with recorded_draws() as draws:
        fit(module, loader(data), fair)
    assert_weights(module, draws, fair, data, change)


@pytest.mark.parametrize("preset", ["long_tail", "worst_class", "calibrated"])
@pytest.mark.parametrize("kind", [Tagger, PlainTagger])
def test_logits_are_refused(preset, kind):
    """The remedies that the error names are tried above, and below for the validation."""
    module = kind()
    fitted = trainer(FairSampling(preset=preset))
    other = "" if preset == "worst_class" else ", or correction='none'"  # with which no validation moves the loss
    match = rf"correction='logits' of preset='{preset}' is for one class.*correction='weights'{other}\."
    with pytest.raises(ValueError, match=match):
        fitted.fit(module, loader(Tagged()))
    assert module.steps == []
    assert "process_dataloader" not in vars(fitted.strategy)


@pytest.mark.parametrize(
    ("losses", "labels", "match"),
    [
        (
            torch.ones(8, 4),
            None,
            r"shape \(batch,\), or one per sample and label, shape \(batch, 5\), got shape \(8, 4\)",
        ),
        (torch.ones(8, 5, 2), None, r"got shape \(8, 5, 2\)"),
        (torch.ones(7), None, r"got 7 losses, but 8 samples were drawn"),
        (torch.ones(8), torch.zeros(8, dtype=torch.int64), r"labels of shape \(8,\).*each label, shape \(8, 5\)"),
        (torch.ones(8, 5), torch.zeros(8, 4), r"labels of shape \(8, 4\)"),
        (torch.ones(8), torch.full((8, 5), 0.05), r"rows of zeros and ones.*got 0\.05\. Leave labels out"),
    ],
)
def test_bad_shapes_are_refused(losses, labels, match):
    class Wrong(Tagger):
        def training_step(self, batch, batch_idx):
            return self.weighted_loss(losses, labels)

    with pytest.raises(ValueError, match=match):
        fit(Wrong(), loader(Tagged()), fair_of())


class NamedTags(Tagged):
    """The labels are names whose sorted order is not that of the columns."""

    def __init__(self):
        super().__init__()
        self.rows = self.targets
        self.targets = [{"edcba"[c] for c in row.nonzero()[:, 0].tolist()} for row in self.rows]

    def __getitem__(self, index):
        y = self.rows[index]
        return torch.tensor([np.sin(index), np.cos(index), float(y[1]), 1.0], dtype=torch.float32), y, index


def test_losses_of_other_columns_are_not_fed_back():
    """The mean loss of each sample counts for its labels, and one warning says so; its remedy has the columns."""

    class Hard(Tagger):
        def losses(self, x, y):
            return super().losses(x, y) * 0.0 + torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0])

    fair, data = fair_of(), NamedTags()
    with warnings_about("in another order than FairSampling") as messages:
        fit(Hard(), loader(data), fair)
    assert len(messages) == 1
    np.testing.assert_allclose(fair.controller.ema_loss, 2.6, rtol=1e-5)  # the mean over the columns
    fair = fair_of(labels="scan")
    with warnings_about("in another order than FairSampling") as messages:
        fit(Hard(), loader(data), fair)
    assert messages == []
    np.testing.assert_allclose(fair.controller.ema_loss, [9.0, 1.0, 1.0, 1.0, 1.0, 2.6], rtol=1e-5)


@pytest.mark.filterwarnings("default:The reference needs weights")
def test_weights_of_a_target_that_moves_are_checked():
    """The draws of the end can need larger weights than those of the start."""
    fair = FairSampling(preset="deferred", reference="prior", max_weight=1.5)
    with warnings_about("The reference needs weights") as messages:
        fit(Tagger(), loader(Tagged()), fair)
    assert len(messages) == 1
    with warnings_about("The reference needs weights") as messages:  # weights to the target itself are near one
        fit(Tagger(), loader(Tagged()), FairSampling(preset="deferred", max_weight=1.5))
    assert messages == []


# -- kinds of modules and loaders ----------------------------------------------------------------------


def test_module_without_the_mixin():
    """Batches are balanced, and a warning says that they have no weights."""
    data, module, fair = Tagged(), PlainTagger(), fair_of(lambda2=0.0)
    with warnings_about("has no importance weights") as messages:
        fit(module, loader(data), fair)
    assert len(messages) == 1
    dense = data.sets.to_dense()
    drawn = dense[np.concatenate([step.indices for step in module.steps])].sum(axis=0)
    np.testing.assert_array_equal(fair.sampler.trained, drawn)
    np.testing.assert_allclose(drawn / drawn.sum(), fair.controller.q, atol=0.03)


@pytest.mark.parametrize("in_trainer", [False, True])
def test_data_module(in_trainer):
    data, fair = Tagged(), fair_of(lambda2=0.0, seed=0)
    module = FairDataModule(data, batch_size=8, fair=fair)
    if in_trainer:
        steps = Tagger()
        fit(steps, module)
        batches = [step.indices for step in steps.steps]
    else:
        batches = [index.tolist() for _, _, index in module.train_dataloader()]
    assert len(batches) == 20
    drawn = data.sets.to_dense()[np.concatenate(batches)].sum(axis=0)
    np.testing.assert_allclose(drawn / drawn.sum(), module.controller.q, atol=0.03)


class Reordered:
    """A ``collate_fn`` that reverses the samples and leaves the first one out."""

    def __call__(self, samples):
        return default_collate(samples[:0:-1])


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("collate_fn", [None, Reordered()], ids=["as drawn", "reordered"])
def test_weights_follow_the_samples_of_the_batch(workers, collate_fn):
    """With workers that draw ahead, epochs that are cut short, and batches in another order with fewer samples."""
    data, module, fair = Tagged(), Tagger(), fair_of()
    with recorded_draws() as draws:
        settings = {"max_epochs": 2, "limit_train_batches": 7}
        fit(module, loader(data, num_workers=workers, collate_fn=collate_fn), fair, **settings)
    assert len(module.steps) == 14
    assert_weights(module, draws, fair, data)
    dense = data.sets.to_dense()
    trained = dense[np.concatenate([step.indices for step in module.steps])].sum(axis=0)
    if collate_fn is None:
        np.testing.assert_array_equal(fair.sampler.trained, trained)


def test_labels_that_change_between_epochs():
    """The same labels come together, only of other samples, so the mix goes on."""

    class Changing(Tagger):
        def on_train_epoch_end(self):
            if self.current_epoch == 0:
                data.targets = data.targets.roll(1, dims=0)
                self.steps.clear()

    data, module, fair = Tagged(), Changing(), fair_of()
    with warnings_about("have changed") as messages, recorded_draws() as draws:
        fit(module, loader(data), fair, max_epochs=2)
    assert len(messages) == 1
    assert fair.sampler.labels.equals(data.sets)
    assert fair.controller.draws == 40
    assert_weights(module, draws, fair, data)


def test_optimizer_that_steps_several_times():
    """LBFGS trains on the samples of a batch more than once; they count as often as drawn."""

    class Newton(Tagger):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    module, fair = Newton(), fair_of()
    fit(module, loader(Tagged()), fair)
    assert len(module.steps) > 20
    np.testing.assert_array_equal(fair.sampler.trained, fair.sampler.drawn)
    assert fair.controller.trained_mix.sum() == pytest.approx(1.0)


# -- feedback of a validation --------------------------------------------------------------------------


class Validated(Tagger):
    """Logs a recall of each label, and one of samples without a label."""

    def on_validation_epoch_end(self):
        self.log_dict({f"val/recall/{name}": 0.2 if name in ("3", "none") else 0.8 for name in NAMES})


@pytest.mark.parametrize("feedback_to", ["draw", "objective"])
def test_validation_is_fed_back(feedback_to):
    settings = {"feedback": "val/recall", "feedback_to": feedback_to, "reference": "prior", "correction": "weights"}
    fair = fair_of(**settings, lambda2=0.5, feedback_delay=1)
    data, module = Tagged(), Validated()
    fitted = trainer(fair, max_epochs=3)
    fitted.fit(module, loader(data), loader(Tagged(40, seed=1), shuffle=False))
    controller = fair.controller
    np.testing.assert_allclose(controller.objective.scores, [0.8, 0.8, 0.8, 0.2, 0.8, 0.2])
    behind = np.array([3, 5])
    if feedback_to == "draw":
        assert (controller.loss_score[behind] > 0.5).all()
        assert controller.reference == pytest.approx(controller.objective.base)
    else:
        ratio = controller.reference / controller.objective.base
        assert ratio[behind].min() > 1.5 * np.delete(ratio, behind).max()


def test_values_without_that_of_unlabeled_samples():
    class Given(Tagger):
        def on_validation_epoch_end(self):
            self.fair_feedback([0.8, 0.8, 0.8, 0.2, 0.8], [3, 3, 3, 3, 0])

    fair = fair_of(feedback="val/recall", feedback_to="objective", feedback_delay=1)
    trainer(fair, max_epochs=2).fit(Given(), loader(Tagged()), loader(Tagged(40, seed=1), shuffle=False))
    np.testing.assert_allclose(fair.controller.objective.scores, [0.8, 0.8, 0.8, 0.2, np.nan, np.nan])


def test_worst_class_with_weights():
    """A remedy of the error about logits."""
    fitted = trainer(FairSampling(preset="worst_class", correction="weights"), max_epochs=2)
    module = Validated()
    fitted.fit(module, loader(Tagged()), loader(Tagged(40, seed=1), shuffle=False))
    assert len(module.steps) == 40


# -- resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_resume_is_exact(tmp_path, workers):
    def run(folder, ckpt=None):
        keep = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        module, fair = Tagger(), fair_of(seed=5, feedback_delay=5)
        settings = {"max_epochs": 2, "limit_train_batches": 7, "enable_checkpointing": True}
        fit(module, loader(Tagged(), num_workers=workers), fair, keep, ckpt=ckpt, **settings)
        return module, fair

    whole, fair = run("whole")
    for stop in (4, 7, 8):
        resumed, resumed_fair = run(str(stop), tmp_path / "whole" / f"step={stop}.ckpt")
        assert [step.indices for step in resumed.steps] == [step.indices for step in whole.steps[stop:]]
        assert all((a.weights == b.weights).all() for a, b in zip(resumed.steps, whole.steps[stop:], strict=True))
        assert same(resumed_fair.sampler.capture(), fair.sampler.capture())
        assert same(resumed.state_dict()["net.weight"], whole.state_dict()["net.weight"])


# -- logs ----------------------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    data, module, fair = Tagged(), Tagger(), fair_of()
    fit(module, loader(data), fair, logger=TensorBoardLogger(tmp_path, name=""), log_every_n_steps=1)
    events = EventAccumulator(str(next(tmp_path.glob("*")))).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("fair_class/trained_mix/")}
    assert tags == {f"fair_class/trained_mix/{name}" for name in NAMES}
    logged = [point.value for point in events.Scalars("fair/labels_per_sample")]
    expected = [data.targets[step.indices].sum().item() / len(step.indices) for step in module.steps]
    np.testing.assert_allclose(logged, expected, rtol=1e-6)
    weights = [point.value for point in events.Scalars("fair/weight_mean")]
    np.testing.assert_allclose(weights, [step.weights.mean() for step in module.steps], rtol=1e-4)
    assert "fair/mix" in events.Tags()["images"]
