"""Your own images, from a file of arrays."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes.arrays import ArraysDataModule
from recipes.longtail import long_tail_counts

DATA = Path(os.environ.get("LIGHTNING_FAIR_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


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
def test_images_keep_order_and_shape(tmp_path, shape, out):
    arrays = own_arrays(shape=shape)
    data = arrays_module(tmp_path, arrays)
    assert data.train_set.class_counts.tolist() == [6, 4, 2]
    assert data.train_set.classes == ["0", "1", "2"]
    assert data.val_set is data.test_set
    for place, (image, label) in enumerate(data.train_set[at] for at in range(len(data.train_set))):
        assert image.shape == out
        assert torch.equal(image, torch.full(out, place) * (1 / 255))
        assert label == arrays["train_labels"][place]


def test_arrays_become_long_tailed(tmp_path):
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
        ({"test_images": None}, r"missing test_images, got train_images, train_labels, test_labels"),
        ({"train_images": np.zeros((12, 8, 8, 3))}, r"train_images must be uint8.*got float64 of shape.*255 \*"),
        (
            {"train_images": np.zeros((12, 64), np.uint8)},
            r"of shape \(N, H, W, C\) or \(N, H, W\), got uint8.*\(12, 64\)",
        ),
        ({"test_images": np.zeros((0, 8, 8, 3), np.uint8)}, r"test_images must be uint8.*shape \(0, 8, 8, 3\)"),
        ({"train_images": np.zeros((12, 3, 8, 8), np.uint8)}, r"channels last.*images\.transpose\(0, 2, 3, 1\)"),
        ({"train_labels": np.zeros(12)}, r"train_labels must hold an integer.*12 images, got float64"),
        ({"train_labels": np.zeros(11, int)}, r"for each of the 12 images, got int64 of shape \(11,\)"),
        ({"train_labels": np.full(12, -1)}, r"at least 0 .* minimum -1"),
        ({"train_labels": np.array([0, 2] * 6)}, r"every class from 0 to 2, but 1 has no image.*np\.unique"),
        ({"test_labels": np.full(6, 3)}, r"test_labels must lie in \[0, 3\).*got 3"),
        ({"test_images": np.zeros((6, 9, 8, 3), np.uint8)}, r"must have one size, got \(8, 8, 3\) and \(9, 8, 3\)"),
        ({"train_labels": np.array([0, 1, 2] * 3 + [2**40] * 3)}, r"from 0 to 1099511627776, but 3 has no image"),
        ({"train_labels": np.array([0, 2**63] * 6, np.uint64)}, r"from 0 to 9223372036854775808, but 1 has no image"),
        (
            {"test_labels": np.full(6, 2**63, np.uint64)},
            r"test_labels must lie in \[0, 3\), .*got 9223372036854775808",
        ),
        ({"classes": np.array(["ant"])}, r"classes must hold 3 different names, one for each class, got shape \(1,\)"),
        ({"classes": np.array("abc")}, r"classes must hold 3 different names.* got shape \(\)"),
        (
            {"classes": np.array([["ant"], ["bee"], ["cat"]])},
            r"classes must hold 3 different names.* got shape \(3, 1\)",
        ),
        (
            {"classes": np.array(["ant", "bee", "ant"])},
            r"3 different names, .* got shape \(3,\) with 2 different names",
        ),
        ({"classes": np.array(["ant", None, 3], object)}, "not a whole .npz file of plain arrays"),
    ],
)
def test_bad_arrays_are_named(tmp_path, change, message):
    arrays = {key: value for key, value in {**own_arrays(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        arrays_module(tmp_path, arrays)


def test_names_and_labels_of_other_types(tmp_path):
    """Names may be bytes or numbers, and labels any integers."""
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


def test_untested_classes_are_named_once(tmp_path):
    arrays = {**own_arrays(), "classes": np.array(["ant", "bee", "cat"])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays_module(tmp_path, arrays)
    arrays["test_labels"] = np.array([0, 2] * 3, np.uint64)
    with pytest.warns(UserWarning, match=r"lack 1 of the 3 classes \(bee\)\. These have no recall") as caught:
        arrays_module(tmp_path, arrays).setup("test")
    assert len(caught) == 1


def test_bad_files_are_named(tmp_path):
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


PUBLISHED = {
    "cifar10": (5000, {100: 12_406, 50: 13_996, 10: 20_431}),
    "cifar100": (500, {100: 10_847, 50: 12_608, 10: 19_573}),
}


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "cifar10.labels.npz").is_file(),
    reason="LIGHTNING_FAIR_DATA names no folder with cifar10.labels.npz and cifar100.labels.npz",
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_no_seed_gives_subsets_of_ldam(tmp_path, name):
    """Packed labels of CIFAR give the published subsets."""
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
