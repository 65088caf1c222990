"""Presets: the table in the docstring, the files of ``conf/fair`` and the code agree, and do what they say."""

import inspect
import re
from dataclasses import asdict
from math import cos, pi
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_fair import FairSampling, ImportanceWeightedMixin
from lightning_fair.integration.presets import PRESETS, Preset
from lightning_fair.integration.settings import FairSettings

CONF = Path(__file__).parents[2] / "conf" / "fair"


def table():
    """The rows of the docstring's table, by preset; the cells are separated by two spaces or more."""
    lines = inspect.getdoc(FairSampling).splitlines()
    first, head, last = [i for i, line in enumerate(lines) if re.fullmatch(r"=+( +=+)+", line)]
    names, *rows = [re.split(r" {2,}", line.strip()) for line in lines[first + 1 : last] if not line.startswith("=")]
    assert head == first + 2
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def values(path):
    """The values in the comment of a file of ``conf/fair``."""
    words = re.search(r"^# Values: (.*)$", path.read_text(), re.MULTILINE)[1].split()
    given = dict(word.split("=") for word in words)
    return {name: float(value) if name == "lambda2" else value for name, value in given.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_docstring_files_and_code_agree(name):
    row, expected = table()[name], asdict(PRESETS[name])
    for column in ("target_probs", "reference", "correction"):
        assert row[column] == expected[column]
    feedback = "off" if expected["feedback"] == "train" else f"{expected['feedback']}, to the {expected['feedback_to']}"
    assert row["feedback"] == feedback
    settings = FairSettings(preset=name)
    assert {key: getattr(settings, key) for key in expected} == expected
    file = CONF / f"{name}.yaml"
    assert asdict(Preset(**values(file))) == expected
    assert file.read_text().endswith(f"\npreset: {name}\n")
    assert "\n# Costs: " in file.read_text()
    assert f'``"{name}"``' in inspect.getdoc(FairSampling).partition("What they cost: ")[2].partition("\n\n")[0]


def test_every_preset_is_documented():
    assert list(table()) == list(PRESETS)
    assert {path.stem for path in CONF.glob("*.yaml")} == {*PRESETS, "off"}


def test_argument_wins():
    settings = FairSettings(preset="worst_class", target_probs="sqrt", lambda2=0.0, feedback="train")
    assert (settings.target_probs, settings.lambda2, settings.feedback) == ("sqrt", 0.0, "train")
    assert (settings.reference, settings.correction) == ("uniform", "logits")


# -- what the softmax estimates -------------------------------------------------------------------------------

# Of 200, 60 and 20 samples of three classes, those with each of four inputs.
SEEN = np.array([[140, 20, 20, 20], [6, 42, 6, 6], [1, 1, 10, 8]])
PRIOR = SEEN.sum(1) / SEEN.sum()
UNIFORM = np.full(3, 1 / 3)
STEPS, BATCH = 1000, 140


def posterior(mix):
    """P(y given x) at a class mix, shape (4, 3)."""
    joint = (SEEN / SEEN.sum(1, keepdims=True) * mix[:, None]).T
    return joint / joint.sum(1, keepdims=True)


class Free(ImportanceWeightedMixin, L.LightningModule):
    """Free logits for each input; the learning rate comes to rest before and at the end of the last fifth."""

    fair_sampling = False

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(4, 3)
        torch.nn.init.zeros_(self.table.weight)
        self.estimates, self.references = [], []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.estimates.append(self.table.weight.detach().softmax(1).numpy().copy())
        self.references.append(self.fair.controller.get_reference())
        logits = self.adjusted_logits(self.table(x))
        return self.weighted_loss(F.cross_entropy(logits, y, reduction="none"))

    def validation_step(self, batch, batch_idx):
        x, y = batch
        right = self.table(x).argmax(1) == y
        self.log_dict({f"val/recall/{c}": right[y == c].float().mean() for c in range(3)})

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.2)

        def rate(step):
            begin, end = (0, 0.8 * STEPS) if step < 0.8 * STEPS else (0.8 * STEPS, STEPS)
            return (1 + cos(pi * (step - begin) / (end - begin))) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained(**settings):
    labels, inputs = np.nonzero(np.ones_like(SEEN))
    x, y = (torch.from_numpy(np.repeat(index, SEEN.ravel())) for index in (inputs, labels))
    data = TensorDataset(x, y)
    module, fair = Free(), FairSampling(seed=0, labels=1, **settings)
    module.fair = fair
    loaders = DataLoader(data, BATCH, shuffle=True), DataLoader(data, len(data))
    trainer = L.Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        callbacks=[fair],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, *loaders)
    return module


def distance(estimate, mix):
    return np.abs(estimate - posterior(mix)).max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are expected:UserWarning")
@pytest.mark.parametrize("name", PRESETS)
def test_softmax_estimates_what_the_table_says(name):
    """On a finite set of inputs with free logits, which a stochastic gradient finds to within 0.02."""
    module = trained(preset=name, max_repeats=1000)
    estimates = table()[name]["the softmax estimates"]
    first, last = module.estimates[int(0.8 * STEPS) - 1], module.estimates[-1]
    reference = module.references[-1]
    if estimates == "prior, at the end uniform":
        assert distance(first, PRIOR) < 0.02 < 0.1 < distance(first, UNIFORM)
        assert distance(last, UNIFORM) < 0.02
    elif estimates == "uniform, tilted to low recalls":
        assert reference[2] < 0.25 < 0.37 < reference[:2].min()  # the third class has the highest recall
        assert distance(last, reference) < 0.02 < 0.05 < distance(last, UNIFORM)
    else:
        mix = {"uniform": UNIFORM, "prior": PRIOR}[estimates]
        assert distance(last, mix) < 0.02 < 0.1 < distance(last, PRIOR if estimates == "uniform" else UNIFORM)
