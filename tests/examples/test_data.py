"""Data modules of digits, MNIST and CIFAR."""

import hashlib
import pickle
from urllib.error import URLError

import lightning as L
import numpy as np
import pytest
import torch
from recipe_helpers import fake_mnist
from recipes.arrays import ArraysDataModule
from recipes.augment import Standardize
from recipes.baselines import weighted_sampler
from recipes.classifier import Classifier
from recipes.data import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    MNISTDataModule,
    read_idx,
    stratified_split,
)
from recipes.images import Images, JoinedImages
from recipes.longtail import long_tail_counts
from recipes.models import mlp
from torch.utils.data import Subset
from torchvision import datasets

from lightning_fair.common.labels import find_labels


def test_digits_parts_are_disjoint():
    """The training set is 100 to 1, the parts are disjoint, and the test set is stratified."""
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


def test_digits_follow_seed():
    def chosen(seed):
        data = DigitsDataModule(seed=seed)
        data.setup()
        return data.test_set.indices, data.train_set.indices

    for first, second in zip(chosen(1), chosen(1), strict=True):
        assert np.array_equal(first, second)
    assert not np.array_equal(chosen(1)[0], chosen(2)[0])


def test_second_setup_keeps_data():
    data = DigitsDataModule()
    data.setup("fit")
    before = data.train_set
    data.setup("test")
    assert data.train_set is before


@pytest.mark.slow
def test_worker_gets_right_items():
    data = DigitsDataModule(num_workers=1)
    data.setup()
    for dataset in (data.train_set, data.train_set.dataset, data.val_set, data.test_set):
        assert isinstance(dataset.indices, np.ndarray)
    x, y = next(iter(data.test_dataloader()))
    one = [data.test_set[i] for i in range(len(x))]
    assert torch.equal(x, torch.stack([image for image, _ in one]))
    assert y.tolist() == [label for _, label in one]
    assert torch.equal(x, data.test_set.dataset.images[data.test_set.indices[: len(x)]] / 16)


MODULES = [DigitsDataModule, MNISTDataModule, CIFAR10DataModule, CIFAR100DataModule]


@pytest.mark.parametrize(
    "module", [*MODULES, lambda **kwargs: ArraysDataModule("x", **kwargs)], ids=lambda module: module.__name__
)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be an integer of at least 0, got -1"),
        ({"val_per_class": 2.5}, "val_per_class must be an integer of at least 1, got 2.5"),
    ],
)
def test_bad_arguments_are_refused(module, kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        module(**kwargs)


def test_gray_images_have_channel():
    image, label = Images(np.full((1, 2, 2), 16, np.uint8), np.array([3]), list("0123"), white=16.0)[0]
    assert torch.equal(image, torch.ones(1, 2, 2))
    assert label == 3


def test_color_images_have_channels_first():
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    image, _ = Images(pixels, np.array([0]), ["a"], white=255.0)[0]
    assert image.shape == (3, 2, 4)
    assert (image * 255).round().int()[2, 1, 3] == pixels[0, 1, 3, 2]


# -- MNIST -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_in_place(tmp_path, packed):
    """Files are read, unpacked or packed, and nothing is written."""
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


@pytest.mark.usefixtures("no_network")
def test_missing_mnist_says_remedy(tmp_path):
    data = MNISTDataModule(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded.*data\.root=.*experiment=digits"):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"Call prepare_data\(\) first"):
        data.setup()


@pytest.mark.usefixtures("no_network")
def test_missing_mnist_files_are_named(tmp_path):
    raw = fake_mnist(tmp_path, packed=True)
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: t10k-labels-idx1\)"):
        MNISTDataModule(str(tmp_path)).prepare_data()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"<html>", b"\0\0\x08\x01\0\0\0\x05abc"])
def test_damaged_idx_file_is_refused(tmp_path, content):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte is not a whole idx file"):
        read_idx(path)


# -- CIFAR -----------------------------------------------------------------------------------------------------

KINDS = {
    CIFAR10DataModule: (datasets.CIFAR10, "cifar-10-batches-py", "labels", 10),
    CIFAR100DataModule: (datasets.CIFAR100, "cifar-100-python", "fine_labels", 100),
}


def fake_files(monkeypatch, root, module, each=4):
    """Write files of torchvision's layout with ``each`` training images a class; test images are labels in red."""
    dataset, folder, key, num_classes = KINDS[module]
    (root / folder).mkdir(parents=True)

    def write(name, content):
        raw = pickle.dumps(content)
        (root / folder / name).write_bytes(raw)
        return name, hashlib.md5(raw).hexdigest()

    labels = np.tile(np.arange(num_classes), each)
    pixels = np.zeros((labels.size, 3, 32, 32), np.uint8)
    pixels[:, 0, 5, 7] = labels  # red, row 5, column 7
    part = {"data": pixels.reshape(labels.size, -1), key: labels.tolist()}
    monkeypatch.setattr(dataset, "train_list", [write("train", part)])
    monkeypatch.setattr(dataset, "test_list", [write("test", part)])
    meta = dict(dataset.meta)
    names = [f"class {label}" for label in range(num_classes)]
    meta["filename"], meta["md5"] = write("meta", {meta["key"]: names})
    monkeypatch.setattr(dataset, "meta", meta)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("module", KINDS)
def test_cifar_is_read_in_place(tmp_path, monkeypatch, module):
    """Nothing is written, and validation is on the test set."""
    fake_files(monkeypatch, tmp_path, module)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = module(str(tmp_path), imbalance_ratio=4)
    data.prepare_data()
    data.setup()
    num_classes = KINDS[module][3]
    assert data.train_set.class_counts.tolist() == long_tail_counts(num_classes, 4, 4).tolist()
    assert data.train_set.classes == [f"class {label}" for label in range(num_classes)]
    assert data.val_set is data.test_set
    assert len(data.test_set) == 4 * num_classes
    image, label = data.test_set[9]
    assert image.shape == (3, 32, 32)
    assert label == 9
    assert image[0, 5, 7] == torch.tensor(9) * (1 / 255)
    assert image.sum() == image[0, 5, 7]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("module", KINDS)
def test_missing_cifar_says_remedy(tmp_path, module):
    data = module(str(tmp_path / "a" / "b"))
    folder = KINDS[module][1]
    with pytest.raises(FileNotFoundError, match=rf"is not in .*{folder}.*data\.root=<folder with.*data=arrays"):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match=r"Call prepare_data\(\) first"):
        data.setup()


@pytest.mark.usefixtures("no_network")
def test_damaged_cifar_is_not_read(tmp_path, monkeypatch):
    fake_files(monkeypatch, tmp_path, CIFAR10DataModule)
    path = tmp_path / "cifar-10-batches-py" / "train"
    path.write_bytes(path.read_bytes()[:-10])
    data = CIFAR10DataModule(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match="is not in"):
        data.setup()


# -- loaders and statistics ------------------------------------------------------------------------------------


def test_loader_uses_sampler():
    """Without a sampler the training loader shuffles."""
    data = DigitsDataModule()
    data.setup()
    data.make_sampler = weighted_sampler
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, torch.utils.data.WeightedRandomSampler)
    assert loader.sampler.num_samples == 242
    weights = loader.sampler.weights.numpy()
    assert np.bincount(data.train_set.targets, weights) == pytest.approx([1.0] * 10)
    data.make_sampler = None
    assert isinstance(data.train_dataloader().sampler, torch.utils.data.RandomSampler)
    assert isinstance(data.val_dataloader().sampler, torch.utils.data.SequentialSampler)


def test_channel_mean_std_of_nested_subsets():
    data = DigitsDataModule()
    data.setup()
    mean, std = data.channel_mean_std()
    pixels = torch.stack([image for image, _ in data.train_set]).double()
    assert float(mean) == pytest.approx(float(pixels.mean()), rel=1e-5)
    assert float(std) == pytest.approx(float(pixels.std(correction=0)), rel=1e-5)


def test_classifier_standardizes():
    """The statistics are those of the training data, and are in the checkpoint."""
    data = DigitsDataModule()
    model = Classifier(mlp(), standardize=Standardize(channels=1))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=1, enable_checkpointing=False, limit_val_batches=0, **quiet)
    trainer.fit(model, datamodule=data)
    mean, std = data.channel_mean_std()
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(x), model.net((x - mean) / std))
    other = Classifier(mlp(), standardize=Standardize(channels=1))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_channel_mean_std_of_color_images(tmp_path):
    """Only the training images count, and standardized images have mean 0."""
    labels = np.repeat([0, 1], 40)
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    data = ArraysDataModule(str(tmp_path / "own.npz"), imbalance_ratio=4)
    data.setup()
    mean, std = data.channel_mean_std()
    pixels = torch.stack([data.train_set[index][0] for index in range(50)]).double()
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(std.double(), pixels.std((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    standardize = Standardize()
    standardize.set_statistics(mean, std)
    torch.testing.assert_close(standardize(pixels.float()).mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)


def test_stratified_split_keeps_every_sample():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    rest, held_out = stratified_split(labels, 20, seed=1)
    assert sorted([*rest, *held_out]) == list(range(100))
    assert np.bincount(labels[held_out]).tolist() == [10, 6, 4]
    assert (np.diff(rest) > 0).all()
    assert not np.array_equal(held_out, stratified_split(labels, 20, seed=2)[1])


def drawn_from(dataset):
    """The images of the digits that a training set or a held-out set has."""
    parts = dataset.datasets if isinstance(dataset, JoinedImages) else [dataset]
    kept = []
    for part in parts:
        indices = np.arange(len(part))
        while isinstance(part, Subset):
            indices, part = np.asarray(part.indices)[indices], part.dataset
        kept.extend(indices.tolist())
    return kept


def test_images_are_held_out_before_the_tail_is_cut():
    """Every class has as many; no image is used twice; and with ``add_validation`` the training has them too."""
    data, added = (DigitsDataModule(seed=3, val_per_class=30, largest=70, add_validation=x) for x in (False, True))
    for module in (data, added):
        module.setup()
    assert np.bincount([y for _, y in data.val_set]).tolist() == [30] * 10
    parts = [drawn_from(part) for part in (data.train_set, data.val_set, data.test_set)]
    assert len(set().union(*parts)) == sum(map(len, parts))
    assert data.train_set.class_counts[[0, 9]].tolist() == [70, 1]

    assert drawn_from(added.train_set) == parts[0] + parts[1]
    assert added.train_set.class_counts.tolist() == (data.train_set.class_counts + 30).tolist()
    labels = [y for _, y in added.train_set]
    assert added.train_set.targets.tolist() == labels
    assert added.train_set.classes == data.train_set.classes
    assert find_labels(added.train_set).numbers.tolist() == labels
    assert added.channel_mean_std() == data.channel_mean_std()


def test_held_out_images_follow_seed():
    sets = []
    for seed in (1, 1, 2):
        data = DigitsDataModule(seed=seed, val_per_class=5)
        data.setup()
        sets.append(drawn_from(data.val_set))
    assert sets[0] == sets[1] != sets[2]


@pytest.mark.parametrize("size", [103, 500])
def test_class_smaller_than_validation(size):
    data = DigitsDataModule(val_per_class=size)
    with pytest.raises(ValueError, match=f"val_per_class must be below the images of the smallest class, .* {size}"):
        data.setup()


def test_test_set_is_not_added(tmp_path):
    labels, images = np.arange(30) % 3, np.zeros((30, 8, 8), np.uint8)
    arrays = {
        f"{part}_{name}": value
        for part in ("train", "test")
        for name, value in (("images", images), ("labels", labels))
    }
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match="would train on the test set"):
        ArraysDataModule(str(tmp_path / "own.npz"), add_validation=True).setup()
    ArraysDataModule(str(tmp_path / "own.npz"), val_per_class=2, add_validation=True).setup()
