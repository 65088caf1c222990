import csv

import numpy as np
import pytest
import reference
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning_helpers import TARGET, Indexed, Plain, Weighted, fit, loader, moving, own_draw, recorded_draws
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Subset

from lightning_fair import FairSampling, FeedbackBatchSampler, FeedbackController, schedules
from lightning_fair.dashboard import BatchWeights, scalars


class InMemory(Logger):
    """Keeps what it is told."""

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


SCALARS = {
    "fair/alpha",
    "fair/distance",
    "fair/deficit_max",
    "fair/weight_mean",
    "fair/weight_max",
    "fair/effective_sample_size",
    "fair/coverage",
    "fair/repeats_rarest",
}


def tags(names, groups=("ratio", "target", "prob", "loss")):
    return SCALARS | {f"fair/{group}/{name}" for group in groups for name in names}


def test_values_are_those_of_the_batch_that_was_trained_on():
    module, names = Weighted(), "abcd"
    fair = moving(lag=1, class_names=list(names), alpha=schedules.Linear(2.0, 8.0, 10))
    with recorded_draws() as draws:
        points = logged(module, fair=fair, max_epochs=2)
    assert [step for step, _ in points] == list(range(40))
    ratio, losses, used = list(TARGET), [None] * 4, np.zeros(160)
    for number, ((_, values), step) in enumerate(zip(points, module.steps, strict=True)):
        probs, indices = draws[own_draw(step, draws)]
        ratio = reference.follow(ratio, np.bincount(step.labels, minlength=4), fair.controller.horizon)
        losses = reference.follow_losses(losses, step.labels, step.losses, 0.0)
        used[indices] += 1
        w = step.weights
        expected = {
            "fair/alpha": 2.0 + 6.0 * min(number / 10, 1.0),
            "fair/weight_mean": w.mean(),
            "fair/weight_max": w.max(),
            "fair/effective_sample_size": reference.effective_sample_size(w.tolist()),
            "fair/distance": np.abs(np.array(ratio) - TARGET).sum() / 2,
            "fair/deficit_max": (1 - np.array(ratio) / TARGET).max(),
            "fair/coverage": (used > 0).mean(),
            "fair/repeats_rarest": used[-12:].mean(),
        }
        for label, name in enumerate(names):
            expected[f"fair/ratio/{name}"] = ratio[label]
            expected[f"fair/target/{name}"] = TARGET[label]
            expected[f"fair/prob/{name}"] = probs[label]
            if losses[label] is not None:
                expected[f"fair/loss/{name}"] = losses[label]
        assert values == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert points[-1][1]["fair/repeats_rarest"] > 2  # 12 samples with 0.1 of 320 draws
    assert 0.0 < points[10][1]["fair/coverage"] < points[20][1]["fair/coverage"] < 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_coverage_and_repeats_count_what_was_trained_on(workers):
    """Batches that the workers have fetched ahead are not images that have been seen."""
    module = Weighted()
    points = logged(module, loader(num_workers=workers))
    used = np.zeros(160)
    for (_, values), step in zip(points, module.steps, strict=True):
        used[step.indices] += 1
        assert values["fair/coverage"] == pytest.approx((used > 0).mean(), abs=1e-9)
        assert values["fair/repeats_rarest"] == pytest.approx(used[-12:].mean(), abs=1e-9)


def test_weights_that_are_normalised_are_logged_so():
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
def test_steps_follow_log_every_n_steps(settings, steps):
    assert [step for step, _ in logged(Weighted(), **settings)] == steps


@pytest.mark.parametrize("kind", [Plain, Weighted])
def test_tags_are_complete_with_and_without_the_mixin(kind):
    last = logged(kind(), max_epochs=2)[-1][1]
    assert last.keys() == tags(
        "0123", ("ratio", "target", "prob") if kind is Plain else ("ratio", "target", "prob", "loss")
    )
    assert all(type(value) is float and np.isfinite(value) for value in last.values())


def test_tags_are_joined_as_the_logger_wants_it():
    (_, values), *_ = logged(Weighted(), separator="-")
    assert {"fair-alpha", "fair-ratio-0"} <= values.keys()
    assert not any("/" in tag for tag in values)


def test_every_logger_of_several_is_told():
    loggers = [InMemory(), InMemory()]
    fit(Weighted(), loader(), moving(), logger=loggers, log_every_n_steps=5)
    assert [len(logger.points) for logger in loggers] == [4, 4]


def test_no_logger_is_fine():
    module = Weighted()
    fit(module, loader(), moving(), logger=False, log_every_n_steps=1)
    assert len(module.steps) == 20


def test_csv_file_has_the_values(tmp_path):
    module = Weighted()
    fit(module, loader(), moving(), logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=5)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("fair/alpha")]
    assert [int(row["step"]) for row in rows] == [4, 9, 14, 19]
    assert tags("0123") <= rows[-1].keys()
    for row in rows:
        assert float(row["fair/alpha"]) == 8.0
        assert float(row["fair/weight_mean"]) == pytest.approx(module.steps[int(row["step"])].weights.mean(), rel=1e-5)


def test_tensorboard_has_the_values_in_one_file(tmp_path):
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


def test_of_many_classes_three_quantiles_are_logged():
    module = Weighted(num_classes=30)
    values = logged(module, loader(Indexed((10,) * 30)), FairSampling(seed=0))[-1][1]
    assert values.keys() == tags(["min", "median", "max"])
    for group in ("ratio", "prob", "loss"):
        assert values[f"fair/{group}/min"] < values[f"fair/{group}/median"] < values[f"fair/{group}/max"]
    assert values["fair/target/min"] == values["fair/target/max"] == pytest.approx(1 / 30)


@pytest.mark.parametrize(("K", "each"), [(20, True), (21, False)])
def test_up_to_twenty_classes_are_logged_by_name(K, each):
    sampler = FeedbackBatchSampler(np.arange(K), 4)
    draw = next(iter_records(sampler))
    values = scalars(sampler, draw, BatchWeights(1.0, 1.0, 4.0), [str(label) for label in range(K)])
    expected = [str(label) for label in range(K)] if each else ["min", "median", "max"]
    assert values.keys() == tags(expected, ("ratio", "target", "prob"))


def iter_records(sampler):
    for _ in sampler:
        yield sampler.take_record()


def test_rarest_class_is_the_smallest_of_those_with_a_target():
    sampler = FeedbackBatchSampler(
        [0] * 50 + [1] * 10 + [2], 10, controller=FeedbackController(4, [0.5, 0.5, 0.0, 0.0])
    )
    draw = next(iter_records(sampler))
    sampler.retire(draw)
    values = scalars(sampler, draw, BatchWeights(1.0, 1.0, 4.0), "abcd")
    assert values["fair/repeats_rarest"] == 0.5  # five of the ten samples of class 1


@pytest.mark.parametrize("wrap", [False, True])
def test_classes_are_named_by_the_data_set(wrap):
    data = Indexed()
    data.classes = ["cat", "dog", "owl", "elk"]
    points = logged(Weighted(), loader(Subset(data, range(160)) if wrap else data))
    assert tags(["cat", "dog", "owl", "elk"]) == points[-1][1].keys()


@pytest.mark.parametrize("normalize", [False, True])
def test_sums_of_weights_are_those_of_the_samples(normalize):
    found = BatchWeights.of(np.array([0.5, 2.0, 9.0]), np.array([3, 1, 0]), normalize=normalize)
    each = [0.5, 0.5, 0.5, 2.0]
    scale = np.mean(each) if normalize else 1.0
    assert found.mean == pytest.approx(np.mean(each) / scale)
    assert found.largest == pytest.approx(2.0 / scale)
    assert found.effective_sample_size == pytest.approx(reference.effective_sample_size(each))
