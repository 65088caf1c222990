"""CIFAR and anyone's own arrays as long-tailed data, and the network and the distortions of the field's recipe."""

import hashlib
import os
import pickle
import warnings
from pathlib import Path
from urllib.error import URLError

import lightning as L
import numpy as np
import pytest
import torch
from recipes.arrays import ArraysDataModule
from recipes.augment import CropFlip, Standardize
from recipes.cifar import CIFAR10DataModule, CIFAR100DataModule
from recipes.data import DigitsDataModule
from recipes.images import Images
from recipes.longtail import LongTail, long_tail_counts
from recipes.models import mlp
from recipes.resnet import Block, resnet32
from recipes.task import ClassificationTask
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision import datasets

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LIGHTNING_FAIR_DATA", ROOT.parent / "shared" / "data"))

# -- torchvision's files ---------------------------------------------------------------------------------------

KINDS = {
    CIFAR10DataModule: (datasets.CIFAR10, "cifar-10-batches-py", "labels", 10),
    CIFAR100DataModule: (datasets.CIFAR100, "cifar-100-python", "fine_labels", 100),
}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


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
def test_cifar_is_read_where_it_lies_and_validated_on_the_test_set(tmp_path, monkeypatch, module):
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
def test_cifar_without_data_and_network_says_what_to_do_and_leaves_no_folder(tmp_path, module):
    data = module(str(tmp_path / "a" / "b"))
    folder = KINDS[module][1]
    with pytest.raises(FileNotFoundError, match=rf"is not in .*{folder}.*data\.root=<folder with.*data=arrays"):
        data.prepare_data()
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"Call prepare_data\(\) first"):
        data.setup()


@pytest.mark.usefixtures("no_network")
def test_a_damaged_file_of_cifar_is_not_read(tmp_path, monkeypatch):
    fake_files(monkeypatch, tmp_path, CIFAR10DataModule)
    path = tmp_path / "cifar-10-batches-py" / "train"
    path.write_bytes(path.read_bytes()[:-10])
    data = CIFAR10DataModule(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        data.prepare_data()
    with pytest.raises(FileNotFoundError, match="is not in"):
        data.setup()


@pytest.mark.parametrize(
    "module", [CIFAR10DataModule, CIFAR100DataModule, lambda **kwargs: ArraysDataModule("x", **kwargs)]
)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"seed": -1}, "seed must be at least 0"), ({"batch_size": 0}, "batch_size must be at least 1, got 0")],
)
def test_data_modules_refuse(module, kwargs, message):
    with pytest.raises(ValueError, match=message):
        module(**kwargs)


# -- arrays ----------------------------------------------------------------------------------------------------


def own_arrays(sizes=(6, 4, 2), shape=(8, 8, 3)):
    """Return arrays as a file has them; every pixel of an image is its place in the file."""
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = np.broadcast_to(np.arange(labels.size).reshape(-1, *[1] * len(shape)), (labels.size, *shape))
    return {
        "train_images": images.astype(np.uint8),
        "train_labels": labels,
        "test_images": images[::2].astype(np.uint8),
        "test_labels": labels[::2].astype(np.uint8),
    }


def arrays_module(tmp_path, arrays, **kwargs):
    np.savez(tmp_path / "own.npz", **arrays)
    data = ArraysDataModule(str(tmp_path / "own.npz"), **kwargs)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(("shape", "out"), [((8, 6, 3), (3, 8, 6)), ((8, 6, 1), (1, 8, 6)), ((8, 6), (1, 8, 6))])
def test_arrays_are_read_as_they_are(tmp_path, shape, out):
    arrays = own_arrays(shape=shape)
    data = arrays_module(tmp_path, arrays)
    assert data.train_set.class_counts.tolist() == [6, 4, 2]
    assert data.train_set.classes == ["0", "1", "2"]
    assert data.val_set is data.test_set
    for place, (image, label) in enumerate(data.train_set[at] for at in range(len(data.train_set))):
        assert image.shape == out
        assert torch.equal(image, torch.full(out, place) * (1 / 255))
        assert label == arrays["train_labels"][place]


def test_arrays_are_cut_to_a_long_tail_and_keep_their_names(tmp_path):
    arrays = {**own_arrays((40, 40, 40)), "classes": np.array(["ant", "bee", "cat"]), "more": np.zeros(3)}
    data = arrays_module(tmp_path, arrays, imbalance_ratio=4)
    assert data.train_set.class_counts.tolist() == [40, 20, 10]
    assert data.train_set.classes == ["ant", "bee", "cat"]
    labels = arrays["train_labels"]
    first = np.sort(np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate((40, 20, 10))]))
    assert [round(float(data.train_set[at][0][0, 0, 0]) * 255) for at in range(70)] == first.tolist()
    other = ArraysDataModule(data.path, imbalance_ratio=4, seed=1)
    other.setup()
    assert other.train_set.class_counts.tolist() == [40, 20, 10]
    assert not np.array_equal(other.train_set.indices, data.train_set.indices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_images": None}, r"test_images missing, found train_images, train_labels, test_labels"),
        ({"train_images": np.zeros((12, 8, 8, 3))}, r"train_images of .* must be uint8.*got float64 of shape.*255 \*"),
        (
            {"train_images": np.zeros((12, 64), np.uint8)},
            r"of shape \(N, H, W, C\) or \(N, H, W\), got uint8.*\(12, 64\)",
        ),
        ({"test_images": np.zeros((0, 8, 8, 3), np.uint8)}, r"test_images of .* must be uint8.*shape \(0, 8, 8, 3\)"),
        ({"train_images": np.zeros((12, 3, 8, 8), np.uint8)}, r"channels last.*images\.transpose\(0, 2, 3, 1\)"),
        ({"train_labels": np.zeros(12)}, r"train_labels of .* must be an integer.*12 images, got float64"),
        ({"train_labels": np.zeros(11, int)}, r"for each of the 12 images, got int64 of shape \(11,\)"),
        ({"train_labels": np.full(12, -1)}, r"at least 0 .* the lowest -1"),
        ({"train_labels": np.array([0, 2] * 6)}, r"every class from 0 to 2, but 1 has no image.*np\.unique"),
        ({"test_labels": np.full(6, 3)}, r"test_labels of .* must lie in \[0, 3\).*got 3"),
        ({"test_images": np.zeros((6, 9, 8, 3), np.uint8)}, r"must be of one size, got \(8, 8, 3\) and \(9, 8, 3\)"),
        ({"train_labels": np.array([0, 1, 2] * 3 + [2**40] * 3)}, r"from 0 to 1099511627776, but 3 has no image"),
        ({"train_labels": np.array([0, 2**63] * 6, np.uint64)}, r"from 0 to 9223372036854775808, but 1 has no image"),
        (
            {"test_labels": np.full(6, 2**63, np.uint64)},
            r"test_labels of .* must lie in \[0, 3\), .*got 9223372036854775808",
        ),
        ({"classes": np.array(["ant"])}, r"classes of .* must name every class, an array of 3 names, got shape \(1,\)"),
        ({"classes": np.array("abc")}, r"an array of 3 names, got shape \(\)"),
        ({"classes": np.array([["ant"], ["bee"], ["cat"]])}, r"an array of 3 names, got shape \(3, 1\)"),
        ({"classes": np.array(["ant", "bee", "ant"])}, r"classes of .* must be different names.*got 'ant' 2 times"),
        ({"classes": np.array(["ant", None, 3], object)}, "not a whole .npz file of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    arrays = {key: value for key, value in {**own_arrays(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        arrays_module(tmp_path, arrays)


def test_names_may_be_bytes_or_numbers_and_labels_of_any_kind_of_integer(tmp_path):
    arrays = own_arrays()
    arrays["train_labels"] = arrays["train_labels"].astype(np.uint64)
    for names, expected in (
        (np.array(["ant", "bée", "cat"]), ["ant", "bée", "cat"]),
        (np.char.encode(["ant", "bée", "cat"], "utf-8"), ["ant", "bée", "cat"]),
        (np.array([3, 5, 8]), ["3", "5", "8"]),
    ):
        data = arrays_module(tmp_path, {**arrays, "classes": names})
        assert data.train_set.classes == expected
        assert data.train_set.class_counts.tolist() == [6, 4, 2]


def test_classes_without_test_images_are_named_once(tmp_path):
    arrays = {**own_arrays(), "classes": np.array(["ant", "bee", "cat"])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays_module(tmp_path, arrays)
    arrays["test_labels"] = np.array([0, 2] * 3, np.uint64)
    with pytest.warns(UserWarning, match=r"lack 1 of the 3 classes \(bee\)\. These have no recall") as told:
        arrays_module(tmp_path, arrays).setup("test")
    assert len(told) == 1


def test_a_file_that_is_no_npz_is_refused_and_a_missing_one_is_named(tmp_path):
    for name, content in (("text.npz", b"not an archive"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04 cut short")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a whole \.npz file.*np\.savez"):
            ArraysDataModule(str(tmp_path / name)).setup()
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"one\.npy is not a whole \.npz file.*no zip archive"):
        ArraysDataModule(str(tmp_path / "one.npy")).setup()
    np.savez(tmp_path / "torn.npz", **own_arrays())
    raw = bytearray((tmp_path / "torn.npz").read_bytes())
    raw[200] ^= 1  # in an array: the check sum of the archive tells
    (tmp_path / "torn.npz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"torn\.npz is not a whole \.npz file"):
        ArraysDataModule(str(tmp_path / "torn.npz")).setup()
    data = ArraysDataModule(str(tmp_path / "absent.npz"))
    for step in (data.prepare_data, data.setup):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*absent\.npz.*data\.path=FILE\.npz"):
            step()


# -- the published subsets -------------------------------------------------------------------------------------

PUBLISHED = {
    "cifar10": (5000, {100: 12_406, 50: 13_996, 10: 20_431}),
    "cifar100": (500, {100: 10_847, 50: 12_608, 10: 19_573}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_set_that_is_long_tailed_already_can_be_cut_further(name):
    largest, totals = PUBLISHED[name]
    num_classes = int(name.removeprefix("cifar"))
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes), largest)))
    whole = TensorDataset(torch.arange(labels.numel()), labels)
    cut = LongTail(whole, 10)
    for ratio, total in totals.items():
        direct, further = LongTail(whole, ratio), LongTail(cut, ratio)
        assert len(further) == total
        assert np.array_equal(np.asarray(cut.indices)[further.indices], direct.indices)


@pytest.mark.skipif(
    not (DATA / "cifar10.labels.npz").is_file(),
    reason="LIGHTNING_FAIR_DATA names no folder with cifar10.labels.npz and cifar100.labels.npz",
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_seed_the_packed_files_give_the_subsets_of_ldam(tmp_path, name):
    largest, totals = PUBLISHED[name]
    packed = np.load(DATA / f"{name}.labels.npz")
    labels, places = packed["train_labels"].astype(np.int64), packed["train_index"].astype(np.int64)
    # Pixels that say which image of the original 50,000 it is: the images themselves are not needed.
    marks = np.stack([places >> 8, places & 255], axis=1).astype(np.uint8).reshape(-1, 1, 2)
    tests = packed["test_labels"].astype(np.int64)
    arrays = {"train_images": marks, "train_labels": labels, "test_images": np.zeros((tests.size, 1, 2), np.uint8)}
    for ratio, total in totals.items():
        data = arrays_module(tmp_path, {**arrays, "test_labels": tests}, imbalance_ratio=ratio)
        assert len(data.train_set) == total
        expected = [places[labels == c][:n] for c, n in enumerate(long_tail_counts(labels.max() + 1, largest, ratio))]
        pixels = [(data.train_set[at][0].squeeze() * 255).round().int().tolist() for at in range(total)]
        got = np.array([high * 256 + low for high, low in pixels])
        assert sorted(got.tolist()) == sorted(np.concatenate(expected).tolist())
        assert np.bincount(tests).tolist() == [tests.size // (labels.max() + 1)] * (labels.max() + 1)
    # The head is whole, so that LDAM-DRW's shuffle of it (NumPy's old generator, seed 0) can be done again.
    head = np.sort(places[labels == 0])
    np.random.RandomState(0).shuffle(head)
    assert np.array_equal(head, places[labels == 0])


# -- network, distortions, standardisation ----------------------------------------------------------------------


def test_resnet32_has_the_layers_of_the_paper():
    net = resnet32()
    convolutions = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32  # and the linear layer
    assert [conv.out_channels for conv in convolutions] == [16] * 11 + [32] * 10 + [64] * 10
    assert [conv.stride[0] for conv in convolutions].count(2) == 2
    assert sum(p.numel() for p in net.parameters()) == 464_154
    assert resnet32(in_channels=1, width=3, num_classes=7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        resnet32(width=0)


def test_weights_of_resnet32_are_drawn_after_kaiming_he():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet32()
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            n, fan_in = module.weight.numel(), module.weight[0].numel()
            # The deviation of n normal draws has a relative standard error of 1 / sqrt(2 n); five of them.
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=5 / (2 * n) ** 0.5)


@pytest.mark.parametrize(("before", "after", "stride", "left"), [(2, 4, 2, 1), (2, 5, 2, 1), (3, 3, 1, 0)])
def test_the_shortcut_subsamples_and_pads_with_zeros(before, after, stride, left):
    block = Block(before, after, stride).eval()
    torch.nn.init.zeros_(block.norm2.weight)  # so that only the shortcut is left
    x = torch.rand(2, before, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, after, 4 // stride, 6 // stride)
    for channel in range(before):
        for row in range(4 // stride):
            for column in range(6 // stride):
                expected[:, left + channel, row, column] = x[:, channel, stride * row, stride * column]
    assert torch.equal(block(x), expected)


def test_crop_and_flip_give_every_crop_of_the_padded_image_and_nothing_else():
    image = torch.arange(1.0, 19.0).view(2, 3, 3)
    padded = F.pad(image, (1, 1, 1, 1))
    crops = [padded[:, top : top + 3, left : left + 3] for top in range(3) for left in range(3)]
    expected = {tuple(c.flatten().tolist()) for crop in crops for c in (crop, crop.flip(2))}
    assert len(expected) == 18
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # A crop is missed with probability (17 / 18) ** 600 < 2e-15, and there are 18.
        seen = CropFlip(padding=1)(image.repeat(600, 1, 1, 1))
    assert {tuple(crop.flatten().tolist()) for crop in seen} == expected
    assert torch.equal(CropFlip(0, 0.0)(image[None]), image[None])
    assert torch.equal(CropFlip(0, 1.0)(image[None]), image[None].flip(3))


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"padding": -1}, "padding must be"), ({"flip": 1.5}, "flip must lie in")]
)
def test_crop_and_flip_refuse(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CropFlip(**kwargs)


def test_moments_are_those_of_the_training_images_alone(tmp_path):
    rng = np.random.default_rng(0)
    arrays = own_arrays((40, 40))
    arrays["train_images"] = rng.integers(0, 256, (80, 8, 8, 3)).astype(np.uint8)
    data = arrays_module(tmp_path, arrays, imbalance_ratio=4)
    mean, deviation = data.moments()
    pixels = torch.stack([data.train_set[at][0] for at in range(50)]).double()
    torch.testing.assert_close(mean.double(), pixels.mean((0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(deviation.double(), pixels.std((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    standardize = Standardize()
    standardize.measure(mean, deviation)
    torch.testing.assert_close(standardize(pixels.float()).mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)


def test_moments_are_found_through_a_subset_of_a_subset():
    data = DigitsDataModule()
    data.setup()
    mean, deviation = data.moments()
    pixels = torch.stack([image for image, _ in data.train_set]).double()
    assert float(mean) == pytest.approx(float(pixels.mean()), rel=1e-5)
    assert float(deviation) == pytest.approx(float(pixels.std(correction=0)), rel=1e-5)


def test_the_task_standardises_what_it_trains_on_and_the_checkpoint_knows_how():
    data = DigitsDataModule()
    task = ClassificationTask(mlp(), standardize=Standardize(channels=1))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=1, enable_checkpointing=False, limit_val_batches=0, **quiet)
    trainer.fit(task, datamodule=data)
    mean, deviation = data.moments()
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(task(x), task.net((x - mean) / deviation))
    other = ClassificationTask(mlp(), standardize=Standardize(channels=1))
    other.load_state_dict(task.state_dict())
    assert torch.equal(other(x), task(x))


def test_standardize_leaves_a_constant_channel_finite_and_refuses_other_channels():
    standardize = Standardize(channels=2)
    standardize.measure(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.5]))
    assert standardize(torch.ones(1, 2, 1, 1)).flatten().tolist() == [0.5, 1.0]
    with pytest.raises(
        ValueError, match=r"have 1 channels, but the model is for 2\. Set model\.standardize\.channels=1"
    ):
        standardize.measure(torch.zeros(1), torch.ones(1))


def test_colour_images_come_with_their_channels_first():
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    image, _ = Images(pixels, np.array([0]), ["a"], white=255.0)[0]
    assert image.shape == (3, 2, 4)
    assert (image * 255).round().int()[2, 1, 3] == pixels[0, 1, 3, 2]
