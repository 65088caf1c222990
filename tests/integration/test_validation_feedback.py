"""Feedback from validation, through Lightning's Trainer."""

import math
import warnings

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.tuner import Tuner
from lightning_helpers import COUNTS, WORKERS, Indexed, Plain, Weighted, loader, trainer, warnings_about
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler

from lightning_fair import FairSampling, FairStream, FeedbackController

K = len(COUNTS)
RECALLS = (1.0, 0.75, 0.5, 0.125)  # the same in single precision
NAMES = ("cat", "dog", "cow", "emu")


class Logs:
    """Logs at validation what a function tells it to."""

    def __init__(self, log=None, step=None):
        super().__init__()
        self.log_end, self.log_step = log, step
        self.num_validations = 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if self.log_step is not None:
            self.log_step(self, batch, dataloader_idx)

    def on_validation_epoch_end(self):
        if self.log_end is not None:
            self.log_end(self)
        self.num_validations += not self.trainer.sanity_checking


class Logging(Logs, Weighted):
    pass


class WithoutMixin(Logs, Plain):
    pass


def recalls(values=RECALLS, pattern="val/recall/{}", words=range(K)):
    return lambda module: module.log_dict({pattern.format(w): v for w, v in zip(words, values, strict=True)})


def fair(feedback="val/recall", **settings):
    return FairSampling(
        **{"feedback": feedback, "feedback_to": "objective", "feedback_delay": 1, "seed": 0, **settings}
    )


def train(module, callback, val=None, **settings):
    """Train for four batches and one validation, and return the callback."""
    val = loader(shuffle=False, batch_size=32) if val is None else val
    fitted = trainer(callback, **{"limit_train_batches": 4, "num_sanity_val_steps": 0, **settings})
    fitted.fit(module, loader(), val)
    return callback


def scores(module, callback=None, val=None, **settings):
    callback = train(module, callback or fair(), val, **settings)
    return callback.controller.objective.scores.round(6).tolist()


@pytest.mark.parametrize("kind", [Logging, WithoutMixin])
def test_logged_metric_moves_the_objective(kind):
    """The classes with the lowest recall get a larger share of the objective."""
    callback = train(kind(recalls()), fair())
    assert callback.controller.objective.scores.tolist() == list(RECALLS)
    reference = callback.controller.reference
    assert np.all(np.diff(reference) > 0)
    tilt = 0.3 * 3.0 * (np.mean(RECALLS) - np.array(RECALLS))
    np.testing.assert_allclose(reference, np.exp(tilt) / np.exp(tilt).sum())


def test_moved_reference_is_that_of_the_draws():
    """Before the first validation the objective stands, and after it the draws have the moved reference."""
    references = []

    class Watching(Logging):
        def on_train_batch_start(self, batch, batch_idx):
            references.append(self.fair._run.current.draw.reference)

    module, callback = Watching(recalls()), fair()
    module.fair = callback
    train(module, callback, max_epochs=2)
    assert np.allclose(references[:4], 0.25)
    assert np.allclose(references[4:], references[4])
    assert np.all(np.diff(references[4]) > 0)


@pytest.mark.parametrize(
    ("log", "feedback"),
    [
        (recalls(words=NAMES), "val/recall"),
        (recalls(pattern="val/recall_{}", words=NAMES), "val/recall"),
        (recalls(pattern="val/{}-recall"), "val/*-recall"),
        (
            lambda module: [module.log(f"recall.{c}", r, on_epoch=True, on_step=False) for c, r in enumerate(RECALLS)],
            "recall",
        ),
    ],
)
def test_names(log, feedback):
    """The metric is found under the name or the number of each class."""
    assert scores(Logging(log), fair(feedback, class_names=NAMES)) == list(RECALLS)


def test_metrics_of_a_callback():
    """Metrics that another callback logs at the end of the validation are read, wherever it stands in the list."""

    class Recalls(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            recalls()(pl_module)

    for order in (1, -1):
        callback = fair()
        fitted = trainer(*[Recalls(), callback][::order], limit_train_batches=4)
        fitted.fit(Logging(), loader(), loader(shuffle=False))
        assert callback.controller.objective.scores.tolist() == list(RECALLS)


def test_torchmetrics_objects():
    """A metric object that computes at the end of the epoch, and the dictionary of a ClasswiseWrapper, are read."""
    metrics = pytest.importorskip("torchmetrics")

    class WithMetrics(Logging):
        def __init__(self, wrapped):
            super().__init__()
            recall = metrics.classification.MulticlassRecall(K, average=None)
            self.wrapper = metrics.wrappers.ClasswiseWrapper(recall) if wrapped else None
            self.each = torch.nn.ModuleList(metrics.classification.BinaryRecall() for _ in range(K))

        def validation_step(self, batch, batch_idx):
            predicted = torch.zeros_like(batch[1])  # always class 0
            if self.wrapper is not None:
                self.wrapper.update(predicted, batch[1])
                return
            for c, metric in enumerate(self.each):
                metric.update((predicted == c).int(), (batch[1] == c).int())
                self.log(f"val/recall/{c}", metric)

        def on_validation_epoch_end(self):
            if self.wrapper is not None:
                self.log_dict(self.wrapper.compute())
                self.wrapper.reset()

    assert scores(WithMetrics(False)) == [1.0, 0.0, 0.0, 0.0]
    assert scores(WithMetrics(True), fair("multiclassrecall")) == [1.0, 0.0, 0.0, 0.0]


def test_losses_are_better_if_low():
    """A loss by its name, or by feedback_mode, counts the other way round."""
    losses = (1.0, 2.0, 3.0, 6.0)
    for feedback, mode in (("val/loss", None), ("val/score", "min")):
        log = recalls(losses, feedback + "/{}")
        assert scores(Logging(log), fair(feedback, feedback_mode=mode)) == pytest.approx(-np.array(losses) / 3.0)


def test_direction_is_known_before_the_fit():
    """A name that says nothing needs feedback_mode; feedback_mode without a metric is an error."""
    with pytest.raises(ValueError, match=r"does not tell whether higher values are better. Set feedback_mode='max'"):
        FairSampling(feedback="val/score")
    with pytest.raises(ValueError, match="feedback_mode='max' is for a metric"):
        FairSampling(feedback_mode="max")
    assert scores(Logging(recalls(pattern="val/score/{}")), fair("val/score", feedback_mode="max")) == list(RECALLS)
    assert FairSampling(feedback="val/recall").settings.feedback_mode == "max"


@pytest.mark.parametrize(
    ("values", "feedback", "message"),
    [
        ((100.0, 75.0, 50.0, 12.5), "val/recall", "val/recall.*must lie in .0, 1.*Divide percentages by 100"),
        ((1.0, 2.0, 3.0, -0.1), "val/loss", "val/loss.*at least 0, got -0.1"),
    ],
)
def test_values_out_of_range(values, feedback, message):
    """A percentage and a negative loss are errors; the remedy works."""
    with pytest.raises(ValueError, match=message):
        train(Logging(recalls(values, feedback + "/{}")), fair(feedback))
    if feedback == "val/recall":
        assert scores(Logging(recalls([value / 100 for value in values]))) == list(RECALLS)


def test_rounded_rates():
    """A rate that is above one by rounding is one."""
    assert scores(Logging(recalls((1.0 + 1e-7, 0.5, 0.5, 0.5)))) == [1.0, 0.5, 0.5, 0.5]


def test_nothing_logged():
    """If no class has a value in the first validation, the error lists what was logged, and two remedies."""
    with pytest.raises(ValueError, match="metrics val/recall/cat, val/recall/dog, ") as error:
        train(Logging(recalls(pattern="recall/{}", words=NAMES)), fair(class_names=NAMES))
    assert "has logged recall/cat, recall/dog, recall/cow, recall/emu." in str(error.value)
    assert "self.fair_feedback(values)" in str(error.value)
    with pytest.raises(ValueError, match="It has logged nothing"):
        train(Logging(), fair())


def test_fair_feedback():
    """The vector of fair_feedback comes before a logged metric; tensors, arrays and lists do."""
    for values in (torch.tensor(RECALLS, dtype=torch.float64), np.array(RECALLS), list(RECALLS)):

        def log(module, values=values):
            recalls((0.5, 0.5, 0.5, 0.5))(module)
            module.fair_feedback(values)

        assert scores(Logging(log)) == list(RECALLS)


def test_fair_feedback_in_steps():
    """Values of several calls are averaged, weighted by their counts."""
    seen = []

    def step(module, batch, _):
        counts = torch.bincount(batch[1], minlength=K)
        values = (torch.arange(K) + len(seen)) / 10
        seen.append((counts.numpy(), values.numpy()))
        module.fair_feedback(torch.where(counts > 0, values, torch.nan), counts)

    result = scores(Logging(step=step))
    assert len(seen) == 5
    counts, values = map(np.array, zip(*seen, strict=True))
    np.testing.assert_allclose(result, (counts * values).sum(axis=0) / counts.sum(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("step", "end", "error", "message"),
    [
        (lambda m, *_: m.fair_feedback(RECALLS), None, RuntimeError, "called twice in one validation"),
        (
            None,
            lambda m: m.fair_feedback(RECALLS[:3]),
            ValueError,
            r"values of each class, shape \(4,\), got shape \(3,\)",
        ),
        (None, lambda m: m.fair_feedback(RECALLS, [1, 2]), ValueError, r"counts of each class, shape \(4,\)"),
        (None, lambda m: m.fair_feedback(RECALLS, [1, 2, 3, -1]), ValueError, "at least 0, got -1"),
        (None, lambda m: m.fair_feedback(dict(enumerate(RECALLS))), TypeError, "got a mapping"),
    ],
)
def test_wrong_calls_of_fair_feedback(step, end, error, message):
    """A wrong shape, count or order of calls is an error that names the rule."""
    with pytest.raises(error, match=message):
        train(Logging(end, step), fair())


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_train_batch_start"])
def test_fair_feedback_outside_of_validation(hook):
    """Outside of a validation fair_feedback is an error; without such feedback, and after the fit, it does nothing."""
    kind = type("Late", (Logging,), {hook: lambda module, *_: module.fair_feedback(RECALLS)})
    with pytest.raises(RuntimeError, match="Call it in on_validation_epoch_end"):
        train(kind(recalls()), fair())
    module = kind()
    train(module, FairSampling())
    module.fair_feedback(RECALLS)


# -- when it is read -----------------------------------------------------------------------------------------


@pytest.fixture
def reports(monkeypatch):
    """Record the values of each report, and the number of draws at that time."""
    calls, report = [], FeedbackController.report_validation

    def recorded(self, values, *args, **kwargs):
        calls.append((self.draws, np.round(values, 6).tolist()))
        return report(self, values, *args, **kwargs)

    monkeypatch.setattr(FeedbackController, "report_validation", recorded)
    return calls


def counting(module):
    """Log other values in each validation."""
    recalls([(module.num_validations + c) / 8 for c in range(K)])(module)


def of(validation):
    return [(validation + c) / 8 for c in range(K)]


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ({"max_epochs": 2}, [4, 8]),
        ({"max_epochs": 2, "num_sanity_val_steps": 2}, [4, 8]),
        ({"max_epochs": 2, "val_check_interval": 2}, [2, 4, 6, 8]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [8]),
        ({"max_epochs": 2, "val_check_interval": 3, "check_val_every_n_epoch": None}, [3, 6]),
        ({"fast_dev_run": True}, [1]),
    ],
)
def test_each_validation_of_a_fit_is_read(settings, draws, reports):
    """Every validation is reported once, with its own values, and the sanity check is not."""
    val = loader(shuffle=False, batch_size=sum(COUNTS))
    train(Logging(counting), fair(), val, **settings)
    assert reports == [(draw, of(validation)) for validation, draw in enumerate(draws)]


def test_other_validations_are_not_read(reports):
    """Sanity check, Trainer.validate and Trainer.test change nothing, nor does fair_feedback in them."""
    callback, module = fair(), Logging(lambda module: module.fair_feedback(of(module.num_validations)))
    module.test_step, module.on_test_epoch_end = module.validation_step, module.on_validation_epoch_end
    fitted = trainer(callback, limit_train_batches=4, num_sanity_val_steps=2)
    val = loader(shuffle=False)
    fitted.validate(module, val, verbose=False)
    fitted.fit(module, loader(), val)
    fitted.validate(module, val, verbose=False)
    fitted.test(module, val, verbose=False)
    assert reports == [(4, of(1))]


@pytest.mark.parametrize("method", ["lr_find", pytest.param("scale_batch_size", marks=pytest.mark.slow)])
def test_searches_are_not_read(method, reports):
    """The validations of a search for a learning rate or a batch size are not read, and the fit after it is."""
    module, callback = Logging(lambda module: module.fair_feedback(RECALLS)), fair()
    module.batch_size = 8
    data = L.LightningDataModule()
    data.train_dataloader = lambda: loader(batch_size=module.batch_size)
    data.val_dataloader = lambda: loader(shuffle=False)
    data.batch_size = 8
    fitted = trainer(callback, limit_train_batches=4, num_sanity_val_steps=0, val_check_interval=2)
    tuner = Tuner(fitted)
    if method == "lr_find":
        tuner.lr_find(module, datamodule=data, num_training=4, update_attr=False)
    else:
        tuner.scale_batch_size(module, datamodule=data, max_trials=2, steps_per_trial=3)
    assert reports == []
    fitted.fit(module, datamodule=data)
    assert len(reports) == 2


def test_old_values_are_not_read_again(reports):
    """A class that is logged in every second validation takes part in these alone."""

    def log(module):
        names = range(K) if module.num_validations % 2 == 0 else range(2)
        if module.num_validations < 3:
            recalls(RECALLS[: len(names)], words=names)(module)

    with warnings_about("They take no part") as messages:
        train(Logging(log), fair(), max_epochs=4)
    nan = math.nan
    assert str([values for _, values in reports]) == str([list(RECALLS), [1.0, 0.75, nan, nan], list(RECALLS)])
    assert len(messages) == 1
    assert "no value, or none that is finite, for class 2, 3." in messages[0]


# -- several loaders, and validation data without some classes --------------------------------------------------


def step_log(module, batch, dataloader_idx):
    recalls([r / (1 + dataloader_idx) for r in RECALLS])(module)


@pytest.mark.parametrize(("index", "scale"), [(0, 1), (1, 2)])
def test_several_validation_loaders(index, scale):
    """With several loaders the name chooses one; without the choice it is an error that lists them."""
    val = [loader(shuffle=False), loader(shuffle=False)]
    with pytest.raises(ValueError, match="Choose val/recall/dataloader_idx_0 or val/recall/dataloader_idx_1"):
        train(Logging(step=step_log), fair(), val)
    result = scores(Logging(step=step_log), fair(f"val/recall/dataloader_idx_{index}"), val)
    assert result == [r / scale for r in RECALLS]


def of_classes(*classes, **settings):
    data = Indexed()
    indices = [i for i, y in enumerate(data.targets.tolist()) if y in classes]
    return loader(Subset(data, indices), shuffle=False, **settings)


class Stream(IterableDataset):
    def __init__(self, classes=range(K)):
        self.samples = [s for s in Indexed() if s[1] in classes]

    def __iter__(self):
        return iter(self.samples)


VAL = Indexed((4, 4, 4, 4))
SAMPLERS = SubsetRandomSampler([0, 8, 12]), SubsetRandomSampler([1, 9, 13])


def absent(values, *classes):
    return [math.nan if c in classes else v for c, v in enumerate(values)]


@pytest.mark.parametrize(
    ("val", "feedback", "settings", "missing"),
    [
        (lambda: of_classes(0, 1, 2), "val/recall", {}, [3]),
        (lambda: loader(shuffle=False), "val/recall", {"limit_val_batches": 13}, [2, 3]),
        (lambda: [of_classes(0, 1), of_classes(0, 1, 2)], "val/recall", {}, [3]),
        (lambda: [of_classes(0, 1), loader()], "val/recall/dataloader_idx_0", {}, [2, 3]),
        (lambda: [loader(VAL, shuffle=False, sampler=sampler) for sampler in SAMPLERS], "val/recall", {}, [1]),
        (lambda: [of_classes(0, 1), loader()], "val/recall/dataloader_idx_1", {}, []),
    ],
)
def test_classes_without_validation_samples(val, feedback, settings, missing, reports):
    """A class without a validation sample takes no part, whatever its value; no sample is needed to know that."""

    def log(module):
        recalls()(module)

    def step(module, batch, dataloader_idx):
        recalls()(module)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="FairSampling")
        module = Logging(step=step) if "idx" in feedback else Logging(log)
        train(module, fair(feedback), val(), **settings)
    assert str(reports[0][1]) == str(absent(RECALLS, *missing))


@pytest.mark.parametrize(
    ("val", "settings", "trainer_settings"),
    [
        (lambda: DataLoader(Stream(range(3)), batch_size=8), {}, {}),
        (lambda: loader(), {}, {"limit_val_batches": 2}),
        (lambda: of_classes(0, 1, 2), {"labels": Indexed().targets.numpy()}, {}),
        (lambda: [of_classes(0, 1, 2), loader()], {}, {}),
    ],
    ids=["stream", "part of a shuffled loader", "labels of the training data alone", "one of two loaders"],
)
def test_zero_may_be_no_value(val, settings, trainer_settings, reports):
    """If the labels of the validation data are not known, a zero is told once with two remedies, which work."""
    zero = (1.0, 0.75, 0.5, 0.0)
    with warnings_about("has the value 0") as messages:
        train(Logging(recalls(zero)), fair(**settings), val(), max_epochs=2, **trainer_settings)
    assert len(messages) == 1
    assert "class 3 has the value 0" in messages[0]
    assert reports[0][1] == list(zero)
    reports.clear()
    with warnings_about("FairSampling") as messages:
        train(Logging(recalls(absent(zero, 3))), fair(**settings), val(), **trainer_settings)
        given = Logging(lambda module: module.fair_feedback(zero, [5, 5, 5, 0]))
        train(given, fair(**settings), val(), **trainer_settings)
    assert str([values for _, values in reports]) == str([absent(zero, 3)] * 2)
    assert messages == []


def test_named_labels_of_validation_data(reports):
    """Labels that are strings have the numbers of the training classes, also if the validation lacks some."""

    class Named(Indexed):
        def __init__(self, leave_out=()):
            super().__init__()
            self.kinds = [NAMES[y] for y in self.targets.tolist()]
            self.kept = [i for i, kind in enumerate(self.kinds) if kind not in leave_out]
            self.kinds = [self.kinds[i] for i in self.kept]

        def __len__(self):
            return len(self.kept)

        def __getitem__(self, index):
            return super().__getitem__(self.kept[index])

    ordered = sorted(NAMES)  # the numbers of strings
    val = loader(Named(leave_out=["cow"]), shuffle=False)
    callback = fair(labels="kinds")
    fitted = trainer(callback, limit_train_batches=4, num_sanity_val_steps=0)
    fitted.fit(Logging(recalls(words=ordered)), loader(Named()), val)
    assert str(reports[0][1]) == str(absent(RECALLS, ordered.index("cow")))


def test_infinite_and_missing_values(reports):
    """A class whose value is infinite or NaN although it has samples takes no part, and is told once."""
    with warnings_about("They take no part") as messages:
        train(Logging(recalls((1.0, math.inf, math.nan, 0.5), "val/loss/{}")), fair("val/loss"), max_epochs=2)
    assert str(reports[0][1]) == str([1.0, math.nan, math.nan, 0.5])
    assert len(messages) == 1
    assert "for class 1, 2." in messages[0]


def test_one_class_alone(reports):
    """With one value there is nothing to compare, which is told once."""
    with warnings_about("fewer than two have a value") as messages:
        train(Logging(recalls()), fair(), of_classes(0), max_epochs=2)
    assert len(messages) == 1


def test_class_numbers_of_the_batch():
    """If the batch numbers its classes in another way, values by number are told once; names are the remedy."""

    class Renumbered(Indexed):
        def __getitem__(self, index):
            x, y, index = super().__getitem__(index)
            return x, (y + 1) % K, index

    def warned(log, **settings):
        data, callback = Renumbered(), fair(**settings)
        with warnings_about("has other numbers") as messages:
            fitted = trainer(callback, max_epochs=2, num_sanity_val_steps=0)
            fitted.fit(Logging(log), loader(data), loader(data, shuffle=False))
        return messages

    (message,) = warned(recalls(), class_names=NAMES)
    assert "(cat = 0, dog = 1, cow = 2, emu = 3), and batch[1] of the batch has other numbers" in message
    assert len(warned(lambda module: module.fair_feedback(RECALLS))) == 1
    assert warned(recalls(words=NAMES), class_names=NAMES) == []
    assert warned(recalls(), class_names=NAMES, labels="scan") == []


def test_finer_numbers_of_the_batch():
    """If the batch divides the classes that are balanced, a metric by the numbers of its classes is told once."""

    class Coarse(Indexed):
        def __init__(self):
            super().__init__()
            self.coarse = self.targets // 2

    def warned(log):
        with warnings_about("has other numbers") as messages:
            fitted = trainer(fair(labels="coarse"), max_epochs=2, num_sanity_val_steps=0)
            fitted.fit(Logging(log), loader(Coarse()), loader(Coarse(), shuffle=False))
        return messages

    assert len(warned(recalls())) == 1
    assert warned(recalls(RECALLS[:2], words=range(2))) == []


def test_data_change_in_a_fit():
    """If the classes of the data change, the new controller gets the values of the next validation."""

    class Changing(Logging):
        def on_train_epoch_end(self):
            if self.trainer.current_epoch == 0:
                data.targets, self.first = K - 1 - data.targets, callback.controller

    data, callback = Indexed(), fair(target_probs="sqrt", reference="uniform")
    val = loader(Indexed(), shuffle=False)
    fitted = trainer(callback, max_epochs=2, num_sanity_val_steps=0, reload_dataloaders_every_n_epochs=1)
    module = Changing(recalls())
    fitted.fit(module, loader(data), val)
    assert callback.controller is not module.first
    assert callback.controller.objective.scores.tolist() == list(RECALLS)


# -- settings that do nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words", "remedy"),
    [
        ({"feedback_to": "draw"}, "which is 0. Set lambda2=0.25", {"lambda2": 0.25}),
        ({"feedback_to": "draw"}, "or feedback_to='objective'", {"feedback_to": "objective"}),
        ({"feedback_gain": 0.0}, "feedback_gain, which is 0. Set feedback_gain=3", {"feedback_gain": 3.0}),
        (
            {"correction": "none"},
            "only a correction passes on to the loss. Set correction='weights'",
            {"correction": "weights"},
        ),
    ],
)
def test_settings_without_effect(settings, words, remedy):
    """Settings with which the metric does nothing are told once, and the remedy is silent."""
    for remedies, number in (({}, 1), (remedy, 0)):
        with warnings_about("FairSampling(feedback=") as messages:
            train(Logging(recalls()), fair(**{**settings, **remedies}), max_epochs=2)
        assert len(messages) == number
        assert all(words in message for message in messages)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"limit_val_batches": 0}, "the Trainer validates nothing"),
        ({"check_val_every_n_epoch": 3}, "the fit had no validation that gave values"),
    ],
)
def test_trainer_without_validation(settings, words):
    """A fit without a validation is told once."""
    with warnings_about("FairSampling(feedback=") as messages:
        train(Logging(recalls()), fair(), max_epochs=2, **settings)
    assert len(messages) == 1
    assert words in messages[0]


def test_feedback_to_the_draw():
    """With lambda2 the class with the lowest recall is drawn more often, and the objective stays."""
    callback = train(Logging(recalls()), fair(feedback_to="draw", lambda2=0.3), max_epochs=8, limit_train_batches=20)
    assert np.allclose(callback.controller.reference, 0.25)
    assert np.all(np.diff(callback.controller.loss_score) > 0)


# -- streams -----------------------------------------------------------------------------------------------


def label_of(sample):
    return sample[1]


def stream_loader(controller=None, **settings):
    return DataLoader(FairStream(list(Indexed()) * 4, controller, batch_size=8, label_fn=label_of), 8, **settings)


def test_stream_follows_the_validation():
    """The reference of a stream moves, too; a FairStream with a controller of its own needs that kind of feedback."""

    def train_stream(controller=None, **settings):
        callback = fair(**{"feedback_delay": None, "num_classes": None if controller else K, **settings})
        fitted = trainer(callback, limit_train_batches=4, max_epochs=2, num_sanity_val_steps=0)
        module = Logging(recalls())
        fitted.fit(module, stream_loader(controller), loader(shuffle=False))
        return callback.controller.reference

    assert np.all(np.diff(train_stream()) > 0)
    with warnings_about("the controller of the FairStream feeds back the losses of the training") as messages:
        assert np.allclose(train_stream(FeedbackController(K)), 0.25)
    assert len(messages) == 1
    moving = {"feedback": "validation", "feedback_to": "objective"}
    assert np.all(np.diff(train_stream(FeedbackController(K, **moving))) > 0)
    with warnings_about("waits for values of validations") as messages:
        train_stream(FeedbackController(K, **moving), feedback=None, feedback_to=None)
    assert len(messages) == 1


@pytest.mark.parametrize("workers", WORKERS)
def test_draws_of_a_stream(workers):
    """The workers of a stream, which draw ahead, get the moved reference."""
    references = []

    class Watching(Logging):
        def on_train_batch_start(self, batch, batch_idx):
            references.append(callback._run.current.draw.reference)

    callback = fair(feedback_delay=None, num_classes=K)
    fitted = trainer(callback, limit_train_batches=30, val_check_interval=10, num_sanity_val_steps=0)
    fitted.fit(Watching(recalls()), stream_loader(num_workers=workers), loader(shuffle=False))
    assert np.allclose(references[:10], 0.25)
    assert np.all(np.diff(references[19]) > 0)
    assert np.all(np.diff(references[29]) > 0)
    assert references[29][-1] > references[19][-1]
