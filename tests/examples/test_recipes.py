"""The recipes: long-tailed subsets, data modules, networks, task and report."""

from urllib.error import URLError

import lightning as L
import numpy as np
import pytest
import torch
from recipe_helpers import fake_mnist
from recipes.augment import RandomWarp
from recipes.data import DigitsDataModule, Images, MNISTDataModule, deal, read_idx
from recipes.longtail import LongTail, long_tail_counts
from recipes.models import mlp, small_cnn
from recipes.report import make_report
from recipes.task import ClassificationTask, ClassRecall
from rich.console import Console
from torch.utils.data import Subset, TensorDataset

from lightning_fair import FairSampling
from lightning_fair.common.labels import find_labels


def labelled(*sizes):
    """A data set of the given class sizes, in shuffled order."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return TensorDataset(torch.arange(labels.size), torch.from_numpy(labels))


# -- long tails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "largest", "ratio", "total"),
    [
        (10, 5000, 100, 12_406),
        (10, 5000, 50, 13_996),
        (10, 5000, 10, 20_431),
        (100, 500, 100, 10_847),
        (100, 500, 50, 12_608),
        (100, 500, 10, 19_573),
    ],
)
def test_long_tail_totals_are_the_published_ones_of_cifar_lt(num_classes, largest, ratio, total):
    tail = LongTail(labelled(*[largest] * num_classes), imbalance_ratio=ratio)
    assert len(tail) == total
    assert tail.class_counts[0] == largest
    assert tail.class_counts[-1] == largest // ratio
    assert (np.diff(tail.class_counts) <= 0).all()


def test_long_tail_counts_follow_the_formula():
    K, n, ratio = 7, 321, 37.0
    expected = [max(int(n * (1 / ratio) ** (c / (K - 1))), 1) for c in range(K)]
    assert long_tail_counts(K, n, ratio).tolist() == expected


def test_step_tail_cuts_the_second_half_of_the_classes():
    assert LongTail(labelled(50, 50, 50, 50), 10, "step").class_counts.tolist() == [50, 50, 5, 5]
    assert long_tail_counts(5, 50, 10, "step").tolist() == [50, 50, 50, 5, 5]


def test_long_tail_keeps_no_more_than_a_class_has_and_at_least_one():
    tail = LongTail(labelled(20, 100, 3, 100), imbalance_ratio=1000)
    assert tail.class_counts.tolist() == [20, 10, 1, 1]
    assert LongTail(labelled(5, 5), imbalance_ratio=1).class_counts.tolist() == [5, 5]
    assert LongTail(labelled(5), imbalance_ratio=9).class_counts.tolist() == [5]


def test_long_tail_of_a_stated_head():
    assert LongTail(labelled(110, 120, 118), 100, largest=100).class_counts.tolist() == [100, 10, 1]


def test_long_tail_without_a_seed_keeps_the_first_of_each_class():
    dataset = labelled(40, 40)
    labels = find_labels(dataset)
    tail = LongTail(dataset, imbalance_ratio=4)
    expected = np.sort(np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:10]]))
    assert list(tail.indices) == expected.tolist()


def test_long_tail_with_a_seed_is_a_repeatable_random_choice():
    dataset = labelled(40, 40)
    first, again, other = (LongTail(dataset, 4, seed=s).indices for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, LongTail(dataset, 4).indices)


def test_long_tail_targets_are_the_labels_of_its_items_also_inside_a_subset():
    dataset = labelled(30, 30, 30)
    tail = LongTail(Subset(dataset, range(10, 90)), 5, seed=0)
    assert tail.targets.tolist() == [int(tail[i][1]) for i in range(len(tail))]
    assert np.array_equal(find_labels(tail), tail.targets)


def test_long_tail_knows_the_class_names_of_the_data_set_inside():
    images = Images(np.zeros((4, 2, 2), np.uint8), np.array([0, 0, 1, 1]), ["cat", "dog"], white=255.0)
    assert LongTail(Subset(images, [0, 1, 2]), 2).classes == ["cat", "dog"]
    assert LongTail(labelled(3, 3), 2).classes is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"imbalance_ratio": 0.01}, r"at least 1, got 0\.01.*pass 100"),
        ({"imbalance_ratio": float("nan")}, "at least 1, got nan"),
        ({"imbalance_ratio": 10, "kind": "linear"}, "kind must be 'exp' or 'step', got 'linear'"),
        ({"imbalance_ratio": 10, "largest": 0}, "largest must be at least 1, got 0"),
        ({"imbalance_ratio": 10, "seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_long_tail_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LongTail(labelled(10, 10), **kwargs)


# -- data modules --------------------------------------------------------------------------------------------


def test_digits_are_100_to_1_and_the_parts_are_disjoint_and_stratified():
    data = DigitsDataModule(seed=3)
    data.setup()
    assert data.train_set.class_counts.tolist() == [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]
    base = data.test_set.dataset
    train = {data.train_set.dataset.indices[i] for i in data.train_set.indices}
    parts = [train, set(data.val_set.indices), set(data.test_set.indices)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    sizes = np.bincount(base.targets[data.test_set.indices])
    assert sizes.min() >= 58  # a third of 174 to 183
    assert sizes.max() <= 61


def test_digits_split_and_tail_follow_the_seed():
    def chosen(seed):
        data = DigitsDataModule(seed=seed)
        data.setup()
        return data.test_set.indices, data.train_set.indices

    for first, again in zip(chosen(1), chosen(1), strict=True):
        assert np.array_equal(first, again)
    assert not np.array_equal(chosen(1)[0], chosen(2)[0])


def test_digits_setup_again_keeps_the_data_sets():
    data = DigitsDataModule()
    data.setup("fit")
    before = data.train_set
    data.setup("test")
    assert data.train_set is before


def test_indices_are_arrays_and_workers_and_batches_get_the_right_items():
    data = DigitsDataModule(num_workers=1)
    data.setup()
    for dataset in (data.train_set, data.train_set.dataset, data.val_set, data.test_set):
        assert isinstance(dataset.indices, np.ndarray)
    x, y = next(iter(data.test_dataloader()))
    one = [data.test_set[i] for i in range(len(x))]
    assert torch.equal(x, torch.stack([image for image, _ in one]))
    assert y.tolist() == [label for _, label in one]
    assert torch.equal(x, data.test_set.dataset.images[data.test_set.indices[: len(x)]] / 16)


@pytest.mark.parametrize("module", [DigitsDataModule, MNISTDataModule])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ],
)
def test_data_modules_refuse(module, kwargs, message):
    with pytest.raises(ValueError, match=message):
        module(**kwargs)


def test_images_are_scaled_to_one_and_have_a_channel():
    image, label = Images(np.full((1, 2, 2), 16, np.uint8), np.array([3]), list("0123"), white=16.0)[0]
    assert torch.equal(image, torch.ones(1, 2, 2))
    assert label == 3


def test_deal_refuses_shares_beyond_the_whole():
    with pytest.raises(ValueError, match="at most 1 in all"):
        deal(np.array([0, 1]), (0.7, 0.4), seed=0)


def test_deal_splits_every_class_and_leaves_nothing_out():
    labels = np.random.default_rng(0).integers(0, 3, 100)
    parts = deal(labels, (0.5, 0.0), seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert np.bincount(labels[parts[0]]).tolist() == np.rint(0.5 * np.bincount(labels)).tolist()
    assert parts[1].size == 0
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.fixture
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_where_it_lies_and_nothing_is_written(tmp_path, packed):
    raw = fake_mnist(tmp_path, packed)
    before = sorted(raw.rglob("*"))
    data = MNISTDataModule(str(tmp_path), imbalance_ratio=10, largest=20)
    data.prepare_data()
    data.setup()
    assert data.train_set.class_counts.tolist() == long_tail_counts(10, 20, 10).tolist()
    assert len(data.val_set) == 20  # 1 / 15 of 30 images, 10 classes
    assert len(data.test_set) == 40
    for image, label in (data.train_set[5], data.test_set[7]):
        assert image.shape == (1, 28, 28)
        torch.testing.assert_close(image[0, 3, 4], torch.tensor(label * 25 / 255))
    assert sorted(raw.rglob("*")) == before


@pytest.mark.usefixtures("_no_network")
def test_mnist_without_data_and_network_says_what_to_do(tmp_path):
    data = MNISTDataModule(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded.*data\.root=.*experiment=digits"):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"Call prepare_data\(\) first"):
        data.setup()


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("before", [".", "a/b", "a/b/MNIST"])
def test_a_failed_download_leaves_the_folders_as_they_were(tmp_path, before):
    (tmp_path / before).mkdir(parents=True, exist_ok=True)
    folders = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError):
        MNISTDataModule(str(tmp_path / "a" / "b")).prepare_data()
    assert sorted(tmp_path.rglob("*")) == folders


def test_a_download_that_breaks_off_keeps_what_it_got(tmp_path, monkeypatch):
    def break_off(url, download_root, filename, md5):
        (tmp_path / "MNIST" / "raw" / filename).write_bytes(b"part")
        raise URLError("gone")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", break_off)
    with pytest.raises(FileNotFoundError):
        MNISTDataModule(str(tmp_path)).prepare_data()
    assert len(list((tmp_path / "MNIST" / "raw").iterdir())) == 1


@pytest.mark.usefixtures("_no_network")
def test_mnist_names_the_files_that_are_missing(tmp_path):
    raw = fake_mnist(tmp_path, packed=True)
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: t10k-labels-idx1-ubyte\)"):
        MNISTDataModule(str(tmp_path)).prepare_data()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"<html>", b"\0\0\x08\x01\0\0\0\x05abc"])
def test_a_file_that_is_not_a_whole_idx_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte is not a whole idx file"):
        read_idx(path)


# -- networks and task ---------------------------------------------------------------------------------------


def test_cnn_for_mnist_gives_logits():
    assert small_cnn(image_size=28, channels=(4, 8, 8))(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert mlp(image_size=8, hidden=())(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("kwargs", [{"image_size": 7}, {"channels": ()}])
def test_cnn_refuses_an_image_it_cannot_halve(kwargs):
    with pytest.raises(ValueError, match="must be divisible"):
        small_cnn(**kwargs)


def test_warp_of_nothing_changes_nothing_and_a_warp_differs_by_image():
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    torch.testing.assert_close(RandomWarp(0.0, 0.0)(x), x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        warped = RandomWarp()(x)
    assert not torch.allclose(warped[0], warped[1])
    with pytest.raises(ValueError, match="shift must lie in"):
        RandomWarp(shift=2.0)
    with pytest.raises(ValueError, match="distort must lie in"):
        RandomWarp(distort=1.0)


def fit(*callbacks):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = ClassificationTask(mlp())
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitsDataModule()
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    return task, data, trainer


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_task_counts_the_draws_it_saw_with_and_without_the_plugin():
    task, data, trainer = fit()
    assert task.drawn.tolist() == data.train_set.class_counts.tolist()
    assert not any(isinstance(callback, FairSampling) for callback in trainer.callbacks)
    fair = FairSampling(seed=0)
    task, data, _ = fit(fair)
    assert task.drawn.tolist() == fair.sampler.drawn.tolist()
    assert int(task.drawn.sum()) == 8 * 32
    assert int(task.steps) == 8
    assert task.test_recall.shape == (10,)


def test_recall_of_a_class_without_samples_is_none_also_where_it_is_predicted():
    recall = ClassRecall(4)
    for predicted, labels in (([0, 1], [0, 0]), ([2, 3, 3], [2, 2, 2])):
        recall.update(torch.tensor(predicted), torch.tensor(labels))
    torch.testing.assert_close(recall.compute(), torch.tensor([1 / 2, torch.nan, 1 / 3, torch.nan]), equal_nan=True)


# -- report --------------------------------------------------------------------------------------------------


def shown(*parts):
    console = Console(width=100)
    with console.capture() as text:
        for part in parts:
            console.print(part)
    return text.get()


def test_report_computes_what_it_says_and_shows_it():
    report = make_report(["a", "b"], [99, 1], torch.tensor([30, 10]), [1.0, 0.5], 0.75, 2.0, 31.5)
    assert report.share_of_draws.tolist() == [0.75, 0.25]
    assert report.balanced_accuracy == 0.75
    assert report.prior_accuracy == pytest.approx(0.995)
    seen = shown(report.table("Title"), report.summary())
    for text in ("Title", "training images", "75.0 %", "0.500", "balanced accuracy", "2.00", "31.5"):
        assert text in seen


def test_a_class_without_test_images_has_no_recall_and_counts_in_no_mean():
    report = make_report("abcd", [300, 200, 50, 5], [1] * 4, [1.0, np.nan, 0.5, np.nan], 0.9, 1.0, 32.0)
    assert report.balanced_accuracy == 0.75
    assert report.prior_accuracy == pytest.approx((300 * 1.0 + 50 * 0.5) / 350)
    assert report.shots == pytest.approx({"many": 1.0, "medium": 0.5, "few": np.nan}, nan_ok=True)
    text = shown(report.table(), report.summary())
    assert "nan" not in text
    assert [line.split("│")[4].strip() for line in text.splitlines() if line.startswith("│")] == [
        *("1.000", "-", "0.500", "-"),
        "0.750",
    ]
    assert "mean of the recalls of the 2 tested classes, after the last epoch" in text
    assert "few-shot             -" in text


def test_names_that_look_like_markup_are_shown_as_they_are():
    names = ["[unk]", "[/]", "[red]x[/red]", "[/c]"]
    text = shown(make_report(names, [1] * 4, [1] * 4, [1.0] * 4, 1.0, 1.0, 32.0).table())
    assert [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")] == [*names, "all"]


def test_report_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match=r"equally many, got \[1, 2, 1, 1\]"):
        make_report(["a"], [1, 2], [1], [1.0], 1.0, 1.0, 1.0)
