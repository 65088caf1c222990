"""Public projects: how their code stands around the Trainer, and the line that makes their batches fair.

Each is a small stand-in for projects of the table "Public projects" in ``examples/benchmarks/README.md``, for what no
other test has: labels that are read in another order than they are kept, folds, a Trainer inside a library, and batches
of one sample.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_runs import CLASSES, EVEN, Classifier, N, X, complaint, loader, train
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from lightning_fair import FairSampling

NAMES = np.array(["cat", "dog", "eel", "fox"])

# -- audio: clips in the order of a queue ------------------------------------------------------------------


class Clips(Dataset):
    """A list of clips, read in the order of a queue that every epoch shuffles."""

    def __init__(self):
        self.dataset = [{"name": f"{i}.wav", "waveform": X[i], "target": int(y)} for i, y in enumerate(CLASSES)]
        self.generator = np.random.default_rng(3)
        self.generate_queue()

    def generate_queue(self):
        self.queue = self.generator.permutation(N)

    def __len__(self):
        return N

    def __getitem__(self, index):
        clip = self.dataset[self.queue[index]]
        return clip["waveform"], clip["target"]


class HearsClips(Classifier):
    def on_train_epoch_end(self):
        self.trainer.train_dataloader.dataset.generate_queue()


def test_queue():
    """Labels in the order of the list belong to other samples, which a warning says; those of the queue are right.

    They are looked up in each epoch, so they follow the shuffled queue.
    """
    assert "labels= belongs to other data" in complaint(HearsClips(), loader(Clips()), FairSampling())
    fair = FairSampling(labels=lambda data: [data.dataset[i]["target"] for i in data.queue], reference="prior")
    outcome = train(HearsClips(), loader(Clips()), fair)
    assert outcome.wrong() == []
    assert all(np.allclose(outcome.trained_mix(epoch), EVEN) for epoch in range(3))
    assert all("have changed" in message for message in outcome.warned)


# -- images: files of one fold -----------------------------------------------------------------------------


class Fold(Dataset):
    """The files of one fold, read from a list. The class is in the name of the file; a sample has it as one-hot."""

    def __init__(self, fold, train=True):
        files = np.array([f"images/{NAMES[y]}_{index}.npy" for index, y in enumerate(CLASSES)])
        is_train = np.arange(N) % 5 != fold
        self.path_list = files[is_train == train]

    def __len__(self):
        return len(self.path_list)

    def __getitem__(self, index):
        name, number = Path(self.path_list[index]).stem.split("_")
        one_hot = F.one_hot(torch.tensor(NAMES.tolist().index(name)), 4).float()
        return X[int(number)], one_hot, Path(self.path_list[index]).name


class ReadsOneHot(Classifier):
    def training_step(self, batch, batch_idx):
        return self.loss(batch[0], batch[1].argmax(1))


@pytest.mark.parametrize("labels", ["scan", lambda data: [Path(p).stem.split("_")[0] for p in data.path_list]])
def test_folds(labels, tmp_path, monkeypatch):
    """Each fold is balanced, and trained on its own files."""
    monkeypatch.setenv("LIGHTNING_FAIR_CACHE", str(tmp_path))
    for fold in (0, 3):
        outcome = train(ReadsOneHot(), loader(Fold(fold)), FairSampling(labels=labels, reference="prior"))
        assert outcome.wrong() == []
        assert np.allclose(outcome.trained_mix(), EVEN)
        assert all((step.indices % 5 != fold).all() for step in outcome.steps)
        assert outcome.warned == []


# -- tables: a library with its own Trainer ----------------------------------------------------------------


class Rows(Dataset):
    """The table of such a library: ``y`` has a column for each target."""

    def __init__(self):
        self.y = CLASSES[:, None]

    def __len__(self):
        return N

    def __getitem__(self, index):
        return {"continuous": X[index], "target": torch.from_numpy(self.y[index])}


class Library:
    """Makes module, loader and Trainer itself, of the package it imports. Users may pass callbacks."""

    def __init__(self, package: Any) -> None:
        self.package = package

        class Model(package.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Linear(2, 4)
                self.trained = torch.zeros(4)

            def training_step(self, batch, batch_idx):
                y = batch["target"][:, 0]
                self.trained += y.bincount(minlength=4)
                return F.cross_entropy(self.net(batch["continuous"]), y)

            def test_step(self, batch, batch_idx):
                self.log("test_loss", F.cross_entropy(self.net(batch["continuous"]), batch["target"][:, 0]))

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.01)

        self.model = Model()

    def prepare_trainer(self, folder: Path) -> Any:
        checkpoint = self.package.callbacks.ModelCheckpoint(folder)
        return self.package.Trainer(
            max_epochs=2,
            callbacks=[*self.callbacks, checkpoint],
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def fit(self, data: Dataset, folder: Path, callbacks: list[Any]) -> None:
        self.callbacks = callbacks
        self.trainer = self.prepare_trainer(folder)
        self.trainer.fit(self.model, train_dataloaders=loader(data))

    def save_and_load(self, folder: Path) -> None:
        (folder / "callbacks.sav").write_bytes(pickle.dumps(self.callbacks))
        self.callbacks = pickle.loads((folder / "callbacks.sav").read_bytes())
        self.trainer = self.prepare_trainer(folder)

    def evaluate(self, data: Dataset) -> float:
        return self.trainer.test(self.model, loader(data), verbose=False)[0]["test_loss"]


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_library(package, tmp_path):
    """A library's own Trainer is fair with a callback alone, and with one that the library has saved and loaded."""
    library, even = Library(pytest.importorskip(package)), torch.full((4,), N / 4)
    library.fit(Rows(), tmp_path, [FairSampling()])
    assert torch.allclose(library.model.trained, 2 * even)
    library.save_and_load(tmp_path)
    assert library.evaluate(Rows()) > 0
    library.fit(Rows(), tmp_path, library.callbacks)
    assert torch.allclose(library.model.trained, 4 * even)


# -- medicine: volumes, one at a time ----------------------------------------------------------------------


class Volumes(Dataset):
    """A data frame; ``labels`` are the names of its columns of classes, and a sample has a vector of targets."""

    def __init__(self):
        pandas = pytest.importorskip("pandas")
        self.df = pandas.DataFrame({"UID": [f"P{i:03d}" for i in range(N)], "Lesion": CLASSES})
        self.labels = ["Lesion"]

    def __len__(self):
        return len(self.df)

    def __getitem__(self, index):
        target = (np.stack(self.df.loc[index][self.labels].values) == 2).astype(int)
        return {"uid": self.df.loc[index]["UID"], "source": X[index], "target": target}


class FindsLesions(Classifier):
    def training_step(self, batch, batch_idx):
        return self.loss(batch["source"], batch["target"][:, 0])


def test_one_sample_a_batch():
    """Batches of a single sample are balanced over the steps, in a class that only ``__getitem__`` makes."""
    generator = torch.Generator().manual_seed(0)
    data = Volumes()
    sampler = RandomSampler(data, generator=generator)
    volumes = DataLoader(data, batch_size=1, sampler=sampler, generator=generator, drop_last=True)
    with pytest.raises(ValueError, match=r"attribute 'labels'.*Pass labels="):
        train(FindsLesions(2), volumes, FairSampling())
    fair = FairSampling(labels=lambda data: data.df["Lesion"] == 2, reference="prior", horizon=16)
    outcome = train(FindsLesions(2), volumes, fair, max_epochs=1, limit_train_batches=40)
    assert outcome.wrong() == []
    assert np.allclose(outcome.trained_mix(), 0.5, atol=0.051)  # 19 to 21 of 40
    assert outcome.warned == []
