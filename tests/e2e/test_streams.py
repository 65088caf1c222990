"""Streams under Lightning: weights, checkpoints, ranks, workers, and litdata."""

import re
from collections import Counter

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning_helpers import Weighted, fit, in_any_order
from stream_resume_runs import Counting, CountingSets, cut_on_ranks
from stream_runs import TARGET, Adjusting, Files, Sums, Watching, WatchingSets, mixed, train_on_stream, turning
from torch.utils.data import DataLoader

from lightning_fair import FairDataModule, FairSampling, FairStream, FeedbackController
from lightning_fair.dataloaders.stream_tracker import StreamTracker


class Shares(Weighted):
    """Records the share of class 1 in each batch."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.steps.append(y.double().mean().item())
        return self.reduce(self.losses(x, y))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["files", "list"])
@pytest.mark.parametrize("workers", [2, 3])
def test_trained_mix_with_different_shards(source, workers, caplog):
    """The labels of the list have period 10, so one of two workers reads no sample of class 1."""
    files = Files([[0]] + [[0, 1]] * (workers - 1), 6400 // workers * 2)
    samples = [(torch.zeros(4), int(i % 10 == 9)) for i in range(12_800)] if source == "list" else files
    module, callback = Shares(), FairSampling(num_classes=2)
    loader = DataLoader(FairStream(samples, batch_size=32), batch_size=32, num_workers=workers)
    fit(module, loader, callback, max_steps=300)
    late = module.steps[2 * 16 * workers : 200 // workers * workers]
    assert np.mean(late) == pytest.approx(0.5, abs=0.01)
    assert callback.controller.trained_mix == pytest.approx(0.5, abs=0.03)
    assert [record for record in caplog.records if record.name == "lightning_fair"] == []


@pytest.mark.slow
def test_callback_scales_weights_of_workers():
    """The callback's weights include the scale of workers that balance each other."""

    class Risks(Weighted):
        def training_step(self, batch, batch_idx):
            x, y = batch
            self.steps.append(self.weighted_loss((y == 1).float() + 0.0 * self.losses(x, y)).item())
            return self.weighted_loss(self.losses(x, y))

    module = Risks()
    loader = DataLoader(FairStream(Files([[0], [0, 1]], 6400), batch_size=32), batch_size=32, num_workers=2)
    fit(module, loader, FairSampling(num_classes=2), max_steps=200)
    assert np.mean(module.steps[100:180]) == pytest.approx(0.5, abs=0.02)


def moving(**settings):
    law = {"target_probs": TARGET, "lambda2": 0.3, "loss_ema_decay": 0.0, "horizon": 16}
    return FairSampling(**{**law, **settings})


STREAMS = [
    {},
    pytest.param({"num_workers": 2}, marks=pytest.mark.slow),
    pytest.param({"num_workers": 2, "in_order": False}, marks=[in_any_order, pytest.mark.slow]),
]


@pytest.mark.parametrize("settings", STREAMS, ids=str)
def test_batch_has_weights_of_its_draw(settings):
    """The weight that acts in the training step is the one that the drawing process gave the sample."""
    module, callback = Watching(), moving()
    source = mixed(1200, None, return_weights=True)
    fit(module, DataLoader(source, batch_size=8, **settings), callback, max_epochs=2)
    assert len(module.steps) == 300
    assert sum(not np.allclose(acted, drawn, rtol=1e-5) for acted, drawn in module.steps) == 0
    assert np.ptp([drawn.max() for _, drawn in module.steps]) > 0.1
    assert callback.controller.draws == 300
    assert callback.sampler.class_counts.sum() == 2400
    assert not np.isnan(callback.controller.ema_loss).any()


@pytest.mark.parametrize("settings", STREAMS, ids=str)
def test_batch_has_weights_of_a_moved_objective(settings):
    """The drawing process knows the reference that losses have moved, and its weights are those that act."""
    module, callback = Watching(), moving(feedback_to="objective", reference=(0.1, 0.4, 0.4, 0.1))
    fit(module, DataLoader(mixed(1200, None, return_weights=True), batch_size=8, **settings), callback, max_epochs=2)
    assert len(module.steps) == 300
    assert sum(not np.allclose(acted, drawn, rtol=1e-5) for acted, drawn in module.steps) == 0
    assert np.abs(callback.controller.reference - (0.1, 0.4, 0.4, 0.1)).max() > 0.01
    assert max(drawn.max() for _, drawn in module.steps) <= 10.0 * (1 + 1e-6)  # also where a class runs short


@pytest.mark.parametrize("settings", STREAMS, ids=str)
def test_batch_has_offsets_of_its_draw(settings):
    """The offsets of the logits are those of the batch's own draw, with classes that are absent from some draws."""
    module = Adjusting()
    callback = moving(correction="logits", reference="uniform", feedback_to="objective")
    source = mixed(2400, None, return_weights=True, max_reuse=1)  # so that classes run short
    fit(module, DataLoader(source, batch_size=8, **settings), callback)
    acted, expected = np.array(module.offsets).swapaxes(0, 1)
    assert len(acted) > 290
    np.testing.assert_allclose(acted, expected, rtol=1e-4, atol=1e-4)
    assert all(drawn == trained for drawn, trained in module.draws_of_steps)
    assert acted.min() < -20.0  # a class that is absent leaves the softmax
    assert np.ptp(acted[np.abs(acted).max(axis=1) < 20.0], axis=0).max() > 0.1


def test_controller_follows_trained_batches():
    module, callback = Watching(), moving(lambda2=0.0)
    fit(module, DataLoader(mixed(2400, None, return_weights=True), batch_size=8), callback)
    assert callback.controller.trained_mix == pytest.approx(TARGET, abs=0.03)
    assert callback.sampler.handed_out / callback.sampler.handed_out.sum() == pytest.approx(TARGET, abs=0.02)


def test_stream_keeps_own_controller():
    controller = FeedbackController(4, TARGET)
    callback = FairSampling(alpha=2.0)
    with pytest.warns(UserWarning, match="has a controller of its own"):
        fit(Watching(), DataLoader(mixed(80, controller, return_weights=True), batch_size=8), callback)
    assert callback.controller is controller
    assert controller.draws == 10


def test_bound_of_own_controller():
    """The weights are bounded by the stream's own controller, not by the default of the callback."""
    largest = []
    for max_weight in (50.0, 5.0):
        callback = FairSampling()
        own = FeedbackController(4, [0.94, 0.02, 0.02, 0.02], reference="uniform", max_weight=max_weight)
        source = mixed(800, own, return_weights=True)
        fit(Watching(), DataLoader(source, batch_size=8), callback)
        largest.append(callback.largest_weight)
    assert 10.0 < largest[0] <= 50.0 * (1 + 1e-9)
    assert largest[1] == pytest.approx(5.0)


def test_losses_for_own_controller():
    """The stream's own controller says whether losses are fed back, and gets those of the raw logits for the draw."""
    controller = FeedbackController(4, TARGET, lambda2=0.3, reference="uniform")
    fit(
        Adjusting(),
        DataLoader(mixed(800, controller, return_weights=True), batch_size=8),
        FairSampling(correction="logits"),
    )
    assert np.isfinite(controller.ema_loss).all()
    assert np.abs(controller.loss_score).max() > 0.1


def test_stream_among_several_loaders():
    class Two(Watching):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["stream"], batch_idx)

    module, callback = Two(), moving(dataloader="stream")
    other = DataLoader(torch.zeros(96, 3), batch_size=8)
    fit(module, {"other": other, "stream": DataLoader(mixed(400, None, return_weights=True), batch_size=8)}, callback)
    assert sum(not np.allclose(acted, drawn, rtol=1e-5) for acted, drawn in module.steps) == 0
    assert len(module.steps) == 50


def test_restored_tracker_continues_from_trained_mix():
    module, callback = Watching(), moving()
    fit(module, DataLoader(mixed(400, None, return_weights=True), batch_size=8), callback, max_steps=30)
    seen = callback.controller.state_dict()
    tracker = StreamTracker(mixed(80, FeedbackController(4, TARGET, lambda2=0.3, loss_ema_decay=0.0)))
    tracker.restore(callback.sampler.capture())
    assert tracker.controller.draws == 30
    draw, _ = next(tracker.stream.batches())
    assert draw.draw_id == 30
    assert draw.trained_mix.tolist() == seen["trained_mix"].tolist()


class RecordingLogger(Logger):
    name, version = "logged", 0

    def __init__(self):
        super().__init__()
        self.points = []

    def log_metrics(self, metrics, step=None):
        self.points.append(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_arriving_mix_is_logged():
    logger = RecordingLogger()
    fit(
        Watching(),
        DataLoader(mixed(3200, None, return_weights=True), batch_size=8),
        moving(lambda2=0.0),
        logger=logger,
        log_every_n_steps=1,
    )
    last = logger.points[-1]
    arriving = [last[f"fair_class/arriving/{c}"] for c in range(4)]
    assert arriving == pytest.approx([0.8, 0.12, 0.05, 0.03], abs=0.1)
    assert [last[f"fair_class/trained_mix/{c}"] for c in range(4)] == pytest.approx(TARGET, abs=0.05)


def test_clipped_mass_of_a_short_stream_is_logged():
    """Where a class of a stream runs short, the callback logs the part of the reference that the loss lacks."""
    logger, labels = RecordingLogger(), turning(4, 800)
    samples = [(torch.zeros(4), y, number) for number, y in enumerate(labels)]
    source = FairStream(samples, batch_size=8, buffer_size=8, max_reuse=1)
    module, fair = Weighted(num_classes=2), FairSampling(num_classes=2)
    fit(module, DataLoader(source, batch_size=8), fair, logger=logger, log_every_n_steps=1)
    points = [point for point in logger.points if "fair/clipped_mass" in point]
    p = np.array([[point[f"fair_class/prob/{c}"] for c in range(2)] for point in points])
    mass = np.array([point["fair/clipped_mass"] for point in points])
    np.testing.assert_allclose(mass, np.maximum(0.5 - 10.0 * p, 0).sum(1), atol=1e-9)
    assert (mass > 0.1).mean() > 0.1
    assert fair.largest_weight <= 10.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Counting, CountingSets])
def test_ranks_continue(two, tmp_path, kind):
    """A run that is cut goes on with the batches of the uncut one, on each of two ranks with two workers."""
    seen = []
    for whole, rest in two(cut_on_ranks, folder=tmp_path, kind=kind):
        assert len(whole) == 5
        assert rest == whole[3:]
        seen.append({item for *_, items in whole for item in items})
    assert not seen[0] & seen[1]


@pytest.mark.slow
def test_two_ranks_agree_on_trained_mix(two):
    """Each rank reads its shard, and the controllers are equal bit for bit."""
    first, second = two(train_on_stream)
    assert isinstance(first, Sums)
    assert first.wrong == second.wrong == 0
    assert not first.items & second.items
    assert first.trained_mix == second.trained_mix  # bit for bit
    assert first.trained_mix == pytest.approx(TARGET, abs=0.04)
    assert first.draws == second.draws == 100


@pytest.mark.slow
def test_two_ranks_agree_on_several_labels(two):
    """Each rank learns from its shard what comes together, and the controllers are equal bit for bit."""
    first, second = two(train_on_stream, several=True)
    assert isinstance(first, Sums)
    assert first.wrong == second.wrong == 0
    assert not first.items & second.items
    assert first.trained_mix == second.trained_mix  # bit for bit
    assert first.draws == 100


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_fit_with_several_labels(workers):
    """Each sample has the weight of its own draw, the charts have the names of the labels, and `q` is what is reached.

    Class 3 is that of samples without a label, because the source names three of four.
    """
    logger, module, callback = RecordingLogger(), WatchingSets(), FairSampling(num_classes=4, max_weight=4.0)
    loader = DataLoader(mixed(9600, None, return_weights=True, several_labels=True), batch_size=8, num_workers=workers)
    fit(module, loader, callback, logger=logger, log_every_n_steps=1)
    assert len(module.steps) == 1200
    for acted, drawn in module.steps:
        np.testing.assert_allclose(acted, drawn, rtol=1e-5)
    assert np.ptp(np.concatenate([drawn for _, drawn in module.steps])) > 0.5
    controller, last = callback.controller, logger.points[-1]
    np.testing.assert_allclose(controller.trained_mix, controller.q, rtol=0.15)
    assert last["fair/distance"] < 0.03
    assert 1.1 < last["fair/labels_per_sample"] < 2.0
    for number, name in enumerate(["a", "b", "c", "none"]):
        assert last[f"fair_class/trained_mix/{name}"] == pytest.approx(controller.trained_mix[number])


def test_logits_are_not_corrected_for_several_labels():
    for controller in (None, FeedbackController(4)):
        fair = FairSampling(num_classes=4, correction="logits")
        with pytest.raises(ValueError, match=r"several labels, no offset .* Set correction='weights'"):
            fit(WatchingSets(), DataLoader(mixed(80, controller, several_labels=True), batch_size=8), fair)


def test_target_that_is_not_reached_is_said(caplog):
    """The labels a and b come along with others, so a target with little of them is not reached."""
    settings = {"return_weights": True, "several_labels": True}
    fair = FairSampling(num_classes=4, target_probs={"a": 0.05, "b": 0.05, "c": 0.45, "none": 0.45}, horizon=16)
    fit(WatchingSets(), DataLoader(mixed(2400, None, **settings), batch_size=8), fair)
    (message,) = said(caplog)
    assert re.search(r"No draws bring the target.* mix of labels has a 0\.\d+ in place of 0\.05", message)
    fair = FairSampling(num_classes=4, target_probs={"a": 0.2, "b": 0.1, "c": 0.35, "none": 0.35}, horizon=16)
    caplog.clear()
    fit(WatchingSets(), DataLoader(mixed(2400, None, **settings), batch_size=8), fair)
    assert not said(caplog)


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "lightning_fair"]


def test_fair_data_module_passes_stream_on():
    class Module(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(mixed(80, FeedbackController(4), return_weights=True), batch_size=8)

    assert len(list(FairDataModule(Module()).train_dataloader())) == 10
    callback = FairSampling()
    fit(Watching(), FairDataModule(Module(), fair=callback))
    assert callback.controller.draws == 10


def test_batch_sizes_must_agree():
    with pytest.raises(ValueError, match=r"batch_size is 4, that of its FairStream 8.*batch_size=8"):
        fit(Weighted(), DataLoader(mixed(80, None), batch_size=4), moving())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "does not show how many classes it has"),
        ({"num_classes": 4, "target_probs": "prior"}, "has no prior"),
        ({"num_classes": 4, "reference": "prior"}, "has no prior"),
        ({"num_classes": 4, "labels": [0, 1]}, "labels is for data sets with a length"),
        ({"num_classes": 4, "steps_per_epoch": 3}, "limit_train_batches"),
    ],
)
def test_settings_not_for_streams_raise(settings, match):
    with pytest.raises(ValueError, match=match):
        fit(Weighted(), DataLoader(mixed(80, None), batch_size=8), FairSampling(**settings))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"seed": 3}, r"seed=3 has no effect on a FairStream: set FairStream\(seed=3\)"),
        ({"feedback_delay": 5}, "feedback_delay=5 has no effect on a FairStream"),
        ({"empty_classes": "skip"}, "empty_classes='skip' has no effect on a FairStream"),
    ],
)
def test_settings_without_effect_warn(settings, match):
    with pytest.warns(UserWarning, match=match):
        fit(Weighted(), DataLoader(mixed(80, None), batch_size=8), FairSampling(num_classes=4, **settings))


def _write(index):
    return {"x": np.full((4, 4), index, dtype=np.float32), "label": int(index % 100 == 99)}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_litdata_stream(tmp_path, workers):
    litdata = pytest.importorskip("litdata", reason="litdata is not installed: pip install litdata")
    from litdata.streaming import Cache

    cache = Cache(str(tmp_path), chunk_size=500)
    for index in range(4000):
        cache[index] = _write(index)
    cache.done()
    cache.merge()
    source = litdata.StreamingDataset(str(tmp_path), shuffle=False)
    assert len(source) == 4000
    fair = FairStream(source, FeedbackController(2), batch_size=16, buffer_size=64, return_weights=True)
    counts, items = [], Counter()
    for batch in DataLoader(fair, batch_size=16, num_workers=workers):
        assert [int(i) % 100 == 99 for i in batch["x"][:, 0, 0]] == batch["label"].bool().tolist()
        counts.append(int(batch["label"].sum()))
        items.update(batch["x"][:, 0, 0].int().tolist())
    assert sum(items.values()) == 4000
    assert np.mean(counts[50:]) == pytest.approx(8.0, abs=0.5)
    assert max(items.values()) <= 64
