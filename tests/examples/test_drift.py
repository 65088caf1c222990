"""The stream whose class mix is reversed, and the measure of how soon the trained mix recovers."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from recipe_helpers import fake_mnist
from recipes.classifier import Classifier
from recipes.data import DigitsDataModule
from recipes.drift import DriftDataModule
from recipes.models import mlp
from recipes.recovery import Recovery
from torch.utils.data import DataLoader

from lightning_fair import FairSampling, FairStream

Small = partial(DriftDataModule, cycles=2, turn_size=640, batch_size=32, buffer_size=64)


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
    model = Classifier(mlp(num_classes=num_classes), num_classes, lr=3e-3)
    trainer.fit(model, datamodule=data)
    return model, trainer


def test_long_tail_is_reversed():
    data = Small(imbalance_ratio=50, turn_size=5000)
    data.setup()
    counts = [np.bincount(turn, minlength=10) for turn in data.train_set.labels.reshape(4, -1)]
    for turn, count in enumerate(counts):
        count = count if turn % 2 == 0 else count[::-1]
        # Class 0 has a share of 0.40 and class 9 of 0.008: deviations 35 and 6.
        assert count[0] == pytest.approx(5000 * 0.353, abs=200)
        assert count[0] / count[9] == pytest.approx(50, rel=0.5)
    assert data.train_set.class_counts.tolist() == np.sum(counts, axis=0).tolist()


def test_images_match_labels():
    """Within a class the images take turns."""
    data = Small()
    data.setup()
    stream = data.train_set
    assert [y for _, y in stream] == stream.labels.tolist()
    for c in range(10):
        uses = np.bincount(stream.indices[stream.labels == c])
        assert uses.max() - uses[uses > 0].min() <= 1


@pytest.mark.slow
def test_workers_share_the_stream():
    data = Small(num_workers=2)
    data.setup()
    labels = torch.cat([y for _, y in DataLoader(data.train_set, batch_size=32, num_workers=2)])
    assert labels.bincount(minlength=10).tolist() == data.train_set.class_counts.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("callbacks", [[], [FairSampling()]], ids=["bare", "fair"])
def test_ranks_share_the_stream(workers, callbacks):
    labels = []
    for rank in range(2):
        data = Small(num_workers=workers)
        data.setup()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, callbacks=callbacks, datamodule=data)
        loader = data.train_dataloader()
        stream = getattr(loader.dataset, "source", loader.dataset)
        assert len(stream) == 2 * 640
        labels.append(torch.cat([y for _, y in DataLoader(stream, batch_size=32, num_workers=workers)]))
        assert len(labels[-1]) == 2 * 640
    assert torch.cat(labels).bincount(minlength=10).tolist() == data.train_set.class_counts.tolist()
    if not workers:
        assert torch.stack(labels, 1).ravel().tolist() == data.train_set.labels.tolist()


def test_held_out_sets_have_same_classes():
    data = Small(num_classes=2)
    data.setup()
    for held in (data.val_set, data.test_set):
        assert {y for _, y in held} == {0, 1}


def test_channel_mean_std_of_stream():
    """Classes outside the stream do not count."""
    data = Small(num_classes=2)
    data.setup()
    images = torch.stack([image for image, y in data.train_set.images])
    assert {y for _, y in data.train_set.images} == {0, 1}
    mean, std = data.channel_mean_std()
    torch.testing.assert_close(mean, images.mean().view(1))
    torch.testing.assert_close(std, images.std(correction=0).view(1))


@pytest.mark.slow
def test_loader_is_fair_with_callback():
    """Without the callback it reads the stream itself."""
    data = Small()
    data.setup()
    assert data.train_dataloader().dataset is data.train_set
    train(data, fair := FairSampling())
    assert isinstance(fair.sampler.stream, FairStream)
    assert fair.sampler.stream.source is data.train_set


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"num_classes": 2, "imbalance_ratio": 99}, {"num_workers": 2}], ids=str)
def test_trained_mix_recovers(settings, capsys):
    recovery = Recovery()
    model, _ = train(Small(**settings), FairSampling(), recovery)
    assert len(recovery.recoveries) == 4
    assert all(batches is not None and batches <= 16 for batches in recovery.recoveries[1:])
    assert recovery.median == np.median(recovery.recoveries[1:])
    assert model.drawn.sum() == 4 * 640
    shares = (model.drawn / model.drawn.sum()).tolist()
    assert shares == pytest.approx([1 / len(shares)] * len(shares), abs=0.02)
    assert "Recovery after 3 turns, to within 2 % of the target: median" in capsys.readouterr().out


@pytest.mark.slow
def test_turn_without_batches_recovers():
    """Short turns are read several at once; a turn without a batch continues the state of the mix."""
    recovery = Recovery()
    data = Small(num_classes=2, imbalance_ratio=1, cycles=20, turn_size=40)  # 64 + 4 * 32 are read at once
    train(data, FairSampling(), recovery)
    assert recovery.recoveries == [0] * 40


def test_mnist_as_stream(tmp_path):
    fake_mnist(tmp_path, packed=True)
    data = Small(num_classes=3, mnist_root=str(tmp_path), turn_size=64)
    data.prepare_data()
    data.setup()
    image, label = next(iter(data.train_set))
    assert image.shape == (1, 28, 28)
    torch.testing.assert_close(image[0, 3, 4], torch.tensor(label * 25 / 255))
    assert {y for held in (data.val_set, data.test_set, data.train_set) for _, y in held} == {0, 1, 2}


@pytest.mark.slow
def test_no_recovery_without_plugin():
    recovery = Recovery()
    train(Small(num_classes=2, imbalance_ratio=99), recovery)
    assert recovery.recoveries == [None] * 4
    assert (recovery.waits, recovery.median) == ([20] * 4, 20.0)  # all batches of each turn
    assert recovery.mixes[19][0] > 0.8  # from the target on, over a memory of 16 batches
    assert recovery.mixes[39][0] < 0.3
    assert recovery.arrived[-1] == 4 * 640
    assert sum(recovery.counts).tolist() == recovery.stream.class_counts.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("lambda2", [0.0, 0.5])
def test_loss_feedback_is_named_as_cause(lambda2, capsys):
    """Loss feedback keeps the mix away from the target, and the summary says so."""
    recovery = Recovery(tolerance=0.01 if lambda2 else 1e-9)  # that none can keep to
    train(Small(), FairSampling(lambda2=lambda2), recovery)
    text = capsys.readouterr().out
    assert "never." in text
    assert ("Loss feedback (fair.lambda2) keeps the trained mix away from the target" in text) == bool(lambda2)


def test_recovery_needs_drift_stream():
    data = DigitsDataModule()
    with pytest.raises(ValueError, match=r"needs a DriftStream, but DigitsDataModule has none\. Set data=drift"):
        train(data, Recovery())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_classes": 1}, r"num_classes must lie in \[2, 10\]"),
        ({"imbalance_ratio": 0.5}, "imbalance_ratio must be at least 1"),
        ({"cycles": 0}, "cycles must be at least 1"),
        ({"turn_size": 0}, "turn_size must be"),
        ({"buffer_size": 0}, "buffer_size must be"),
    ],
)
def test_bad_arguments_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        DriftDataModule(**settings)


@pytest.mark.parametrize("settings", [{"tolerance": 0.0}, {"horizon": 0.5}])
def test_bad_recovery_arguments_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        Recovery(**settings)
