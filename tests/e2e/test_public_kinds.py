"""Kinds of public data sets and projects: where each keeps its labels, and what has to be written to balance them.

The table in ``examples/benchmarks/README.md`` has one row for each entry of ``KINDS``, and the tests hold each row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from label_runs import BATCH, CLASSES, Classifier, N, Outcome, X, loader, train
from public_kinds import (
    FINDING_NAMES,
    FINDINGS,
    AugMix,
    CelebA,
    ChestMNIST,
    ChestXray,
    Cifar,
    Coco,
    Dictionaries,
    Episodic,
    Flowers,
    FrameAndFolder,
    Grades,
    Graphs,
    MedMNIST,
    NeighborLoader,
    Reviews,
    Shards,
    SpeechCommands,
    Table,
    TaskSampler,
    Template,
    Timm,
    Transformed,
    Views,
    Wilds,
    WildsSubset,
    WrapsHuggingFace,
    batch_graphs,
    categorical_and_numeric,
    emotions,
    hugging_face,
    image_folder,
    number_words,
    pad_and_sort,
)
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from lightning_fair import FairSampling, FairStream
from lightning_fair.dataloaders.label_scan import find_loader_labels

TABLE = Path(__file__).parents[2] / "examples/benchmarks/README.md"


# -- what the modules read ---------------------------------------------------------------------------------


def pair(batch):
    return batch[0], batch[1]


def pixels(batch):
    x = torch.stack([16 * batch[0][:, 0] + batch[0][:, 1], torch.zeros(len(batch[0]))], dim=1).float()
    return x, batch[1]


def of_graph(batch):
    first = torch.cat([torch.ones(1, dtype=torch.bool), batch.batch[1:] != batch.batch[:-1]])
    return batch.x[first], batch.y


def tokens(batch):
    ids = batch["input_ids"]
    return torch.stack([ids[:, 0], (ids == 0).sum(1)], dim=1).float(), batch["labels"]


class Reads(Classifier):
    """The classifier, with a function that takes features and labels out of its batch."""

    def __init__(self, unpack):
        super().__init__()
        self.unpack = unpack

    def training_step(self, batch, batch_idx):
        return self.loss(*self.unpack(batch))


class Kind(NamedTuple):
    """One row of the table.

    Attributes:
        where: Where the labels are, in words.
        data: Makes the data set or data module; gets an empty folder.
        written: The arguments of ``FairSampling`` that have to be written.
        unpack: Takes features and labels out of a batch.
        loader: Arguments of the loader.
        balanced: Group of each sample that is balanced; None: the classes that are trained with.
    """

    where: str
    data: Callable[[Path], Any]
    written: str = ""
    unpack: Callable[[Any], tuple[torch.Tensor, torch.Tensor]] = pair
    loader: dict[str, Any] = {}  # noqa: RUF012
    balanced: np.ndarray | None = None


GROUPS = 2 * CLASSES + np.arange(N) % 2

KINDS = {
    "torchvision `ImageFolder`": Kind("`targets`", image_folder, unpack=pixels),
    "torchvision `CIFAR10`, `MNIST`": Kind("`targets`", lambda _: Cifar()),
    "torchvision `Flowers102`, `Food101`": Kind("`_labels`", lambda _: Flowers()),
    "`random_split` of one of these": Kind("of the data set inside", lambda _: random_split(Flowers(), [120, 40])[0]),
    "the same in a subset class of one's own": Kind(
        "two levels inside, `.subset.dataset`",
        lambda _: Transformed(random_split(Flowers(), [120, 40])[0]),
        'labels="scan"',
    ),
    "project template: `random_split` in `setup`": Kind("of the data sets inside", lambda _: Template()),
    "wrapper with `.dataset`, as timm's AugMix": Kind(
        "of the data set inside", lambda _: AugMix(Cifar()), unpack=lambda batch: (batch[0][0], batch[1])
    ),
    "timm's `ImageDataset`": Kind(
        "`reader.samples`", lambda _: Timm(), "labels=lambda data: [y for _, y in data.reader.samples]"
    ),
    "MedMNIST": Kind("`labels`, shape `(N, 1)`", lambda _: MedMNIST(), unpack=lambda b: (b[0], b[1].squeeze(1))),
    "lightly: two views, class, file name": Kind(
        "of the data set inside", lambda _: Views(Cifar()), unpack=lambda batch: (batch[0][0], batch[1])
    ),
    "MONAI: list of dictionaries": Kind(
        "`data`, key `label`",
        lambda _: Dictionaries(),
        'labels=lambda data: [item["label"] for item in data.data]',
        unpack=lambda batch: (batch["image"], batch["label"]),
    ),
    "data frame and folder of images": Kind(
        "a column of `df`, as strings", lambda _: FrameAndFolder(), 'labels=lambda data: data.df["diagnosis"]'
    ),
    "data frame columns `X` and `y`": Kind("`y`, a Series", lambda _: Table()),
    "`TensorDataset(numbers, categories, labels)`": Kind(
        "the third tensor", categorical_and_numeric, "labels=2", unpack=lambda batch: (batch[0], batch[2])
    ),
    "text, sorted by length in `collate_fn`": Kind(
        "`labels`", lambda _: Reviews(), unpack=tokens, loader={"collate_fn": pad_and_sort}
    ),
    "Hugging Face `datasets`": Kind("column `label`", hugging_face, unpack=lambda batch: (batch["x"], batch["label"])),
    "the same, another column": Kind(
        "column `intent`",
        lambda folder: hugging_face(folder, "intent"),
        'labels="intent"',
        unpack=lambda batch: (batch["x"], batch["intent"]),
    ),
    "a class around a Hugging Face data set": Kind(
        "of the data set inside", lambda folder: WrapsHuggingFace(hugging_face(folder))
    ),
    "torchaudio `SPEECHCOMMANDS`": Kind(
        "folders in the paths of `_walker`",
        lambda _: SpeechCommands(),
        "labels=lambda data: [Path(path).parent.name for path in data._walker]",
        loader={"collate_fn": number_words},
    ),
    "PyTorch Geometric, graphs": Kind("`y`", lambda _: Graphs(), unpack=of_graph, loader={"collate_fn": batch_graphs}),
    "WILDS, classes": Kind("`y_array`", lambda _: WildsSubset(Wilds(), np.arange(0, N, 2)), 'labels="y_array"'),
    "WILDS, class by domain": Kind(
        "`y_array`, `metadata_array`",
        lambda _: WildsSubset(Wilds(), np.arange(N)),
        "labels=lambda data: 2 * data.y_array + data.metadata_array[:, 0]",
        balanced=GROUPS,
    ),
    "named tuples, no attribute": Kind("in the samples", lambda _: Grades(), 'labels="scan"'),
}


def run_kind(kind: Kind, folder: Path) -> Outcome:
    data = kind.data(folder)
    data = data if isinstance(data, L.LightningDataModule) else loader(data, **kind.loader)
    settings = eval(f"dict({kind.written})")  # what runs is what the table says
    return train(Reads(kind.unpack), data, FairSampling(reference="prior", **settings))


RELATIONS = {
    "labels": "holds the labels",
    "renumbered": "numbers the classes",
    "groups": "holds the classes of the groups",
}


def table_row(name: str, kind: Kind, outcome: Outcome) -> str:
    """Return the row of the table for a kind that was run."""
    check: Any = outcome.fair._run.label_check
    verified = f"`{check.column}` {RELATIONS[check.relation]}"
    return f"| {name} | {kind.where} | {f'`{kind.written}`' if kind.written else 'nothing'} | {verified} |"


@pytest.mark.parametrize("name", KINDS)
def test_kind(name, tmp_path):
    """With the written lines every class is balanced, every sample has its weight and loss, and nothing is warned of.

    The row of the table says so, and in which way the batches are verified.
    """
    kind = KINDS[name]
    outcome = run_kind(kind, tmp_path)
    assert outcome.wrong(kind.balanced) == []
    drawn = outcome.fair.sampler.drawn
    assert np.allclose(drawn / drawn.sum(), 1 / len(drawn))
    if kind.balanced is None:
        assert np.allclose(outcome.trained_mix(), 0.25)
    assert outcome.warned == []
    row = table_row(name, kind, outcome)
    assert row in TABLE.read_text().splitlines(), row


def test_nodes():
    """A loader of nodes draws from their positions, which are no labels; batches with neighbors are not verified."""
    y, nodes = torch.from_numpy(CLASSES), torch.arange(0, N, 2)
    data = NeighborLoader(y, nodes, batch_size=BATCH, shuffle=True)

    def drawn(batch):
        return batch.x[: batch.batch_size], batch.y[: batch.batch_size]

    with pytest.raises(TypeError, match="labels="):
        train(Reads(drawn), data, FairSampling())
    outcome = train(Reads(drawn), data, FairSampling(labels=y[nodes], reference="prior"))
    assert outcome.wrong() == []
    assert np.allclose(outcome.trained_mix(), 0.25)
    (message,) = outcome.warned
    assert "verif" in message


def test_episodes():
    """Few-shot tasks are drawn by their own batch sampler, which cannot be made fair: an error says so."""
    data = Episodic()
    with pytest.raises(ValueError, match="TaskSampler"):
        train(Reads(pair), DataLoader(data, batch_sampler=TaskSampler(data)), FairSampling())
    sampler = TaskSampler(data)
    sampler.batch_size = 8
    (message,) = train(Reads(pair), DataLoader(data, batch_sampler=sampler), FairSampling()).warned
    assert "TaskSampler of the training DataLoader has no effect" in message


class Masks(Dataset):
    """Segmentation: a mask of class numbers for each image."""

    targets = torch.from_numpy(CLASSES)[:, None, None].repeat(1, 4, 4)

    def __len__(self):
        return N

    def __getitem__(self, index):
        return X[index], self.targets[index]


def test_masks():
    """Masks are no classes: the error names the remedy, a class for each sample."""
    with pytest.raises(ValueError, match=r"labels=.*mask\.max"):
        train(Reads(pair), loader(Masks()), FairSampling())

    class Segments(Reads):
        def training_step(self, batch, batch_idx):
            return self.loss(batch[0], batch[1].flatten(1).amax(1))

    labels = [int(target.max()) for target in Masks.targets]
    outcome = train(Segments(pair), loader(Masks()), FairSampling(labels=labels, reference="prior"))
    assert outcome.wrong() == []


SEVERAL = {
    "torchvision `CelebA`": Kind("`attr`", lambda _: CelebA(), 'labels="attr"'),
    "ChestMNIST": Kind("`labels`", lambda _: ChestMNIST()),
    "names joined in a data frame": Kind(
        "a column of `df`",
        lambda _: ChestXray(),
        'labels=lambda data: data.df["Finding Labels"].replace("No Finding", "").str.findall(r"[^|]+")',
    ),
    "annotations": Kind(
        "`annotations`",
        lambda _: Coco(),
        'labels=lambda data: [{each["category_id"] for each in row} for row in data.annotations]',
    ),
    "the same, in the samples": Kind("in the samples", lambda _: Coco(), 'labels="scan"'),
    "`TensorDataset`": Kind("second tensor", lambda _: TensorDataset(X, torch.from_numpy(FINDINGS).float())),
    "`random_split` of one": Kind("inside", lambda _: random_split(ChestMNIST(), [N, 0])[0]),
    "Hugging Face": Kind("column `labels`", emotions),
}


def to_rows(samples):
    """Collate Hugging Face's samples, whose labels are lists of classes."""
    rows = torch.zeros(len(samples), len(FINDING_NAMES))
    for row, sample in zip(rows, samples, strict=True):
        row[sample["labels"]] = 1
    return torch.tensor([sample["x"] for sample in samples]), rows


class Tagger(Reads):
    """The classifier, with a logit for each label, that records the samples and the weights of its steps."""

    def training_step(self, batch, batch_idx):
        x, rows = self.unpack(batch)
        losses = torch.ones(len(rows), requires_grad=True)
        loss = self.weighted_loss(losses)
        self.record(x[:, 0], rows[:, 0].long(), losses, loss)
        return loss + 0 * self.net(x).sum()


@pytest.mark.parametrize("name", SEVERAL)
def test_several_labels_are_trained(name, tmp_path):
    """All labels come equally often, each sample has the weight of its labels, and nothing is warned of."""
    kind = SEVERAL[name]
    data, fair = kind.data(tmp_path), FairSampling(reference="prior", **eval(f"dict({kind.written})"))
    options = {"collate_fn": to_rows} if name == "Hugging Face" else {}
    outcome = train(Tagger(pair), DataLoader(data, BATCH, shuffle=True, **options), fair)
    assert outcome.warned == []
    has_label = np.column_stack([FINDINGS, ~FINDINGS.any(axis=1)])
    for step, probs in zip(outcome.steps, outcome.probs, strict=True):
        rows = has_label[step.indices]
        np.testing.assert_allclose(step.weights, 1 / N / (rows @ (probs / has_label.sum(axis=0))), rtol=1e-5)
    shares = has_label[np.concatenate([step.indices for step in outcome.steps])].sum(axis=0)
    np.testing.assert_allclose(shares / shares.sum() / fair.controller.q, 1.0, atol=0.1)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_labels(name, tmp_path):
    """Several labels of a sample, or none, are found with the written lines."""
    kind = SEVERAL[name]
    data, settings = kind.data(tmp_path), eval(f"dict({kind.written})")
    labels = find_loader_labels(loader(data), **settings)
    has_label = labels.numbers.to_dense()
    assert labels.numbers.has_unlabeled
    expected = FINDINGS[data.indices] if hasattr(data, "indices") else FINDINGS
    assert np.array_equal(has_label[:, :3], expected)
    assert np.array_equal(has_label[:, 3], ~expected.any(axis=1))
    assert labels.names in (None, (*FINDING_NAMES, "none"))


def test_shards():
    """A stream of dictionaries needs ``FairStream``, which takes a function of the sample."""
    stream = FairStream(Shards(), batch_size=BATCH, label_fn=lambda sample: sample["cls"], max_reuse=64)

    class Streams(Reads):
        drawn = 0

        def training_step(self, batch, batch_idx):
            x, y = self.unpack(batch)
            Streams.drawn = Streams.drawn + y.bincount(minlength=4)
            return self.loss(x, y)

    with pytest.raises(TypeError, match="FairStream"):
        train(Streams(pair), DataLoader(Shards(), batch_size=BATCH), FairSampling())
    module, fair = Streams(lambda b: (b["npy"], b["cls"])), FairSampling(num_classes=4)
    outcome = train(module, DataLoader(stream, batch_size=BATCH), fair, max_epochs=2)
    assert len(module.steps) > 10
    assert outcome.warned == []
    shares = Streams.drawn / Streams.drawn.sum()
    assert (shares - 0.25).abs().max() < 0.05
