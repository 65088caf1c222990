import csv
import io
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import PIL.Image
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_helpers import TARGET, WORKERS, Indexed, Plain, Weighted, fit, loader, moving, own_draw, recorded_draws
from lightning_helpers import trainer as make_trainer
from stream_runs import mixed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.data import DataLoader, Subset
from torchmetrics import ClasswiseWrapper
from torchmetrics.classification import MulticlassRecall

from lightning_fair import FairSampling, FeedbackBatchSampler, FeedbackController, schedules
from lightning_fair.integration.trainer_internals import log_context
from lightning_fair.monitoring import dashboard, plots
from lightning_fair.monitoring.dashboard import LogContext, furthest_table, of_independent_draws, scalars
from lightning_fair.monitoring.history import DownsampledHistory
from lightning_fair.monitoring.weight_statistics import BatchWeights, RunTotals


class InMemory(Logger):
    """Keeps the metrics in memory."""

    name, version = "memory", 0

    def __init__(self, separator="/"):
        super().__init__()
        self.separator, self.points = separator, []

    @property
    def group_separator(self):
        return self.separator

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        mine = {tag: value for tag, value in metrics.items() if tag.startswith("fair")}
        if mine:
            self.points.append((step, mine))


def logged(module, data=None, fair=None, separator="/", **settings):
    logger = InMemory(separator)
    fit(module, data or loader(), fair or moving(), logger=logger, **{"log_every_n_steps": 1, **settings})
    return logger.points


SCALARS = {"fair/distance", "fair/deficit_max", "fair/batch_distance", "fair/coverage", "fair/repeats_rarest"}
INDEPENDENT = {"fair_independent/distance", "fair_independent/low", "fair_independent/high"}
OF_WEIGHTS = {
    "fair/weight_mean",
    "fair/weight_p95",
    "fair/weight_max",
    "fair/effective_sample_size",
    "fair/effective_sample_size_horizon",
    "fair/effective_sample_size_run",
    "fair/clipped_mass",
}
UNCORRECTED = ("trained_mix", "prob")
CORRECTED = (*UNCORRECTED, "loss")
QUANTILES = ("min", "p10", "median", "p90", "max")


def tags(names, groups=CORRECTED, weighted=True):
    of_classes = {f"fair_class/{group}/{name}" for group in groups for name in names}
    return SCALARS | INDEPENDENT | of_classes | (OF_WEIGHTS if weighted else set())


def values_of(sampler, draw, names, correction=None):
    context = LogContext(sampler, names, correction, 0, [], [])
    return scalars(context, draw, BatchWeights(4), RunTotals())


def test_logged_values():
    """The logged values are those of the batch that was trained on."""
    module, names = Weighted(), "abcd"
    fair = moving(feedback_delay=1, class_names=list(names), alpha=schedules.Linear(2.0, 8.0, 10))
    with recorded_draws() as draws:
        points = logged(module, fair=fair, max_epochs=2)
    assert [step for step, _ in points] == list(range(40))
    trained_mix, losses, used, each, horizon = list(TARGET), [None] * 4, np.zeros(160), [], fair.controller.horizon
    for number, ((_, values), step) in enumerate(zip(points, module.steps, strict=True)):
        probs, indices = draws[own_draw(step, draws)]
        trained_mix = reference.follow(trained_mix, np.bincount(step.labels, minlength=4), fair.controller.horizon)
        losses = reference.follow_losses(losses, step.labels, step.losses, 0.0)
        used[indices] += 1
        w = step.weights
        each.append(w)
        decay = np.repeat((1 - 1 / horizon) ** np.arange(len(each))[::-1], len(w))
        every = np.concatenate(each)
        begun = 1 - (1 - 1 / horizon) ** (2 * len(each))
        reach = [(begun * q * (1 - q) / 8 / (2 * horizon - 1)) ** 0.5 for q in TARGET]
        expected = {
            "fair/alpha": 2.0 + 6.0 * min(number / 10, 1.0),
            "fair/batch_distance": np.abs(probs - TARGET).sum() / 2,
            "fair_independent/distance": sum(reach) / 2 * (2 / np.pi) ** 0.5,
            "fair_independent/low": max(TARGET) - reach[np.argmax(TARGET)],
            "fair_independent/high": max(TARGET) + reach[np.argmax(TARGET)],
            "fair/weight_mean": w.mean(),
            "fair/weight_p95": np.percentile(w, 95),
            "fair/weight_max": w.max(),
            "fair/effective_sample_size": reference.effective_sample_size(w.tolist()) / len(w),
            "fair/effective_sample_size_run": reference.effective_sample_size(every.tolist()) / every.size,
            "fair/effective_sample_size_horizon": (decay @ every) ** 2 / (decay.sum() * (decay @ every**2)),
            "fair/clipped_mass": 0.0,
            "fair/distance": np.abs(np.array(trained_mix) - TARGET).sum() / 2,
            "fair/deficit_max": (1 - np.array(trained_mix) / TARGET).max(),
            "fair/coverage": (used > 0).mean(),
            "fair/repeats_rarest": used[-12:].mean(),
        }
        for label, name in enumerate(names):
            expected[f"fair_class/trained_mix/{name}"] = trained_mix[label]
            expected[f"fair_class/prob/{name}"] = probs[label]
            if losses[label] is not None:
                expected[f"fair_class/loss/{name}"] = losses[label]
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert points[-1][1]["fair/repeats_rarest"] > 2  # 12 samples with 0.1 of 320 draws
    assert 0.0 < points[10][1]["fair/coverage"] < points[20][1]["fair/coverage"] < 1.0


@pytest.mark.parametrize("workers", WORKERS)
def test_coverage_counts_trained_batches(workers):
    """Batches that workers have fetched ahead do not count."""
    module = Weighted()
    points = logged(module, loader(num_workers=workers))
    used = np.zeros(160)
    for (_, values), step in zip(points, module.steps, strict=True):
        used[step.indices] += 1
        assert values["fair/coverage"] == pytest.approx((used > 0).mean(), abs=1e-9)
        assert values["fair/repeats_rarest"] == pytest.approx(used[-12:].mean(), abs=1e-9)


def test_normalized_weights_are_logged():
    """Normalized weights are logged as such."""
    module = Weighted()
    points = logged(module, fair=moving(normalize=True))
    for (_, values), step in zip(points, module.steps, strict=True):
        assert values["fair/weight_mean"] == pytest.approx(1.0)
        assert values["fair/weight_max"] == pytest.approx(step.weights.max(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"log_every_n_steps": 1}, list(range(20))),
        ({"log_every_n_steps": 5}, [4, 9, 14, 19]),
        ({"log_every_n_steps": 50}, []),
        ({"log_every_n_steps": 1, "accumulate_grad_batches": 4}, [0, 1, 2, 3, 4]),
        ({"log_every_n_steps": 2, "accumulate_grad_batches": 4}, [1, 3]),
        ({"log_every_n_steps": 5, "max_epochs": 2, "limit_train_batches": 8}, [4, 9, 14]),
    ],
    ids=str,
)
def test_log_every_n_steps(settings, steps):
    """Values are logged at the steps of ``log_every_n_steps``."""
    assert [step for step, _ in logged(Weighted(), **settings)] == steps


@pytest.mark.parametrize("kind", [Plain, Weighted])
def test_tags_with_and_without_mixin(kind):
    """Tags are complete with and without the mixin; what never changes has none."""
    last = logged(kind(), max_epochs=2)[-1][1]
    assert last.keys() == (tags("0123", UNCORRECTED, weighted=False) if kind is Plain else tags("0123"))
    assert all(type(value) is float and np.isfinite(value) for value in last.values())


def test_tag_separator():
    """Tags are joined with the logger's separator."""
    (_, values), *_ = logged(Weighted(), separator="-")
    assert {"fair-distance", "fair_class-trained_mix-0"} <= values.keys()
    assert not any("/" in tag for tag in values)


def test_several_loggers():
    """Each of several loggers gets the scalars."""
    loggers = [InMemory(), InMemory()]
    fit(Weighted(), loader(), moving(), logger=loggers, log_every_n_steps=5)
    assert [len(logger.points) for logger in loggers] == [4, 4]


def test_no_logger():
    """A run without a logger trains."""
    module = Weighted()
    fit(module, loader(), moving(), logger=False, log_every_n_steps=1)
    assert len(module.steps) == 20


def test_csv_logger(tmp_path):
    """The CSV file has the values."""
    module = Weighted()
    fit(module, loader(), moving(), logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=5)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("fair/distance")]
    assert [int(row["step"]) for row in rows] == [4, 9, 14, 19]
    assert tags("0123") <= rows[-1].keys()
    for row in rows:
        assert float(row["fair/weight_mean"]) == pytest.approx(module.steps[int(row["step"])].weights.mean(), rel=1e-5)


def test_tensorboard_scalars(tmp_path):
    """TensorBoard has the values, in one file."""
    module = Weighted()
    fit(module, loader(), moving(), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    assert len(list(tmp_path.rglob("events.out.*"))) == 1
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert tags("0123") <= set(events.Tags()["scalars"])
    points = events.Scalars("fair/weight_max")
    assert [point.step for point in points] == [4, 9, 14, 19]
    for point in points:
        assert point.value == pytest.approx(module.steps[point.step].weights.max(), rel=1e-5)


def test_quantiles_of_many_classes():
    """With many classes, quantiles are logged, and the band is that of the smallest target."""
    module, fair = Weighted(num_classes=30), FairSampling(seed=0, lambda2=0.5, num_classes=30)
    values = logged(module, loader(Indexed((10,) * 30)), fair)[-1][1]
    assert values.keys() == tags(QUANTILES, ("over_target", "prob", "loss"))
    over = fair.controller.trained_mix * 30
    for name, at in zip(QUANTILES, (0, 10, 50, 90, 100), strict=True):
        assert values[f"fair_class/over_target/{name}"] == pytest.approx(np.percentile(over, at))
    horizon = fair.controller.horizon
    reach = ((1 - (1 - 1 / horizon) ** (2 * 38)) * 29 / 8 / (2 * horizon - 1)) ** 0.5
    assert values["fair_independent/high"] == pytest.approx(1 + reach)
    assert values["fair_independent/low"] == pytest.approx(max(1 - reach, 0))


def test_many_classes_without_target():
    """With many classes, those without a target are left out."""
    K = 25
    sampler = FeedbackBatchSampler(np.arange(K), 4, controller=FeedbackController(K, [1 / 8] * 8 + [0.0] * (K - 8)))
    draw = next(iter_records(sampler))
    values = values_of(sampler, draw, [str(label) for label in range(K)])
    assert values["fair_class/over_target/min"] > 0
    assert values["fair_independent/high"] == pytest.approx(1 + (7 / 4) ** 0.5 / sampler.controller.horizon)
    table = furthest_table(sampler, [f"class {label}" for label in range(K)])
    assert len(table.splitlines()) == 2 + 8
    assert "class 9" not in table


@pytest.mark.parametrize(("K", "each"), [(20, True), (21, False)])
def test_number_of_named_classes(K, each):
    """Up to twenty classes are logged by name."""
    sampler = FeedbackBatchSampler(np.arange(K), 4)
    draw = next(iter_records(sampler))
    names = [str(label) for label in range(K)]
    values = values_of(sampler, draw, names)
    assert values.keys() == (
        tags(names, UNCORRECTED, weighted=False) if each else tags(QUANTILES, ("over_target", "prob"), weighted=False)
    )


def iter_records(sampler):
    for _ in sampler:
        yield sampler.deliver()


def test_rarest_class():
    """The rarest class is the smallest class with a target."""
    sampler = FeedbackBatchSampler(
        [0] * 50 + [1] * 10 + [2], 10, controller=FeedbackController(4, [0.5, 0.5, 0.0, 0.0])
    )
    draw = next(iter_records(sampler))
    sampler.report(draw)
    values = values_of(sampler, draw, "abcd")
    assert values["fair/repeats_rarest"] == 0.5  # five of the ten samples of class 1


def test_readme_lists_all_tags():
    """The table of tags lists every tag and no other."""
    page = (Path(__file__).parents[2] / "lightning_fair" / "README.md").read_text()
    cells = re.findall(r"^\| (`fair[/_][^|]+) \|", page, re.MULTILINE)
    explained = set(re.findall(r"`([^`]+)`", " ".join(cells)))
    written = tags(["<class>"], (*CORRECTED, "arriving", "target", "reference")) | tags(["<quantile>"], ["over_target"])
    assert explained == written | {"fair/alpha", "fair/labels_per_sample"}


@pytest.mark.parametrize("wrap", [False, True])
def test_class_names_of_data_set(wrap):
    """Classes are named by the data set."""
    data = Indexed()
    data.classes = ["cat", "dog", "owl", "elk"]
    points = logged(Weighted(), loader(Subset(data, range(160)) if wrap else data))
    assert tags(["cat", "dog", "owl", "elk"]) == points[-1][1].keys()


def test_moved_reference_is_logged():
    """The logged reference is that of the batch's own draw, and sums to one while losses move it."""
    points = logged(Weighted(), fair=moving(feedback_to="objective", feedback_delay=1), max_epochs=2)
    mixes = np.array([[values[f"fair_class/reference/{c}"] for c in "0123"] for _, values in points])
    assert mixes.sum(1) == pytest.approx(1.0)
    assert mixes[0] == pytest.approx(TARGET)
    assert np.ptp(mixes, axis=0).max() > 0.02


@pytest.mark.parametrize(
    ("correction", "groups"),
    [("none", (*CORRECTED, "target")), ("logits", (*CORRECTED, "target", "reference"))],
)
def test_tags_without_weights(correction, groups):
    """Weights that are one by the settings have no tags, nor has the reference that the loss does not stand for.

    A target that moves has some.
    """
    kind = Plain if correction == "logits" else Weighted  # whose only layer are the logits
    target = schedules.Shift(schedules.Linear(0, 1, 20), "prior", "uniform")
    points = logged(kind(), fair=moving(correction=correction, target_probs=target), max_epochs=2)
    assert points[-1][1].keys() == tags("0123", groups, weighted=False)


def test_clipped_mass_is_logged():
    """Weights that exceed the bound are clipped, and the part of the reference that is lost is logged."""
    fair = moving(reference="uniform", max_weight=2.0)
    with pytest.warns(UserWarning, match="clipped at max_weight=2"):
        points = logged(Weighted(), fair=fair)
    for _, values in points:
        p = np.array([values[f"fair_class/prob/{c}"] for c in "0123"])
        assert values["fair/weight_max"] <= 2.0
        assert values["fair/clipped_mass"] == pytest.approx(np.maximum(0.25 - 2.0 * p, 0).sum(), abs=1e-9)
    assert max(values["fair/clipped_mass"] for _, values in points) > 0.01


@pytest.mark.parametrize("normalize", [False, True])
def test_batch_weights(normalize):
    """The statistics of the weights are those of the samples."""
    statistics = BatchWeights.summarize(np.array([0.5, 2.0, 9.0]), np.array([3, 1, 0]), 0.25, normalize=normalize)
    each = [0.5, 0.5, 0.5, 2.0]
    scale = np.mean(each) if normalize else 1.0
    assert statistics.mean == pytest.approx(np.mean(each) / scale)
    assert statistics.largest == pytest.approx(2.0 / scale)
    assert statistics.effective_sample_size == pytest.approx(reference.effective_sample_size(each) / 4)
    assert statistics.clipped_mass == 0.25
    assert statistics.percentile(95) == pytest.approx(np.percentile(each, 95) / scale)


@pytest.mark.parametrize("batches", [1, 5, 100])
def test_independent_draws(batches):
    """The line and the band are those of a trained mix whose batches are drawn independently at the target."""
    q, B, H = np.array([0.7, 0.2, 0.1]), 16, 20
    rng, trained_mix = np.random.default_rng(0), np.tile(q, (20_000, 1))
    for _ in range(batches):  # chains of batches
        trained_mix += (rng.multinomial(B, q, size=len(trained_mix)) / B - trained_mix) / H
    source = FeedbackBatchSampler([0, 1, 2] * 8, B, controller=FeedbackController(3, q, horizon=H))
    source.controller.draws = batches
    expected = of_independent_draws(source)
    assert expected["distance"] == pytest.approx(np.abs(trained_mix - q).sum(1).mean() / 2, rel=0.05)
    assert expected["high"] - 0.7 == pytest.approx(0.7 - expected["low"])
    assert expected["high"] - 0.7 == pytest.approx(trained_mix[:, 0].std(), rel=0.03)


def test_band_of_shares_ends_at_one():
    """A share lies in [0, 1]."""
    source = FeedbackBatchSampler([0, 1] * 4, 1, controller=FeedbackController(2, [0.9, 0.1], alpha=0.0, horizon=1))
    source.controller.draws = 1
    assert of_independent_draws(source)["high"] == 1.0


# -- the progress bar ------------------------------------------------------------------------------------


def test_progress_bar_shows_distance():
    """The progress bar has the distance from the target."""
    seen = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen[batch_idx] = trainer.progress_bar_metrics.get("fair/distance"), distance_now()

        def on_train_epoch_end(self, trainer, pl_module):
            seen["end"] = trainer.callback_metrics["fair/distance"].item(), distance_now()

    def distance_now():
        return np.abs(fair.controller.trained_mix - TARGET).sum() / 2

    fair = moving()
    points = InMemory()
    fit(Weighted(), loader(), fair, Look(), logger=points, log_every_n_steps=5)
    for at in (4, 9, 14, 19, "end"):
        shown, right = seen[at]
        assert shown == pytest.approx(right, rel=1e-5)
    assert seen[7][0] == seen[4][0]
    assert seen[3][0] is None
    assert all(point["fair/distance"] for _, point in points.points)


def test_barebones_run(recwarn):
    """A barebones run gives no warning."""
    fit(Plain(), loader(), moving(), barebones=True, max_epochs=1, logger=None, enable_checkpointing=None)
    assert not [w for w in recwarn if "barebones" in str(w.message) and "self.log" in str(w.message)]


# -- TensorBoard -----------------------------------------------------------------------------------------


def events_of(folder):
    events = EventAccumulator(str(folder), {"tensors": 0, "images": 0, "scalars": 0})
    events.Reload()
    return events


def layouts(events):
    if "custom_scalars__config__" not in events.Tags()["tensors"]:
        return []
    written = events.Tensors("custom_scalars__config__")
    return [layout_pb2.Layout.FromString(point.tensor_proto.string_val[0]) for point in written]


def charts_of(layout):
    return {chart.title: chart for category in layout.category for chart in category.chart}


WEIGHTED = [
    "Importance weights: mean, 95th percentile, largest",
    "Effective sample size: batch, last horizon, run",
    "Clipped mass: part of the reference that is lost",
    "Loss of each class",
]
ALWAYS = [
    "Distance from the target; of independent draws",
    "Trained mix; band of independent draws of the largest target",
    "Largest deficit",
    "Distance of the draws from the target",
    "Repeats of the rarest class",
]


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (Weighted, "mine"),
        (Plain, ""),
        pytest.param(Plain, "mine", marks=pytest.mark.slow),
        pytest.param(Weighted, "", marks=pytest.mark.slow),
    ],
)
def test_layout_charts_have_scalars(kind, prefix, tmp_path):
    """The layout is written once, and every chart has its scalars."""
    logger = TensorBoardLogger(tmp_path, "", "", prefix=prefix)
    fit(kind(), loader(), moving(), logger=logger, log_every_n_steps=5, max_epochs=2)
    events = events_of(tmp_path)
    (layout,) = layouts(events)
    charts = charts_of(layout)
    assert set(charts) == {*ALWAYS, *(WEIGHTED if kind is Weighted else [])}
    tags = set(events.Tags()["scalars"])
    for chart in charts.values():
        assert chart.multiline.tag
        for pattern in chart.multiline.tag:
            assert [tag for tag in tags if re.search(pattern, tag)], chart.title
    mix = charts["Trained mix; band of independent draws of the largest target"].multiline.tag
    shown = {tag for pattern in mix for tag in tags if re.search(pattern, tag)}
    lines = (*(f"_class/trained_mix/{c}" for c in "0123"), "_independent/low", "_independent/high")
    assert shown == {f"{prefix + '-' if prefix else ''}fair{line}" for line in lines}


@pytest.mark.parametrize(
    ("settings", "is_drawn"),
    [
        ({}, False),
        ({"feedback_to": "objective"}, True),
        ({"target_probs": schedules.Shift(schedules.Linear(0, 1, 20), "prior", "uniform")}, True),
        ({"target_probs": schedules.Shift(schedules.Linear(0, 1, 20), "prior"), "reference": "uniform"}, False),
        ({"feedback_to": "objective", "correction": "none"}, False),
    ],
    ids=["fixed", "feedback", "with target", "beside target", "none"],
)
def test_objective_is_drawn_if_it_moves(settings, is_drawn, tmp_path):
    """The mix that the loss stands for has a chart if it can move."""
    logger = TensorBoardLogger(tmp_path, "", "")
    fit(Weighted(), loader(), moving(**settings), logger=logger, log_every_n_steps=5)
    (layout,) = layouts(events_of(tmp_path))
    assert ("Mix that the loss stands for" in charts_of(layout)) == is_drawn


def test_layout_is_written_once(tmp_path):
    """A second fit does not write the layout a second time."""
    logger, fair = TensorBoardLogger(tmp_path, "", ""), moving()
    trainer = fit(Weighted(), loader(), fair, logger=logger, log_every_n_steps=5)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Weighted(), loader())
    assert trainer.global_step == 40
    assert len(layouts(events_of(tmp_path))) == 1


def test_layout_waits_for_scalars(tmp_path):
    """The layout is not written before the first scalars."""
    fit(Weighted(), loader(), moving(), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=50)
    assert layouts(events_of(tmp_path)) == []


def test_layout_of_many_classes(tmp_path):
    """The layout for many classes shows quantiles; a table names the classes furthest from their target."""
    module = Weighted(num_classes=30)
    fair = FairSampling(seed=0, num_classes=30, class_names=[f"kind {label}" for label in range(30)])
    fit(module, loader(Indexed((10,) * 30)), fair, logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    events = events_of(tmp_path)
    charts = charts_of(layouts(events)[0])
    tags = set(events.Tags()["scalars"])
    assert {
        "Trained mix over target; band of independent draws of the smallest target",
        "Loss of each class, least to most",
    } <= set(charts)
    for chart in charts.values():
        for pattern in chart.multiline.tag:
            assert any(re.search(pattern, tag) for tag in tags)
    assert not any("kind" in tag for tag in tags)
    (table,) = events.Tensors("fair/furthest/text_summary")
    assert b"| 1 | kind " in table.tensor_proto.string_val[0]


@pytest.mark.parametrize("K", [4, 30])
def test_charts_of_groups(K, tmp_path, monkeypatch):
    """If the labels are groups, charts, figures and table say so, and the tags stay."""
    figures, to_pixels = [], plots.to_pixels
    monkeypatch.setattr(plots, "to_pixels", lambda figure: figures.append(figure) or to_pixels(figure))
    fair, logger = FairSampling(num_classes=K, seed=0), TensorBoardLogger(tmp_path, "", "")
    on_train_start = fair.on_train_start

    def start(*args):
        fair._run.groups = True
        on_train_start(*args)

    fair.on_train_start = start
    module, data = Validated(K), DataLoader(Indexed((10,) * K), batch_size=20)
    module.names = [str(number) for number in range(K)]
    fitted = make_trainer(fair, logger=logger, log_every_n_steps=1)
    fitted.fit(module, data, data)
    fitted.test(module, data, verbose=False)
    events = events_of(tmp_path)
    titles = list(charts_of(layouts(events)[0]))
    titles += [category.title for category in layouts(events)[0].category]
    for figure in figures:
        axes = figure.axes[0]
        titles += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
    assert {"Which groups suffer?", "Loss of each group", "Repeats of the rarest group"} <= {
        re.split("[:,]", title)[0] for title in titles
    }
    assert {"group (training samples)", "Recall of each group, test"} <= set(titles)
    assert not [title for title in titles if "class" in title]
    if K == 30:
        (table,) = events.Tensors("fair/furthest/text_summary")
        assert table.tensor_proto.string_val[0].startswith(b"| rank | group | training")


def test_moving_settings_have_charts(tmp_path):
    """A gain and a target that can change have curves and charts."""
    target = schedules.Shift(schedules.Linear(0, 1, 20), "prior", "uniform")
    fair = moving(alpha=schedules.Linear(2.0, 8.0, 10), target_probs=target)
    fit(Weighted(), loader(), fair, logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    events = events_of(tmp_path)
    assert {"Alpha", "Target"} <= set(charts_of(layouts(events)[0]))
    assert {"fair/alpha", "fair_class/target/0"} <= set(events.Tags()["scalars"])


def test_layout_of_stream(tmp_path):
    """For a stream, the mix that arrives is shown beside the trained mix."""
    stream = mixed(400, None)
    fair = FairSampling(num_classes=4)
    data = DataLoader(stream, batch_size=8)
    fit(Weighted(), data, fair, logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    events = events_of(tmp_path)
    (mix, *_) = layouts(events)[0].category
    shown = [chart.title for chart in mix.chart]
    assert shown[1:3] == ["Mix that arrives", "Trained mix; band of independent draws of the largest target"]
    assert {f"fair_class/arriving/{c}" for c in "0123"} <= set(events.Tags()["scalars"])


# -- figures ---------------------------------------------------------------------------------------------


def images(events):
    return {tag: events.Images(tag) for tag in events.Tags()["images"]}


class Validated(Weighted):
    """Logs a recall of each class as torchmetrics' ClasswiseWrapper does."""

    names = ("ant", "bee", "cat", "dog")

    def on_fit_start(self):
        recall = MulticlassRecall(len(self.names), average=None)
        self.each = ClasswiseWrapper(recall, labels=list(self.names), prefix="val/recall/")

    def validation_step(self, batch, batch_idx):
        self.each.update(self.net(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        self.log_dict(self.each.compute())
        self.each.reset()

    def test_step(self, batch, batch_idx):
        self.each.update(self.net(batch[0]), batch[1])

    def on_test_epoch_end(self):
        self.log_dict(self.each.compute())


@pytest.mark.slow
def test_figures_after_some_epochs(tmp_path, monkeypatch):
    """Figures are plotted after the epochs 1, 2, 4, 8 and at the end."""
    drawn = []
    draw = plots.plot_mix
    monkeypatch.setattr(plots, "plot_mix", lambda *a: drawn.append(trainer.current_epoch) or draw(*a))
    trainer = make_trainer(moving(), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5, max_epochs=11)
    trainer.fit(Weighted(), loader())
    assert drawn == [0, 1, 3, 7, 11]
    assert [point.step for point in images(events_of(tmp_path))["fair/mix"]] == [20, 40, 80, 160, 220]


def test_failing_figure_only_warns(tmp_path, monkeypatch):
    """A figure that cannot be plotted gives a warning."""

    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(plots, "plot_mix", fail)
    module = Weighted()
    with pytest.warns(UserWarning, match="fair/mix could not be plotted: RuntimeError: no ink"):
        fit(module, loader(), moving(), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    assert len(module.steps) == 20


def test_figures_of_later_logger(tmp_path):
    """A logger that is added later gets figures with its prefix."""
    trainer = make_trainer(moving(), log_every_n_steps=5)
    trainer.fit(Weighted(), loader())
    trainer.logger = TensorBoardLogger(tmp_path, "", "", prefix="mine")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Weighted(), loader())
    assert images(events_of(tmp_path)).keys() == {"mine-fair/mix"}


@pytest.mark.parametrize(
    "names", [["a$_$", "$5 to $6", "x" * 300, "d|\n猫"], [0, 1, 2, 3], np.array(["a", "b", "c", "d"])]
)
def test_any_class_name(names, tmp_path, recwarn):
    """Classes may have any name."""
    fair = moving(class_names=names)
    fit(Weighted(), loader(), fair, logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    assert "fair/mix" in images(events_of(tmp_path))
    assert not [w for w in recwarn if "Glyph" in str(w.message) or "drawn" in str(w.message)]


class Growing(L.LightningDataModule):
    """The data, and with them the class mix, change after every epoch."""

    def train_dataloader(self):
        counts = ((97, 31, 20, 12), (20, 31, 97, 12), (10, 20, 30, 100))[self.trainer.current_epoch % 3]
        return loader(Indexed(counts))


def test_values_follow_new_data():
    """Values are those of the newest data."""
    shown, right = [], []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            shown.append(float(trainer.callback_metrics["fair/distance"]))
            right.append(np.abs(fair.controller.trained_mix - TARGET).sum() / 2)

    fair, points = moving(), InMemory()
    settings = {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3, "log_every_n_steps": 1}
    with pytest.warns(UserWarning, match="the batches follow the new ones"):
        fit(Weighted(), Growing(), fair, Look(), logger=points, **settings)
    assert shown == pytest.approx(right, rel=1e-5)
    assert [values["fair/distance"] for _, values in points.points] == pytest.approx(right)


def test_only_first_rank_has_boards(monkeypatch):
    fitted = make_trainer(logger=TensorBoardLogger("nowhere"))
    source = FeedbackBatchSampler([0, 1], 2)
    assert len(log_context(fitted, source, "ab", correction=None).boards) == 1
    monkeypatch.setattr(L.Trainer, "is_global_zero", False)
    assert log_context(fitted, source, "ab", correction=None).boards == []


def test_recall_figures(tmp_path):
    """The recall is plotted after training and after the test if the module logs it."""
    module = Validated()
    fair = moving(class_names=["ant", "bee", "cat", "dog"])
    trainer = make_trainer(fair, logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    trainer.fit(module, loader(), loader())
    trainer.test(module, loader(), verbose=False)
    figures = images(events_of(tmp_path))
    assert figures.keys() == {"fair/mix", "fair/recall/validation", "fair/recall/test"}
    for points in figures.values():
        picture = PIL.Image.open(io.BytesIO(points[-1].encoded_image_string))
        assert picture.width > 600
        assert np.asarray(picture).std() > 10


def test_without_matplotlib(tmp_path, monkeypatch):
    """Without matplotlib only the figures are missing."""
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None if name == "matplotlib" else object())
    fit(Weighted(), loader(), moving(), logger=TensorBoardLogger(tmp_path, "", ""), log_every_n_steps=5)
    events = events_of(tmp_path)
    assert images(events) == {}
    assert len(layouts(events)) == 1


def test_other_loggers_get_scalars(tmp_path):
    """Other loggers get scalars only."""
    fair = FairSampling(seed=0, num_classes=30)
    module = Weighted(num_classes=30)
    fit(module, loader(Indexed((10,) * 30)), fair, logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=5)
    assert {file.name for file in tmp_path.iterdir()} <= {"metrics.csv", "hparams.yaml"}
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("fair/distance")]
    assert all(row["fair_class/over_target/min"] for row in rows)


@pytest.mark.parametrize("K", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_heat_map_colors(K):
    """The most frequent half of the classes is above its target, the other below; classes without target are gray."""
    over = np.tile(np.r_[np.full(K // 2, 2.0), np.full(K // 2, 0.5)], (50, 1)).astype(np.float32)
    shuffle = np.random.default_rng(0).permutation(K)
    counts = np.arange(K, 0, -1)
    names = [f"class {c}" for c in range(K)]
    figure = plots.plot_mix(np.arange(50), over[:, shuffle], counts[shuffle], [names[c] for c in shuffle])
    picture = plots.to_pixels(figure)
    height, width, _ = picture.shape
    red, _, blue = np.moveaxis(picture[: height * 3 // 4, width * 2 // 5 : width // 2].astype(float), 2, 0)
    upper, lower = slice(height // 6, height // 3), slice(height * 7 // 12, height * 2 // 3)
    assert (red[upper] > blue[upper] + 60).mean() > 0.95
    assert (blue[lower] > red[lower] + 60).mean() > 0.95
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == f"class 0 ({K:,})"
    assert labels[-1] == f"class {K - 1} (1)"
    nothing = plots.to_pixels(plots.plot_mix(np.arange(1), np.full((1, K), np.nan, np.float32), counts, names))
    middle = nothing[height // 3 : height // 2, width * 2 // 5 : width // 2]
    assert (np.ptp(middle, axis=2) == 0).all()


def test_heat_map_of_small_deviations():
    """The heat map shows small deviations too."""
    over = np.tile([1.1, 0.9], (50, 1)).astype(np.float32)
    figure = plots.plot_mix(np.arange(50), over, np.array([9, 1]), ["a", "b"])
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == [
        "0.84 times\nor less",
        "on\ntarget",
        "1.2 times\nor more",
    ]


@pytest.mark.parametrize(
    "K", [1, 20, 31, pytest.param(2, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.slow)]
)
def test_recall_positions(K):
    """The recall is plotted at the samples of its class."""
    counts = np.random.default_rng(0).permutation(np.maximum(1000 // np.arange(1, K + 1), 1))
    counts[0] = 0  # a class that was never trained on has a recall as well
    recall = np.linspace(1, 0, K)
    recall[-1] = np.nan if K > 1 else 1.0
    figure = plots.plot_recall(recall, counts, [f"class {c}" for c in range(K)], "test")
    points = figure.axes[0].lines[0]
    drawn = sorted(zip(points.get_xdata().tolist(), points.get_ydata().tolist(), strict=True))
    assert drawn == sorted((max(n, 0.5), r) for n, r in zip(counts.tolist(), recall.tolist(), strict=True) if r == r)
    picture = plots.to_pixels(figure)
    assert picture.dtype == np.uint8
    assert (picture[..., 2].astype(int) - picture[..., 0] > 100).sum() > 20  # blue points


@pytest.mark.parametrize("recall", [np.full(40, np.nan), np.r_[0.1, 0.2, np.full(38, np.nan)]])
def test_recall_of_few_classes(recall):
    """The recall of few classes, or none, can be plotted."""
    plots.to_pixels(plots.plot_recall(recall, np.arange(40), [f"class {c}" for c in range(40)], "test"))


@given(st.integers(1, 3000), st.sampled_from([4, 5, 16, 256]))
def test_history_is_even_and_bounded(steps, most):
    """The history covers the whole time evenly, in bounded memory."""
    history = DownsampledHistory(2, most)
    for step in range(steps):
        history.add(10 * step, lambda step=step: [step, -step])
    kept = np.array(history.steps) // 10
    assert 0 < kept.size < most
    assert kept[0] == 0
    gaps = set(np.diff(kept).tolist()) or {1}
    assert len(gaps) == 1
    assert steps - 1 - kept[-1] < max(gaps)
    assert steps <= most - 1 or kept.size >= most // 2
    assert np.stack(history.rows).tolist() == [[step, -step] for step in kept.tolist()]


def test_history_of_many_classes():
    """The history of many classes stays small."""
    history = DownsampledHistory(100_000)
    for step in range(100):
        history.add(step, lambda: np.zeros(100_000))
        assert sum(row.nbytes for row in history.rows) <= 20e6


# -- in a browser ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("chromium-browser")), reason="no Chromium: apt-get install chromium"
)
@pytest.mark.skipif(find_spec("playwright") is None, reason="no playwright: pip install playwright")
@pytest.mark.parametrize("K", [4, 30])
def test_tensorboard_shows_every_chart(load, tmp_path, K):
    """In two runs beside one without the plugin, without an error."""
    example = load("dashboard")
    data = loader(Indexed((20, 30, 5, 3) if K == 4 else (10,) * K))
    for name, alpha in {"a": 2.0, "b": 8.0}.items():
        fair, logger = FairSampling(alpha, num_classes=K, seed=0), TensorBoardLogger(tmp_path, "", name)
        fit(Weighted(num_classes=K), data, fair, logger=logger, log_every_n_steps=1, max_epochs=4)
    plain = TensorBoardLogger(tmp_path, "", "plain")
    plain.log_metrics({"train/loss": 1.0}, 0)
    plain.finalize("success")
    layout = charts_of(layouts(events_of(tmp_path / "a"))[0])
    requests = []
    with example.tensorboard(tmp_path) as address, example.chromium(1500, 1570) as page:
        page.on("request", lambda request: requests.append(request.url))
        drawn = example.charts(page, address)
        assert drawn == dict.fromkeys(drawn, True)
        assert set(drawn) == set(layout)
        for title in ("Is the mix where it should be?", "What do the weights cost?", "Which classes suffer?"):
            assert page.get_by_text(title, exact=True).is_visible()
        assert page.get_by_text(re.compile("do not match|Missing Tags")).count() == 0
    assert {url.split("/")[2] for url in requests if url.startswith("http")} == {address.split("/")[2]}
