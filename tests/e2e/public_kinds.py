"""Small stand-ins for kinds of public data sets and projects, written as such data sets are.

Of each sample, the first feature is its index; for an image these are the first two pixels.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from label_runs import CLASSES, N, X, loader
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, random_split

NAMES = np.array(["adenoma", "melanoma", "nevus", "wart"])  # in sorted order, as their numbers


# -- vision ------------------------------------------------------------------------------------------------


class Flowers(Dataset):
    """torchvision's Flowers102 and Food101: private lists of files and labels."""

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


class Wrapper(Dataset):
    """Most wrappers: the data set inside is called ``dataset``."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)


class AugMix(Wrapper):
    """timm's AugMixDataset: an image and its augmentations."""

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


class Views(Wrapper):
    """lightly's data sets for self-supervision: two views of an image, its class and its file name."""

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


# -- several labels of a sample -----------------------------------------------------------------------------


FINDINGS = np.stack([CLASSES % 2, CLASSES // 2, np.arange(N) % 3 == 0], axis=1).astype(int)  # some samples have none
FINDING_NAMES = ("cyst", "edema", "mass")


class CelebA(Dataset):
    """torchvision's: ``attr`` of zeros and ones, which is also the target of a sample."""

    def __init__(self):
        self.attr, self.attr_names = torch.from_numpy(FINDINGS), [*FINDING_NAMES, ""]

    def __len__(self):
        return len(self.attr)

    def __getitem__(self, index):
        return X[index], self.attr[index]


class ChestMNIST(MedMNIST):
    """MedMNIST's set with several labels: ``labels`` of zeros and ones."""

    def __init__(self):
        self.imgs, self.labels = X.numpy(), FINDINGS.astype(np.uint8)


class ChestXray(Dataset):
    """A data frame whose column joins the findings of an image."""

    def __init__(self):
        pandas = pytest.importorskip("pandas")
        texts = ["|".join(np.array(FINDING_NAMES)[row == 1]) or "No Finding" for row in FINDINGS]
        self.df = pandas.DataFrame({"Image Index": range(N), "Finding Labels": texts})

    def __len__(self):
        return len(self.df)

    def __getitem__(self, index):
        return X[index], torch.from_numpy(FINDINGS[index]).float()


class Coco(Dataset):
    """Annotations of the objects in each image, as of ``CocoDetection``; a sample has zeros and ones."""

    def __init__(self):
        self.annotations = [[{"category_id": c} for c in row.nonzero()[0].tolist() * 2] for row in FINDINGS]

    def __len__(self):
        return len(self.annotations)

    def __getitem__(self, index):
        present = torch.zeros(3)
        present[[each["category_id"] for each in self.annotations[index]]] = 1
        return X[index], present


def emotions(_: Path) -> Any:
    """Hugging Face's data sets with a list of named classes of each sample, as ``go_emotions``."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "x": datasets.Sequence(datasets.Value("float32")),
            "labels": datasets.Sequence(datasets.ClassLabel(names=list(FINDING_NAMES))),
        }
    )
    rows = {"x": X.tolist(), "labels": [row.nonzero()[0].tolist() for row in FINDINGS]}
    return datasets.Dataset.from_dict(rows, features=features)


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


class WrapsHuggingFace(Wrapper):
    """A class around a Hugging Face data set, which it keeps as ``dataset``."""

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
