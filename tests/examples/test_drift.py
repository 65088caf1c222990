"""The stream whose class mix turns over, and the measure of how soon the trained mix recovers."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from recipe_helpers import fake_mnist
from recipes.data import DigitsDataModule
from recipes.drift import DriftDataModule, Recovery
from recipes.models import mlp
from recipes.task import ClassificationTask
from torch.utils.data import DataLoader

from lightning_fair import FairSampling, FairStream

Small = partial(DriftDataModule, cycles=2, turn_size=640, batch_size=32, buffer=64)


def train(data, *callbacks):
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    num_classes = getattr(data, "num_classes", 10)
    task = ClassificationTask(mlp(num_classes=num_classes), num_classes, lr=3e-3)
    trainer.fit(task, datamodule=data)
    return task, trainer


def test_long_tail_is_reversed_after_every_turn():
    data = Small(imbalance_ratio=50, turn_size=5000)
    data.setup()
    counts = [np.bincount(turn, minlength=10) for turn in data.train_set.labels.reshape(4, -1)]
    for turn, count in enumerate(counts):
        count = count if turn % 2 == 0 else count[::-1]
        # Class 0 has a share of 0.40 and class 9 of 0.008: deviations 35 and 6.
        assert count[0] == pytest.approx(5000 * 0.353, abs=200)
        assert count[0] / count[9] == pytest.approx(50, rel=0.5)
    assert data.train_set.class_counts.tolist() == np.sum(counts, axis=0).tolist()


def test_images_are_those_of_the_labels_and_come_in_turn():
    data = Small()
    data.setup()
    stream = data.train_set
    assert [y for _, y in stream] == stream.labels.tolist()
    for c in range(10):
        uses = np.bincount(stream.places[stream.labels == c])
        assert uses.max() - uses[uses > 0].min() <= 1


def test_workers_share_the_stream():
    data = Small(num_workers=2)
    data.setup()
    labels = torch.cat([y for _, y in DataLoader(data.train_set, batch_size=32, num_workers=2)])
    assert labels.bincount(minlength=10).tolist() == data.train_set.class_counts.tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("callbacks", [[], [FairSampling()]], ids=["bare", "fair"])
def test_ranks_share_the_stream(workers, callbacks):
    seen = []
    for rank in range(2):
        data = Small(num_workers=workers)
        data.setup()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, callbacks=callbacks, datamodule=data)
        loader = data.train_dataloader()
        stream = getattr(loader.dataset, "source", loader.dataset)
        assert len(stream) == 2 * 640
        seen.append(torch.cat([y for _, y in DataLoader(stream, batch_size=32, num_workers=workers)]))
        assert len(seen[-1]) == 2 * 640
    assert torch.cat(seen).bincount(minlength=10).tolist() == data.train_set.class_counts.tolist()
    if not workers:
        assert torch.stack(seen, 1).ravel().tolist() == data.train_set.labels.tolist()


def test_held_out_sets_have_the_classes_that_come():
    data = Small(num_classes=2)
    data.setup()
    for held in (data.val_set, data.test_set):
        assert {y for _, y in held} == {0, 1}


def test_moments_are_those_of_the_images_that_can_come():
    data = Small(num_classes=2)
    data.setup()
    images = torch.stack([image for image, y in data.train_set.images])
    assert {y for _, y in data.train_set.images} == {0, 1}
    mean, deviation = data.moments()
    torch.testing.assert_close(mean, images.mean().view(1))
    torch.testing.assert_close(deviation, images.std(correction=0).view(1))


def test_loader_is_fair_with_the_callback_and_bare_without():
    data = Small()
    data.setup()
    assert data.train_dataloader().dataset is data.train_set
    train(data, fair := FairSampling())
    assert isinstance(fair.sampler.stream, FairStream)
    assert fair.sampler.stream.source is data.train_set


@pytest.mark.parametrize("settings", [{"num_classes": 2, "imbalance_ratio": 99}, {"num_workers": 2}], ids=str)
def test_trained_mix_recovers_from_every_turn_with_the_callback(settings, capsys):
    recovery = Recovery()
    task, _ = train(Small(**settings), FairSampling(), recovery)
    assert len(recovery.recoveries) == 4
    assert all(batches is not None and batches <= 16 for batches in recovery.recoveries[1:])
    assert task.drawn.sum() == 4 * 640
    shares = (task.drawn / task.drawn.sum()).tolist()
    assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=0.02)
    assert "Recovery after 3 turns, to within 2 % of the target: median" in capsys.readouterr().out


def test_turn_that_is_read_at_once_with_others_has_recovered_where_the_mix_has():
    recovery = Recovery()
    data = Small(num_classes=2, imbalance_ratio=1, cycles=20, turn_size=40)  # 64 + 4 * 32 are read at once
    train(data, FairSampling(), recovery)
    assert recovery.recoveries == [0] * 40


def test_mnist_comes_as_a_stream_too(tmp_path):
    fake_mnist(tmp_path, packed=True)
    data = Small(num_classes=3, mnist_root=str(tmp_path), turn_size=64)
    data.prepare_data()
    data.setup()
    image, label = next(iter(data.train_set))
    assert image.shape == (1, 28, 28)
    torch.testing.assert_close(image[0, 3, 4], torch.tensor(label * 25 / 255))
    assert {y for held in (data.val_set, data.test_set, data.train_set) for _, y in held} == {0, 1, 2}


def test_trained_mix_never_recovers_without_it():
    recovery = Recovery()
    train(Small(num_classes=2, imbalance_ratio=99), recovery)
    assert recovery.recoveries == [None] * 4
    assert recovery.mixes[19][0] > 0.8  # from the target on, over a memory of 16 batches
    assert recovery.mixes[39][0] < 0.3
    assert recovery.arrived[-1] == 4 * 640
    assert sum(recovery.counts).tolist() == recovery.stream.class_counts.tolist()


@pytest.mark.parametrize("lambda2", [0.0, 0.5])
def test_loss_feedback_keeps_the_mix_off_the_target_and_the_outcome_says_so(lambda2, capsys):
    recovery = Recovery(tolerance=0.01 if lambda2 else 1e-9)  # that none can keep to
    train(Small(), FairSampling(lambda2=lambda2), recovery)
    told = capsys.readouterr().out
    assert "never." in told
    assert ("The feedback of the losses (fair.lambda2) keeps the mix away from the target" in told) == bool(lambda2)


def test_recovery_wants_a_stream_that_turns_over():
    data = DigitsDataModule()
    with pytest.raises(ValueError, match=r"stream that turns over, and DigitsDataModule gives none\. Take data=drift"):
        train(data, Recovery())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_classes": 1}, r"num_classes must lie in \[2, 10\]"),
        ({"imbalance_ratio": 0.5}, "imbalance_ratio must be at least 1"),
        ({"cycles": 0}, "cycles must be at least 1"),
        ({"turn_size": 0}, "turn_size must be"),
        ({"buffer": 0}, "buffer must be"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        DriftDataModule(**settings)


@pytest.mark.parametrize("settings", [{"tolerance": 0.0}, {"horizon": 0.5}])
def test_measure_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        Recovery(**settings)
