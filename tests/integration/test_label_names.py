"""Labels that are named: in the settings, in a run, and in TensorBoard."""

import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning_helpers import BATCH, Indexed, Weighted, fit, loader, warnings_about
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_fair import FairDataModule, FairSampling, FairStream, schedules
from lightning_fair.common.label_values import ClassLabels, number_labels
from lightning_fair.integration.settings import FairSettings

NAMES = ("ant", "bee", "cat", "dog")
Y = torch.tensor([3, 2, 1, 0])[Indexed().targets].tolist()  # "dog" is the most frequent class


class Named(Indexed):
    """A data set whose labels are strings. Its samples have numbers."""

    def __init__(self, **attributes):
        super().__init__()
        self.numbers, self.targets = self.targets, [NAMES[y] for y in Y]
        self.__dict__.update(attributes)

    def __getitem__(self, index):
        y = int(self.numbers[index])
        return torch.tensor([np.sin(index), np.cos(index), float(y == 1), 1.0], dtype=torch.float32), y, index


class InMemory(Logger):
    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.tags = set()

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.tags |= {tag.rpartition("/")[2] for tag in metrics if tag.startswith("fair_class/prob/")}


@pytest.mark.parametrize(
    ("settings", "dataset", "expected"),
    [
        ({}, Named(), NAMES),
        ({}, Named(classes=["p", "q", "r", "s"]), NAMES),
        ({"class_names": list("wxyz")}, Named(), "wxyz"),
        ({"labels": [2**40 + y for y in Y]}, Indexed(), [str(2**40 + y) for y in range(4)]),
        ({"labels": "site"}, Named(site=[f"site {y % 2}" for y in Y]), ["site 0", "site 1"]),
        ({"labels": lambda dataset: np.array(dataset.numbers) > 0}, Named(), ["False", "True"]),
        ({"labels": "scan"}, Indexed(), "0123"),
        ({}, Subset(Named(), range(20, 160)), NAMES),
    ],
)
def test_names_in_a_run(settings, dataset, expected):
    """The label values are the names of the classes, unless the settings have others."""
    logger, fair = InMemory(), FairSampling(seed=0, **settings)
    fit(Weighted(), loader(dataset), fair, limit_train_batches=3, logger=logger, log_every_n_steps=1)
    assert logger.tags == set(expected)


@pytest.mark.parametrize(
    ("settings", "place"),
    [({}, "attribute 'targets'"), ({"labels": "scan"}, "element 1 of the samples"), ({"labels": Y}, "labels=")],
)
def test_place_is_printed(settings, place, caplog):
    """The message of the set-up says where the labels come from."""
    fit(Weighted(), loader(Indexed()), FairSampling(**settings), limit_train_batches=1)
    assert f"FairSampling steers 4 classes (labels: {place}) in batches of 8; horizon " in caplog.text


def test_classes_without_a_target_are_printed(caplog):
    """A mapping that sums to one leaves the other classes out, and the message of the set-up names them."""
    fit(Weighted(), loader(Indexed()), FairSampling(target_probs={0: 0.5, 2: 0.5}), limit_train_batches=1)
    assert "never drawn, because the target is 0: 1, 3." in caplog.text
    caplog.clear()
    fit(Weighted(), loader(Indexed()), FairSampling(target_probs={0: 0.5}), limit_train_batches=1)
    assert "never drawn" not in caplog.text


def test_target_by_name_in_a_run():
    """The class that is named gets its share."""
    fair = FairSampling(seed=0, target_probs={"dog": 0.1, "ant": 0.5})
    module = Weighted()
    fit(module, loader(Named()), fair)
    np.testing.assert_allclose(fair.controller.q, [0.5, 0.2, 0.2, 0.1])
    seen = np.bincount([y for step in module.steps for y in step.labels], minlength=4)  # numbers of the samples
    np.testing.assert_allclose(seen / seen.sum(), [0.1, 0.2, 0.2, 0.5], atol=0.08)


@pytest.mark.parametrize(
    ("settings", "labels", "dataset", "expected"),
    [
        ({"target_probs": {"bee": 0.5}}, ["bee", "ant", "cat"], None, [0.25, 0.5, 0.25]),
        ({"target_probs": {"bee": 0.5}}, [0, 1, 2, 0], Named(classes=["cat", "bee", "ant"]), [0.25, 0.5, 0.25]),
        (
            {"target_probs": {"bee": 0.5}},
            ClassLabels(np.array([0, 1, 2]), ("cat", "ant", "bee")),
            None,
            [0.25, 0.25, 0.5],
        ),
        ({"target_probs": {"x": 0.5}, "class_names": ["x", "y"]}, ["b", "a"], None, [0.5, 0.5]),
        ({"target_probs": {"b": 0.7}, "class_names": ["x", "y"]}, ["b", "a"], None, [0.3, 0.7]),
        ({"target_probs": {30: 0.7}}, [30, 10, 30], None, [0.3, 0.7]),
        ({"target_probs": {1.0: 0.3, 0.0: 0.7}}, [0.0, 1.0, 1.0], None, [0.7, 0.3]),
        ({"target_probs": {np.float32(1): 0.3}}, [0, 1], None, [0.7, 0.3]),
        ({"target_probs": {30.0: 0.7}}, [30.0, 10.0, 30.0], None, [0.3, 0.7]),
        ({"target_probs": {"30": 0.7}}, [30, 10, 30], None, [0.3, 0.7]),
        ({"target_probs": {True: 0.7}}, [False, True], None, [0.3, 0.7]),
        ({"target_probs": {("dog", 1): 0.7}}, [("dog", 1), ("dog", 0)], None, [0.3, 0.7]),
        ({"target_probs": {1: 0.7}}, ["a", "b"], None, [0.3, 0.7]),
        (
            {"target_probs": schedules.Shift(schedules.Step(0.0, 1.0, at=5), start={"a": 0.9}, end="uniform")},
            ["a", "b"],
            None,
            [0.9, 0.1],
        ),
    ],
)
def test_target_by_name(settings, labels, dataset, expected):
    """A target names classes by the names that they have anywhere, or by their labels."""
    sampler = FairSettings(**settings).make_sampler(labels, 2, dataset=dataset)
    np.testing.assert_allclose(sampler.controller.q, expected)


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"target_probs": {"fox": 0.5}}, ["ant", "bee"], r"names class 'fox'; the classes are 'ant', 'bee'"),
        (
            {"target_probs": {"fox": 0.5}},
            [0, 1],
            r"names class 'fox'; the classes are numbers without names; .* class_names=\[\.\.\.\]",
        ),
        ({"target_probs": {1: 0.5}}, [10, 30], r"names class 1; the classes are '10', '30'"),
        ({"target_probs": {"c": 0.5}}, ClassLabels(np.array([0, 1]), ("c", "c")), r"names class 'c'"),
    ],
)
def test_unknown_names(settings, labels, message):
    """A name that no class or several classes have is refused."""
    with pytest.raises(ValueError, match=message):
        FairSettings(**settings).make_sampler(labels, 2)


def test_names_wait_for_the_data():
    """A target by name is not checked before the data are known, even if the number of classes is."""
    settings = FairSettings(target_probs={"x": 0.5, "y": 0.6}, num_classes=2)
    with pytest.raises(ValueError, match="must sum to one"):
        settings.make_sampler(["x", "y"], 2)


def test_stream_names_classes():
    """The names of a stream's source, or of the settings, count for its target."""
    stream = FairStream([(0.0, 0)] * 8, batch_size=4)
    settings = FairSettings(target_probs={"b": 0.7}, num_classes=2, class_names=["a", "b"])
    np.testing.assert_allclose(settings.make_controller(stream).q, [0.3, 0.7])


def test_names_in_a_stream():
    """A stream whose labels are strings: names in TensorBoard and in the target, and batches that are verified."""

    class Numbering(Weighted):
        def training_step(self, batch, batch_idx):
            x, names = batch
            self.drawn = getattr(self, "drawn", []) + list(names)
            return self.reduce(self.losses(x, torch.tensor([NAMES.index(name) for name in names])))

    stream = FairStream([(torch.zeros(4), NAMES[y]) for y in Y], batch_size=BATCH, class_names=NAMES)
    module, logger, callback = Numbering(), InMemory(), FairSampling(target_probs={"dog": 0.1})
    with warnings_about("") as messages:
        fit(module, DataLoader(stream, batch_size=BATCH), callback, logger=logger, log_every_n_steps=1)
    assert logger.tags == set(NAMES)
    assert module.drawn.count("dog") / len(module.drawn) == pytest.approx(0.1, abs=0.02)
    assert callback._run.label_check.column == "batch[1]"
    assert not [message for message in messages if "class" in message]
    with pytest.raises(ValueError, match="target_probs names class 'emu'; the classes are 'ant', 'bee', 'cat', 'dog'"):
        fit(Weighted(), DataLoader(stream, batch_size=BATCH), FairSampling(target_probs={"emu": 0.1}))


def test_stated_number_of_classes():
    """A stated number of classes means that labels are class numbers."""
    assert FairSettings(num_classes=8, empty_classes="skip").make_sampler([0, 7, 7], 2).class_names is None
    assert FairSettings().make_sampler([0, 7, 7], 2).class_names == ("0", "7")
    sampler = FairSettings(num_classes=3, empty_classes="skip").make_sampler(["a", "b"], 2)
    assert sampler.class_names == ("a", "b", "2")
    with pytest.raises(ValueError, match="No samples of class 2"):
        FairSettings(num_classes=3).make_sampler(["a", "b"], 2)


def test_empty_class_is_named():
    labels = ClassLabels(np.array([0, 2]), NAMES[:3])
    with pytest.raises(ValueError, match="No samples of class bee, but"):
        FairSettings().make_sampler(labels, 2)


def test_groups_need_no_class_names():
    """The data set's own classes do not count for other labels, of which there are fewer."""
    dataset = Named(classes=list("abcdefghij"))
    fair = FairSampling(seed=0, labels=[y // 2 for y in Y])
    fit(Weighted(), loader(dataset), fair, limit_train_batches=2)
    assert fair.controller.num_classes == 2


class Merged(Dataset):
    """Its ``classes`` are those before a ``target_transform`` that merges them."""

    classes = tuple("abcdefghij")

    def __len__(self):
        return len(Y)

    def __getitem__(self, index):
        return torch.zeros(4), Y[index] // 2, index


@pytest.mark.parametrize("part", [Merged(), Subset(Merged(), range(150))])
def test_scanned_classes(part):
    """The data set's ``classes`` do not count for labels of the samples, of which there are fewer."""
    fair = FairSampling(seed=0, labels="scan")
    fit(Weighted(), loader(part), fair, limit_train_batches=2)
    assert fair.controller.num_classes == 2


def test_order_of_names():
    """Names of the settings come before those of the labels, these before the data set's, and these before numbers."""
    dataset = Named(classes=["x", "y"])
    assert FairSettings(class_names=["1", "2"]).names_for(2, dataset, ("a", "b")) == ["1", "2"]
    assert FairSettings().names_for(2, dataset, ("a", "b")) == ("a", "b")
    assert FairSettings().names_for(2, dataset) == ["x", "y"]
    assert FairSettings().names_for(3, dataset) == ["0", "1", "2"]


@pytest.mark.parametrize("labels", ["", True, 1.5, b"scan"])
def test_labels_setting(labels):
    with pytest.raises(
        (TypeError, ValueError), match="labels must be one class per sample or several, 'scan', a name, a position"
    ):
        FairSampling(labels=labels)


class Unlabeled(Dataset):
    """Shows its labels only in its samples."""

    def __init__(self):
        self.inner = Named()
        self.reads = 0

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        self.reads += 1
        x, y, index = self.inner[index]
        return {"x": x, "label": 0, "kind": NAMES[3 - y], "index": index, "y": y}


class OfMappings(Weighted):
    def training_step(self, batch, batch_idx):
        return self.record(batch["x"], batch["y"], batch["index"])


@pytest.mark.parametrize("way", ["callback", "data module"])
def test_key_of_samples(way, monkeypatch, tmp_path):
    """A key that only the samples have is read once for a fit, and names the classes."""
    monkeypatch.setenv("LIGHTNING_FAIR_CACHE", str(tmp_path))
    dataset, fair = Unlabeled(), FairSampling(labels="kind", target_probs={"dog": 0.4})
    if way == "callback":
        fit(OfMappings(), loader(dataset), fair, max_epochs=2, reload_dataloaders_every_n_epochs=1)
        assert dataset.reads == 3 * len(dataset)
        sampler = fair.sampler
    else:
        data = FairDataModule(dataset, fair=fair, batch_size=BATCH)
        next(iter(data.train_dataloader()))
        sampler = data.sampler
    assert sampler.class_names == NAMES
    assert sampler.labels.tolist() == Y
    np.testing.assert_allclose(sampler.controller.q, [0.2, 0.2, 0.2, 0.4])


def test_ids_of_a_graph():
    """A loader over ids needs labels, and is balanced with those that the error asks for."""
    ids = range(60)
    label_of = {id: id % 4 for id in ids}  # noqa: A001

    class OfIds(Weighted):
        def training_step(self, batch, batch_idx):
            y = torch.tensor([label_of[id] for id in batch.tolist()])  # noqa: A001
            return self.record(torch.randn(len(y), 4), y, batch)

    data = DataLoader(ids, batch_size=BATCH)
    with pytest.raises(TypeError, match=r"data set is of type range: its elements are samples and not labels"):
        fit(OfIds(), data, FairSampling())
    fair = FairSampling(labels=[label_of[id] for id in ids])  # noqa: A001
    fit(OfIds(), data, fair)
    assert fair.controller.num_classes == 4


def test_labels_of_the_sampler_are_numbers():
    labels = number_labels(["b", "a", "b"])
    sampler = FairSettings().make_sampler(labels, 2)
    assert (sampler.labels.tolist(), sampler.class_names) == ([1, 0, 1], ("a", "b"))


def numbers_of(dataset):
    return dataset.numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scan", "scan"),
        ("kind", "kind"),
        ("null", None),
        ("2", 2),
        ("[0, 1, 1]", [0, 1, 1]),
        ("[cat, dog]", ["cat", "dog"]),
        ("test_label_names.numbers_of", numbers_of),
    ],
)
def test_config_files(text, expected, monkeypatch):
    """LightningCLI and Hydra read every form of labels, and names of classes."""
    jsonargparse = pytest.importorskip("jsonargparse")
    hydra = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    monkeypatch.setitem(sys.modules, "test_label_names", sys.modules[__name__])
    arguments = f"labels: {text}\ntarget_probs: {{cat: 0.5, 1: 0.2}}\n"
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(FairSampling, "fair")
    lines = "".join(f"  {line}\n" for line in arguments.splitlines())
    settings = parser.instantiate_classes(parser.parse_string(f"fair:\n{lines}")).fair.settings
    assert (settings.labels, settings.target_probs) == (expected, {"cat": 0.5, 1: 0.2})
    config = omegaconf.OmegaConf.create(f"_target_: lightning_fair.FairSampling\n{arguments}")
    if callable(expected):
        config.labels = {"_target_": text, "_partial_": True}
    settings = hydra.instantiate(config, _convert_="all").settings
    assert settings.labels == expected or settings.labels.func is expected
    assert settings.target_probs == {"cat": 0.5, 1: 0.2}
