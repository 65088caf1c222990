import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.common.labels import check_labels, class_names, find_labels


class Untouchable(Dataset):
    """A data set whose samples must not be loaded."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __len__(self):
        return next((len(value) for value in vars(self).values() if hasattr(value, "__len__")), 4)

    def __getitem__(self, index):
        raise AssertionError("a sample was loaded")


class Samples(Dataset):
    """A data set without an attribute that would give the labels away."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    "source",
    [
        [0, 1, 1, 2],
        (0, 1, 1, 2),
        np.array([0, 1, 1, 2]),
        np.array([0, 1, 1, 2], dtype=np.uint8),
        torch.tensor([0, 1, 1, 2]),
        torch.tensor([0, 1, 1, 2], dtype=torch.int32),
        Untouchable(targets=[0, 1, 1, 2]),
        Untouchable(targets=torch.tensor([0, 1, 1, 2])),
        Untouchable(labels=np.array([0, 1, 1, 2])),
        Untouchable(targets=[0, 1, 1, 2], labels=["a", "b", "b", "c"]),
        TensorDataset(torch.zeros(4, 3), torch.tensor([0, 1, 1, 2])),
        Subset(Untouchable(targets=[2, 1, 0, 1]), [2, 1, 3, 0]),
        Subset(Subset(Untouchable(targets=[2, 1, 0, 1]), [0, 3, 1, 2]), [3, 1, 2, 0]),
        ConcatDataset([Untouchable(targets=[0, 1]), Untouchable(labels=torch.tensor([1, 2]))]),
        ConcatDataset([Subset(Untouchable(targets=[0, 1, 7]), [0, 1]), Untouchable(labels=[1, 2])]),
    ],
)
def test_no_sample_is_loaded(source):
    labels = find_labels(source)
    assert labels.dtype.kind in "iu"
    assert labels.tolist() == [0, 1, 1, 2]


def test_subset_with_a_tensor_of_indices():
    assert find_labels(Subset(Untouchable(targets=[2, 1, 0, 1]), torch.tensor([3, 0]))).tolist() == [1, 2]


def test_labels_argument_has_priority():
    assert find_labels(Untouchable(targets=[0, 0, 0, 0]), labels=[0, 1, 1, 2]).tolist() == [0, 1, 1, 2]


def test_memory_map_is_not_copied(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, np.array([0, 1, 1, 0] * 100))
    labels = np.load(path, mmap_mode="r")
    assert isinstance(find_labels(labels), np.memmap)
    assert np.shares_memory(find_labels(labels), labels)
    assert np.shares_memory(FeedbackBatchSampler(labels, 4).labels, labels)
    assert find_labels(Untouchable(targets=labels)) is labels


def test_own_labels_of_a_subset_have_priority():
    class Remapped(Subset):
        targets = np.array([1, 0])

    assert find_labels(Remapped(TensorDataset(torch.zeros(4), torch.tensor([0, 0, 1, 1])), [0, 1])).tolist() == [1, 0]


def test_tensor_is_copied():
    """Its memory moves when torch shares it with a spawned worker."""
    labels = torch.tensor([0, 1, 1])
    assert not np.shares_memory(find_labels(labels), labels.numpy())


@pytest.mark.slow
def test_images_are_not_read(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    image = pytest.importorskip("PIL.Image")
    for name, count in (("cat", 3), ("dog", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            image.new("RGB", (2, 2)).save(tmp_path / name / f"{i}.png")

    def unreadable(path):
        raise AssertionError(f"{path} was read")

    folder = torchvision.datasets.ImageFolder(tmp_path, loader=unreadable)
    assert find_labels(folder).tolist() == [0, 0, 0, 1]
    assert find_labels(Subset(folder, [3, 0])).tolist() == [1, 0]


@pytest.mark.parametrize("wrap", [int, np.int64, torch.tensor, lambda y: np.array([y])])
def test_scan_reads_each_sample_once(wrap):
    assert find_labels(Samples([("x", wrap(y)) for y in (0, 2, 1)]), labels="scan").tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([("x", 0), "lone"], TypeError, r"second element of each sample, but sample 1 is a str.*Pass labels="),
        ([("x",)], TypeError, r"second element of each sample, but sample 0 is a tuple"),
        ([("x", 0.5)], ValueError, r"labels must be integers, got float64"),
        ([("x", -1)], ValueError, r"labels must be at least 0, got -1"),
        ([("x", np.array([0, 1, 0]))], ValueError, r"one class per sample"),
        ([], ValueError, r"empty: there is nothing to draw from"),
    ],
)
def test_invalid_sample_is_refused_by_scan(samples, error, message):
    with pytest.raises(error, match=message):
        find_labels(Samples(samples), labels="scan")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [1, 0]], r"shape \(N,\), one class per sample, got shape \(2, 2\).*labels\.argmax\(1\)"),
        (3, r"shape \(N,\), one class per sample, got shape \(\)"),
        ([[0], [0, 1]], r"one class per sample, got lists of different lengths"),
        ([0.0, 1.0], r"must be integers, got float64\. np\.unique\(labels, return_inverse=True\)"),
        (torch.tensor([0.0, 1.0]), r"must be integers, got float32"),
        ([True, False], r"must be integers, got bool"),
        (["cat", "dog"], r"must be integers, got <U3"),
        ([0, -1], r"at least 0, got -1\. Remove such samples with torch\.utils\.data\.Subset"),
        ([0, 3], r"must lie in \[0, 3\), got 3\. State num_classes=4 or more"),
    ],
)
def test_invalid_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 3)


def test_empty_labels_are_integers():
    assert check_labels([]).shape == (0,)
    assert check_labels([]).dtype == np.int64


@pytest.mark.parametrize("source", [[], np.array([], dtype=int), Subset(Untouchable(targets=[0, 1, 2, 0]), [])])
def test_empty_data_set_is_refused(source):
    with pytest.raises(ValueError, match=r"data set is empty: there is nothing to draw from"):
        find_labels(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TensorDataset(torch.zeros(4, 3)), r"TensorDataset of one tensor has no labels\. Pass labels=.*'scan'"),
        (Untouchable(), r"Untouchable has neither 'targets' nor 'labels'\. Pass labels=.*labels='scan'"),
        (Subset(Untouchable(), [0]), r"Untouchable has neither 'targets' nor 'labels'"),
        (Stream(), r"Stream is a stream: .* needs a map-style data set"),
    ],
)
def test_data_set_without_labels_is_refused(source, message):
    with pytest.raises(TypeError, match=message):
        find_labels(source)


def test_labels_argument_must_fit_the_data():
    with pytest.raises(ValueError, match=r"one per sample: got 3 for the 4 samples of Untouchable\. Pass labels="):
        find_labels(Untouchable(), labels=[0, 1, 1])
    with pytest.raises(ValueError, match=r"one class per sample, 'scan' or None, got 'read'"):
        find_labels(Untouchable(), labels="read")


def test_method_called_labels_is_ignored():
    with pytest.raises(TypeError, match=r"neither 'targets' nor 'labels'"):
        find_labels(Untouchable(labels=lambda: [0, 1, 1, 2]))


def test_every_integer_type_is_accepted():
    """By the sampler and the controller, too."""
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        labels = np.array([0, 1, 1, 0], dtype=dtype)
        controller = FeedbackController(2)
        for batch in FeedbackBatchSampler(labels, 2, 3, controller):
            assert sorted(labels[batch].tolist()) == [0, 1]
            controller.step_update(labels[batch])


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(["a", "b"], ["a", "b"]), (("a", "b"), ["a", "b"]), ([7, 8], ["7", "8"]), ("ab", None), (None, None)],
)
def test_class_names(classes, expected):
    data = TensorDataset(torch.zeros(2))
    data.classes = classes
    assert class_names(data) == class_names(Subset(data, [0])) == expected


def test_scan_reads_mappings():
    assert find_labels(Samples([{"x": 0.0, "label": y} for y in (0, 2, 1)]), labels="scan").tolist() == [0, 2, 1]


def test_own_labels_must_fit_the_data():
    class Limited(Untouchable):
        def __len__(self):
            return 2

    with pytest.raises(ValueError, match="one per sample: got 3 for the 2 samples of Limited"):
        find_labels(Limited(targets=[0, 1, 0]))
