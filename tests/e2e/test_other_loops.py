"""The programs of examples/README.md without Lightning's Trainer: Fabric, Hugging Face, timm."""

from __future__ import annotations

import re
import warnings
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning_helpers import Indexed, Plain
from loop_runs import Draws, run_on_rank, run_program
from rank_runs import Ranks, RanksError
from torch.utils.data import DataLoader, WeightedRandomSampler

from lightning_fair import FairSampling

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples/README.md"
TWO = ("Fabric(devices=1)", 'Fabric(accelerator="cpu", devices=2)')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGE.exists(), reason="The pages are not part of an installed package."),
]


def program(heading: str, language: str = "python") -> str:
    """Return the first block of code below a heading."""
    _, section = PAGE.read_text().split(f"## {heading}\n", 1)
    return re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)[0]


def changed(code: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    return code


@pytest.fixture(scope="module")
def two():
    ranks = Ranks(2)
    yield partial(ranks, run_on_rank)
    ranks.end()


def assert_shares_of_one_draw(ranks: list[Draws], sizes: tuple[int, ...]) -> None:
    """Check that the ranks have the same ``p``, bit for bit, and together go through the items of each class."""
    first, second = ranks
    assert len(first.probs) == len(second.probs) > 0
    assert np.array_equal(first.probs, second.probs)
    assert np.array_equal(first.counts, second.counts)
    uses = np.bincount(list(chain(*first.indices, *second.indices)), minlength=sum(sizes))
    # 0 if the draws of a class end with a pass through its items.
    assert max(np.ptp(part) for part in np.split(uses, np.cumsum(sizes)[:-1])) <= 1
    assert first.warnings == second.warnings == []


def is_balanced(counts: Any) -> bool:
    return bool(np.ptp(np.sum(counts, axis=0)) <= 0.1 * np.mean(np.sum(counts, axis=0)))


# -- WeightedRandomSampler ---------------------------------------------------------------------------------


NAMES = {
    "torch": torch,
    "L": L,
    "DataLoader": DataLoader,
    "WeightedRandomSampler": WeightedRandomSampler,
    "FairSampling": partial(FairSampling, seed=0),
}
QUIET = "max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False"
TEN = [90] * 9 + [9]


def train_either(sign: str, **fair: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Train by the lines of the comparison with this sign; return class counts by batch, and the uses of each item."""
    lines = program("Coming from `WeightedRandomSampler`", "diff").splitlines()
    code = "\n".join(line[1:] for line in lines if line.startswith(sign)).replace("max_epochs=3", QUIET)
    data, module = Indexed(TEN), Plain(num_classes=10)
    torch.manual_seed(0)
    variables, _ = run_program(code, {**NAMES, "dataset": data, "labels": data.targets})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ImportanceWeightedMixin")
        variables["trainer"].fit(module, variables["loader"])
    counts = torch.stack([torch.bincount(torch.tensor(step.labels), minlength=10) for step in module.steps])
    items = torch.tensor([index for step in module.steps for index in step.indices])
    return counts, torch.bincount(items, minlength=len(data))


def test_weighted_random_sampler():
    """The lines to delete and the lines to add balance the classes; only the new ones give exact counts and passes."""
    old_counts, old_uses = train_either("-")
    counts, uses = train_either("+")
    full = old_counts.sum(1) == 64
    assert 1.8 < old_counts[full].double().std(0).mean() < 3.0  # 2.4 for independent draws
    assert set(counts.flatten().tolist()) == {6, 7}
    assert len(counts) == len(old_counts)
    for share in (counts, old_counts):
        assert (share.double().sum(0) / share.sum()).sub(0.1).abs().max() < 0.03
    for item_uses in uses.split(TEN):
        assert item_uses.max() - item_uses.min() <= 1
    assert max(int(part.max() - part.min()) for part in old_uses.split(TEN)) > 3


# -- Fabric ------------------------------------------------------------------------------------------------


def test_fabric():
    """Fabric's loop draws the classes equally often, and reports every batch."""
    variables, draws = run_program(program("Fabric"))
    assert len(draws.probs) == 32
    assert is_balanced(variables["sampler"].drawn)
    assert not variables["controller"].in_flight
    assert np.isfinite(variables["controller"].ema_loss).all()


def test_fabric_in_two_processes(two, tmp_path):
    """Two processes share each draw, also when the losses act on ``p``."""
    code = changed(
        program("Fabric"),
        TWO,
        ("batch_size=32,", "batch_size=12, steps_per_epoch=25, controller=FeedbackController(3, lambda2=0.4),"),
        ("import FeedbackBatchSampler,", "import FeedbackBatchSampler, FeedbackController,"),
    )
    ranks = two(code=code, folder=tmp_path)
    assert_shares_of_one_draw(ranks, (900, 90, 10))
    assert np.ptp(ranks[0].probs, axis=0).min() > 1e-3


@pytest.mark.parametrize(
    ("mistake", "remedy"),
    [
        ((", rank=fabric.global_rank, world_size=fabric.world_size", ""), "fabric.global_rank"),
        (("fabric.all_gather((y, losses.detach()))", "(y, losses.detach())"), "fabric.all_gather"),
    ],
    ids=["ranks", "gather"],
)
def test_fabric_warnings(two, mistake, remedy, tmp_path):
    """If the sampler does not know the ranks, or gets the report of one rank only, one warning names the remedy."""
    for draws in two(code=changed(program("Fabric"), TWO, mistake), folder=tmp_path):
        (message,) = draws.warnings
        assert remedy in message


def test_fabric_without_flag(two, tmp_path):
    """Without ``use_distributed_sampler=False``, the error names it."""
    with pytest.raises(RanksError, match=r"TypeError: .*use_distributed_sampler=False"):
        two(code=changed(program("Fabric"), TWO, (", use_distributed_sampler=False", "")), folder=tmp_path)


# -- Hugging Face --------------------------------------------------------------------------------------------


@pytest.fixture
def hugging_face():
    for name in ("transformers", "accelerate", "datasets"):
        pytest.importorskip(name)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_hugging_face(hugging_face, accumulate, tmp_path, monkeypatch):
    """The Trainer gets balanced batches, and reports every loss, also if it accumulates gradients."""
    monkeypatch.chdir(tmp_path)
    settings = f"gradient_accumulation_steps={accumulate}, eval_strategy='epoch', use_cpu=True, report_to=[]"
    code = changed(
        program("Hugging Face"),
        ("report_to=[]", settings),
        ("train_dataset=dataset", "train_dataset=dataset, eval_dataset=dataset"),
    )
    variables, draws = run_program(code)
    assert len(draws.probs) == 40
    assert variables["trainer"].state.global_step == -(-20 // accumulate) * 2
    assert not variables["controller"].in_flight
    assert np.isfinite(variables["controller"].ema_loss).all()
    assert is_balanced(draws.counts)


def test_hugging_face_in_two_processes(hugging_face, two, tmp_path):
    """Two processes of the Trainer share each draw, and the losses of both act on ``p``."""
    code = changed(
        program("Hugging Face"),
        ("num_classes=3", "num_classes=3, lambda2=0.4"),
        ("report_to=[]", "report_to=[], use_cpu=True, save_strategy='no'"),
    )
    ranks = two(code=code, folder=tmp_path)
    assert_shares_of_one_draw(ranks, (180, 40, 20))
    assert len(ranks[0].probs) == 20
    assert np.ptp(ranks[0].probs, axis=0).min() > 1e-3


ACCELERATE = """
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from lightning_fair import FeedbackBatchSampler

labels = torch.repeat_interleave(torch.arange(3), torch.tensor([180, 40, 20]))
sampler = FeedbackBatchSampler(labels, batch_size=12, world_size=1)
loader = Accelerator(cpu=True).prepare(DataLoader(labels, batch_sampler=sampler))
batches = [batch.bincount(minlength=3).tolist() for batch in loader]
assert batches == [[4, 4, 4]] * 10, batches
"""


def test_accelerate(hugging_face, two, tmp_path):
    """With ``world_size=1``, accelerate gives each process every second batch of the same draws, without a warning."""
    first, second = two(code=ACCELERATE, folder=tmp_path)
    assert first.indices == second.indices
    assert len(first.indices) == 20
    assert first.warnings == second.warnings == []


# -- timm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [True, False])
def test_timm(prefetch, tmp_path, monkeypatch):
    """The loader keeps timm's transforms and prefetching, and classes of 90 and 10 images come equally often."""
    pytest.importorskip("timm")
    image = pytest.importorskip("PIL.Image")
    for name, count in {"cat": 90, "dog": 10}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            image.new("RGB", (40, 40), (2 * number, 0, 0)).save(tmp_path / f"images/{name}/{number}.png")
    monkeypatch.chdir(tmp_path)
    code = program("timm")
    if not prefetch:
        code = changed(code, ("is_training=True,", "is_training=True, use_prefetcher=False,"))
        code = changed(code, ("old = loader.loader", "old = loader"), ("loader.loader = ", "loader = "))
    variables, draws = run_program(code)
    assert variables["sampler"].drawn.tolist() == [52, 52]
    assert variables["x"].shape == (8, 3, 32, 32)
    assert sorted(variables["y"].tolist()) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert len(variables["loader"]) == len(draws.probs) == 13
