"""Feedback from validation: resume, ranks, and a class that is hard."""

import os

import feedback_runs
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from feedback_runs import SaveEverywhere, train
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_helpers import WORKERS, trainer, warnings_about
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_fair import FairSampling, ImportanceWeightedMixin
from lightning_fair.integration.callback import find_callback


def differs(record, whole):
    return (record.draws, record.parameters) != (whole.draws[len(whole.draws) - len(record.draws) :], whole.parameters)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("to", ["objective", "draw"])
def test_resume_after_validation(to, workers, tmp_path):
    """A fit resumed from a checkpoint of a validation, of an epoch or between them is the uninterrupted one."""
    whole = train(to=to, workers=workers, savers=[SaveEverywhere(tmp_path)], val_check_interval=3)
    names = ["03_validation", "04_batch", "06_validation", "08_epoch", "12_batch"]
    resumed = [train(to=to, workers=workers, ckpt=tmp_path / f"{name}.ckpt", val_check_interval=3) for name in names]
    assert [len(record.draws) for record in resumed] == [21, 20, 18, 16, 12]
    assert len({draw[1 if to == "objective" else 2] for draw in whole.draws}) > 3
    assert [differs(record, whole) for record in resumed] == [False] * 5


@pytest.mark.slow
@pytest.mark.parametrize("to", ["objective", "draw"])
@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 3}, {"check_val_every_n_epoch": 2}], ids=str)
def test_resume_from_every_checkpoint(settings, to, tmp_path):
    """Every resumed fit is the uninterrupted one, or warns that Lightning skips a validation."""
    whole, skipped = train(to=to, savers=[SaveEverywhere(tmp_path)], **settings), []
    for path in sorted(tmp_path.iterdir()):
        with warnings_about("Lightning skips this validation now") as messages:
            record = train(to=to, ckpt=path, **settings)
        skipped += [path.stem] * len(messages)
        assert messages or not differs(record, whole), path.stem
    validations = [path.stem for path in tmp_path.glob("*_validation.ckpt")]
    assert sorted(skipped) == sorted(name.replace("validation", "batch") for name in validations)


def test_model_checkpoint(tmp_path):
    """A ModelCheckpoint before a validation warns on resume; at its end, or at another batch, it is exact."""
    for name, when, exact in (
        ("before", {"every_n_train_steps": 4}, False),
        ("other", {"every_n_train_steps": 5}, True),
        ("end", {"save_on_train_epoch_end": False}, True),
    ):
        saver = ModelCheckpoint(tmp_path / name, "{step}", save_top_k=-1, **when)
        whole = train(savers=[saver], val_check_interval=4)
        path = min((tmp_path / name).iterdir(), key=lambda path: int(path.stem.partition("=")[2]))
        with warnings_about("Lightning skips this validation now") as messages:
            resumed = train(ckpt=path, val_check_interval=4)
        assert (len(messages), differs(resumed, whole)) == (not exact, not exact)


# -- ranks -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="The processes are started and ended as POSIX does.")
@pytest.mark.parametrize("how", ["logged", "logged on rank zero", "given"])
def test_ranks_agree(how, two):
    """Values that differ between the ranks move the draws and the objective of both alike, bit for bit."""
    first, second = two(feedback_runs.train, how=how, val_check_interval=3)
    assert len({draw[1] for draw in first.draws}) > 3
    assert [draw[:3] for draw in first.draws] == [draw[:3] for draw in second.draws]
    assert (first.scores.tobytes(), first.reference.tobytes()) == (second.scores.tobytes(), second.reference.tobytes())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="The processes are started and ended as POSIX does.")
def test_counts_weight_the_ranks(two):
    """With counts, two ranks feed back the recalls of all samples, those of one process."""
    alone = train("given", max_epochs=1, val_check_interval=2)
    both = two(feedback_runs.train, how="given", max_epochs=1, val_check_interval=2)
    np.testing.assert_allclose(both[0].scores, alone.scores, atol=1e-6)
    assert np.ptp(alone.scores) > 0


# -- a class that is hard ----------------------------------------------------------------------------------


class Overlapping(Dataset):
    """Three classes on a line. The last one lies between the others, so it is confused with both of them."""

    def __init__(self, counts, seed):
        self.targets = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
        noise = torch.randn(len(self.targets), generator=torch.Generator().manual_seed(seed))
        self.x = torch.tensor([0.0, 3.0, 1.5])[self.targets] + noise

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.x[index, None], self.targets[index]


class Unchanged(L.LightningModule):
    """A classifier that knows nothing of lightning-fair."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 3)
        torch.nn.init.zeros_(self.net.weight)
        torch.nn.init.zeros_(self.net.bias)
        self.recalls = []

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        x, y = batch
        is_hit = self.net(x).argmax(dim=1) == y
        self.recalls.append([float(is_hit[y == c].float().mean()) for c in range(3)])

    def on_validation_epoch_end(self):
        self.log_dict({f"val/recall/{c}": recall for c, recall in enumerate(self.recalls[-1])})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class WithWeights(ImportanceWeightedMixin, Unchanged):
    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        loss = self.weighted_loss(losses)
        draw = find_callback(self.trainer)._run.current.draw
        weights = torch.from_numpy(draw.reference / draw.probs).float()
        torch.testing.assert_close(loss, (weights[y] * losses).mean())  # the objective is that of the draw
        return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [(WithWeights, {}), (Unchanged, {"preset": "worst_class", "target_probs": "sqrt", "logits": "net"})],
)
def test_hard_class_gains(kind, settings):
    """Fed back to the objective, the hardest class gets a larger share of it, and its recall rises."""
    recalls, references = [], []
    for feedback in ({"feedback": "train", "lambda2": 0.0}, {"feedback": "val/recall", "feedback_to": "objective"}):
        module, fair = kind(), FairSampling(seed=0, **settings, **feedback)
        data, val = Overlapping((600, 200, 200), 0), Overlapping((500, 500, 500), 1)
        fitted = trainer(fair, max_epochs=20, num_sanity_val_steps=2)
        fitted.fit(module, DataLoader(data, batch_size=50), DataLoader(val, batch_size=1500))
        recalls.append(module.recalls[-1])
        references.append(fair.controller.reference)
    np.testing.assert_allclose(references[0], 1 / 3)
    assert int(np.argmin(recalls[0])) == 2
    assert references[1][2] > 0.36 > references[1][:2].max()
    assert recalls[1][2] > recalls[0][2] + 0.05
    assert min(recalls[1]) > min(recalls[0]) + 0.05
