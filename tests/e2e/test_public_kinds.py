"""Kinds of public data sets and projects: where each keeps its labels, and what has to be written to balance them.

Each class below is a small stand-in, written as such data sets are. The table in ``examples/benchmarks/README.md`` has
one row for each entry of ``KINDS``, and the tests hold each row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from label_runs import BATCH, CLASSES, Classifier, Outcome, train
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, random_split

from lightning_fair import FairSampling, FairStream

N = len(CLASSES)
NAMES = np.array(["adenoma", "melanoma", "nevus", "wart"])  # in sorted order, as their numbers
X = torch.stack([torch.arange(N, dtype=torch.float32), torch.zeros(N)], dim=1)
TABLE = Path(__file__).parents[2] / "examples/benchmarks/README.md"


def loader(dataset: Any, **settings: Any) -> DataLoader:
    return DataLoader(dataset, **{"batch_size": BATCH, "shuffle": True, **settings})


# -- vision ------------------------------------------------------------------------------------------------


class Flowers(Dataset):
    """torchvision's Flowers102, Food101, GTSRB-like classes: private lists of files and labels."""

    def __init__(self):
        self._image_files = [f"image_{index:05d}.jpg" for index in range(N)]
        self._labels = CLASSES.tolist()

    def __len__(self):
        return len(self._image_files)

    def __getitem__(self, index):
        return X[index], self._labels[index]


class Cifar(Dataset):
    """torchvision's CIFAR10, MNIST, ImageFolder: ``targets``, and the names in ``classes``."""

    classes = NAMES.tolist()

    def __init__(self):
        self.data, self.targets = X.numpy(), CLASSES.tolist()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return torch.from_numpy(self.data[index]), self.targets[index]


def image_folder(folder: Path) -> Dataset:
    datasets, Image = pytest.importorskip("torchvision.datasets"), pytest.importorskip("PIL.Image")
    for index, y in enumerate(CLASSES):
        (folder / NAMES[y]).mkdir(exist_ok=True)
        # The name keeps the order of the samples known: it is the index, and so are the first two pixels.
        Image.new("RGB", (1, 1), (index // 16, index % 16, 0)).save(folder / NAMES[y] / f"{index:05d}.png")
    return datasets.ImageFolder(str(folder), transform=lambda image: torch.tensor(image.getpixel((0, 0))))


class AugMix(Dataset):
    """timm's AugMixDataset and most wrappers: the data set inside is called ``dataset``."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x, y = self.dataset[index]
        return (x, x + 0, x + 0), y


class Timm(Dataset):
    """timm's ImageDataset: a reader that has ``samples``."""

    def __init__(self):
        self.reader = SimpleNamespace(samples=[(f"{index}.jpg", int(y)) for index, y in enumerate(CLASSES)])

    def __len__(self):
        return len(self.reader.samples)

    def __getitem__(self, index):
        return X[index], self.reader.samples[index][1]


class Transformed(Dataset):
    """A subset with transforms of its own, as many projects write it, not called ``dataset``."""

    def __init__(self, subset, transform=None):
        self.subset, self.transform = subset, transform

    def __len__(self):
        return len(self.subset)

    def __getitem__(self, index):
        return self.subset[index]


class MedMNIST(Dataset):
    """``labels`` of shape ``(N, 1)``, which stay so in the batch."""

    def __init__(self):
        self.imgs, self.labels = X.numpy(), CLASSES[:, None]

    def __len__(self):
        return len(self.imgs)

    def __getitem__(self, index):
        return self.imgs[index], self.labels[index].astype(int)


class Views(Dataset):
    """lightly's data sets for self-supervision: two views of an image, its class and its file name."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x, y = self.dataset[index]
        return [x, x + 0], y, f"image_{index:05d}.jpg"


# -- medicine, tables --------------------------------------------------------------------------------------


class Dictionaries(Dataset):
    """MONAI's Dataset: a list of dictionaries and a transform of each."""

    def __init__(self):
        self.data = [{"image": f"scan_{index}.nii.gz", "label": int(y)} for index, y in enumerate(CLASSES)]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return {"image": X[index], "label": self.data[index]["label"]}


class FrameAndFolder(Dataset):
    """A data frame of file names and diagnoses, and a folder of images; the classes are numbered by name."""

    def __init__(self):
        pandas = pytest.importorskip("pandas")
        self.df = pandas.DataFrame({"image_id": [f"{i:05d}" for i in range(N)], "diagnosis": NAMES[CLASSES]})
        self.class_to_idx = {name: number for number, name in enumerate(sorted(set(self.df["diagnosis"])))}

    def __len__(self):
        return len(self.df)

    def __getitem__(self, index):
        row = self.df.iloc[index]
        return X[int(row["image_id"])], self.class_to_idx[row["diagnosis"]]


class Table(Dataset):
    """Columns of a data frame and a Series ``y``."""

    def __init__(self):
        pandas = pytest.importorskip("pandas")
        self.X, self.y = X.numpy(), pandas.Series(CLASSES, name="churn")

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.X[index], self.y.iloc[index]


def categorical_and_numeric(_: Path) -> Dataset:
    categories = torch.from_numpy(np.random.default_rng(2).integers(0, 9, N))
    return TensorDataset(X, categories, torch.from_numpy(CLASSES))


# -- text, sound, graphs -----------------------------------------------------------------------------------


class Reviews(Dataset):
    """Token sequences; ``collate_fn`` sorts by length and pads."""

    def __init__(self):
        self.lengths, self.labels = np.random.default_rng(1).integers(3, 30, N), CLASSES.tolist()

    def __len__(self):
        return N

    def __getitem__(self, index):
        tokens = torch.zeros(int(self.lengths[index]), dtype=torch.int64)
        tokens[0] = index
        return {"input_ids": tokens, "label": self.labels[index]}


def pad_and_sort(samples):
    samples = sorted(samples, key=lambda sample: len(sample["input_ids"]), reverse=True)
    tokens = pad_sequence([sample["input_ids"] for sample in samples], batch_first=True)
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != 0).long(),
        "labels": torch.tensor([sample["label"] for sample in samples]),
    }


def hugging_face(_: Path, label: str = "label") -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"x": datasets.Sequence(datasets.Value("float32")), label: datasets.ClassLabel(names=NAMES.tolist())}
    )
    rows = {"x": X.tolist(), label: CLASSES.tolist()}
    return datasets.Dataset.from_dict(rows, features=features).with_format("torch")


class WrapsHuggingFace(Dataset):
    """A class around a Hugging Face data set, which it keeps as ``dataset``."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        row = self.dataset[index]
        return row["x"], row["label"]


class SpeechCommands(Dataset):
    """torchaudio's: a walk over files, whose folder is the word that is spoken. ``collate_fn`` numbers the words."""

    def __init__(self):
        self._walker = [f"speech_commands/{NAMES[y]}/{index:05d}.wav" for index, y in enumerate(CLASSES)]

    def __len__(self):
        return len(self._walker)

    def __getitem__(self, index):
        path = Path(self._walker[index])
        return X[int(path.stem)], 16_000, path.parent.name, "speaker", 0


def number_words(samples):
    numbers = {name: number for number, name in enumerate(NAMES)}
    return torch.stack([s[0] for s in samples]), torch.tensor([numbers[s[2]] for s in samples])


class Graph(SimpleNamespace):
    """A graph, or a batch of graphs: tensors under names, as in PyTorch Geometric."""


class Graphs(Dataset):
    """PyTorch Geometric's InMemoryDataset: the labels of all graphs are ``y``; a sample is an object."""

    def __init__(self):
        self.y = torch.from_numpy(CLASSES)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        nodes = X[index].repeat(1 + index % 3, 1)
        return Graph(x=nodes, y=self.y[index : index + 1])


def batch_graphs(graphs):
    batch = torch.cat([torch.full((len(graph.x),), number) for number, graph in enumerate(graphs)])
    return Graph(x=torch.cat([graph.x for graph in graphs]), y=torch.cat([graph.y for graph in graphs]), batch=batch)


class NeighborLoader(DataLoader):
    """PyTorch Geometric's loader of nodes: a batch has the drawn nodes first, and then their neighbors."""

    def __init__(self, y, input_nodes, **settings):
        self.y, self.input_nodes = y, input_nodes
        super().__init__(range(len(input_nodes)), collate_fn=self.collate, **settings)

    def collate(self, positions):
        nodes = self.input_nodes[torch.tensor(positions)]
        nodes = torch.cat([nodes, (nodes + 1) % len(self.y)])
        return Graph(x=X[nodes], y=self.y[nodes], n_id=nodes, batch_size=len(positions))


# -- groups, episodes, streams, projects -------------------------------------------------------------------


class Wilds(Dataset):
    """WILDS: private arrays of labels and metadata; a sample is ``(x, y, metadata)``."""

    def __init__(self):
        self._y_array = torch.from_numpy(CLASSES)
        self._metadata_array = torch.stack([torch.arange(N) % 2, self._y_array], dim=1)

    @property
    def y_array(self):
        return self._y_array

    @property
    def metadata_array(self):
        return self._metadata_array

    def __len__(self):
        return len(self._y_array)

    def __getitem__(self, index):
        return X[index], self._y_array[index], self._metadata_array[index]


class WildsSubset(Wilds):
    """Its own subset class, with the same properties."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices

    @property
    def y_array(self):
        return self.dataset._y_array[self.indices]

    @property
    def metadata_array(self):
        return self.dataset._metadata_array[self.indices]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.dataset[self.indices[index]]


class Template(L.LightningDataModule):
    """A project template: all parts joined, then split in ``setup`` with a seeded generator."""

    def setup(self, stage=None):
        full = ConcatDataset([Cifar(), Cifar()])
        generator = torch.Generator().manual_seed(42)
        self.data_train, self.data_val = random_split(full, [240, 80], generator=generator)

    def train_dataloader(self):
        return loader(self.data_train)


class TaskSampler(Sampler):
    """Few-shot learning: a batch is a task of some classes, with the same number of samples of each."""

    def __init__(self, dataset, n_way=2, n_shot=4, n_tasks=10):
        self.items = [np.flatnonzero(np.array(dataset.get_labels()) == y) for y in range(4)]
        self.n_way, self.n_shot, self.n_tasks = n_way, n_shot, n_tasks

    def __len__(self):
        return self.n_tasks

    def __iter__(self):
        rng = np.random.default_rng(0)
        for _ in range(self.n_tasks):
            classes = rng.choice(4, self.n_way, replace=False)
            yield np.concatenate([rng.choice(self.items[y], self.n_shot) for y in classes]).tolist()


class Episodic(Cifar):
    def get_labels(self):
        return self.targets


class Shards(IterableDataset):
    """webdataset's pipelines: dictionaries that are read from shards one after the other."""

    def __iter__(self):
        for index, y in enumerate(CLASSES):
            yield {"__key__": f"{index:06d}", "npy": X[index], "cls": int(y)}


class Scored(NamedTuple):
    image: torch.Tensor
    grade: int


class Grades(Dataset):
    """Named tuples, and nothing else that shows the labels."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return Scored(X[index], int(CLASSES[index]))


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


class Findings(Masks):
    """Several labels per image, as zeros and ones."""

    targets = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (N, 5)))


@pytest.mark.parametrize("kind", [Masks, Findings])
def test_several_labels(kind):
    """Masks and multi-label targets are no classes: the error names the remedy, a class for each sample."""
    with pytest.raises(ValueError, match=r"labels=.*mask\.max|labels=np\.unique\(rows, axis=0"):
        train(Reads(pair), loader(kind()), FairSampling())

    class Segments(Reads):
        def training_step(self, batch, batch_idx):
            return self.loss(batch[0], batch[1].flatten(1).amax(1))

    labels = [int(target.max()) for target in kind.targets]
    outcome = train(Segments(pair), loader(kind()), FairSampling(labels=labels, reference="prior"))
    assert outcome.wrong() == []


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
