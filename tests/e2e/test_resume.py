"""Law 5: a run that is cut after any batch and resumed in a new process is the uninterrupted one, bit for bit.

``python tests/e2e/resume_runs.py`` prints how many resumed runs of each scenario are exact. A quick resume test stands
in ``tests/integration/test_checkpoints.py``.
"""

import io

import numpy as np
import pytest
import torch
from lightning_helpers import BATCH, Indexed, Weighted, fit, in_any_order, loader, movement, trainer
from resume_runs import COUNTS, SCENARIOS, Job, bits, in_new_processes, resume_everywhere, steering

from lightning_fair.schedules import Shift, Step

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=in_any_order if kind.any_order else ()) for name, kind in SCENARIOS.items()]
)
def test_resume_after_any_cut(tmp_path, name):
    """A run that is cut after any batch continues as the uninterrupted one."""
    scenario = SCENARIOS[name]
    if scenario.needs:
        pytest.importorskip(scenario.needs)
    resumed = resume_everywhere(name, tmp_path)
    assert len(resumed) == scenario.cuts
    assert {each.cut: each.differences for each in resumed if each.differences} == {}


@pytest.mark.parametrize(
    ("fault", "name", "finds"),
    [
        ("controller not restored", "every step", "samples"),
        ("draws in flight counted as trained on", "every step, 2 workers", "samples"),
        ("losses on their way not restored", "every step", "draws"),
        ("moved objective not restored", "worst_class, validated within the epoch", "losses"),
        ("counted at delivery", "exception in every batch", "samples"),
        ("optimizer not restored", "every step", "model"),
    ],
)
def test_comparison_detects_faults(tmp_path, fault, name, finds):
    """The comparison detects a resume that is not exact."""
    resumed = resume_everywhere(name, tmp_path, fault, only=(8, 9))
    assert resumed
    assert all(finds in each.differences for each in resumed)


def test_runs_have_something_to_restore(tmp_path):
    """The class mix moves and samples repeat, so that there is something to restore."""
    (whole,) = in_new_processes([Job("every step", tmp_path)])
    assert movement(whole.draws) > 0.1
    assert np.bincount(np.concatenate([step.indices for step in whole.steps])).max() > 1
    assert len({weight for step in whole.steps for weight in step.weights}) > len(whole.steps)


@pytest.mark.parametrize("name", ["worst_class, validated within the epoch", "losses to the objective"])
def test_runs_move_their_objective(tmp_path, name):
    (whole,) = in_new_processes([Job(name, tmp_path)])
    assert whole.callback["sampler"]["controller"]["objective"]["tilt"].abs().max() > 0.1


@in_any_order
def test_batches_overtake_each_other(tmp_path):
    """Batches overtake each other if their order is free; else the scenario would test nothing."""
    (whole,) = in_new_processes([Job("any order, 2 workers", tmp_path)])
    assert whole.draw_ids != sorted(whole.draw_ids)
    states = [torch.load(path, weights_only=True)["callbacks"]["FairSampling"] for path in tmp_path.glob("*.ckpt")]
    assert any(state["sampler"]["controller"]["in_flight"] for state in states)  # overtaken draws


class EndsEarly(Weighted):
    """Ends each epoch after four batches. Lightning itself resumes such a run with one step too many."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 4 else None


@pytest.mark.parametrize("kind", ["limit_train_batches", "on_train_batch_start"])
def test_workers_do_not_change_short_epochs(kind):
    """If epochs are cut short, batches that workers draw ahead for the old epoch do not open the new one."""
    steps = []
    target = Shift(Step(0.0, 1.0, at=1, unit="epoch"), start="prior")
    for workers in (0, 2):
        module = EndsEarly() if kind == "on_train_batch_start" else Weighted()
        limit = {"limit_train_batches": 4} if kind == "limit_train_batches" else {}
        fit(module, loader(Indexed(COUNTS), num_workers=workers), steering(target_probs=target), max_epochs=3, **limit)
        steps.append([(step.indices, step.weights.tolist()) for step in module.steps])
        assert np.bincount(module.steps[4].labels, minlength=len(COUNTS)).tolist() == [2, 2, 2, 2]
    assert len(steps[0]) == 12
    assert steps[0] == steps[1]


# -- what a checkpoint holds -----------------------------------------------------------------------------------


def cut(tmp_path, data=None, steps=6, **settings):
    """Train, save a checkpoint in the middle of an epoch, and return its path."""
    fair = steering(**settings)
    fitted = trainer(fair, max_steps=steps)
    fitted.fit(Weighted(), loader(Indexed(COUNTS) if data is None else data, num_workers=2))
    fitted.save_checkpoint(tmp_path / "cut.ckpt")
    return tmp_path / "cut.ckpt"


def entry(path):
    return torch.load(path, weights_only=True)["callbacks"]["FairSampling"]


def leaves(value):
    if isinstance(value, dict):
        assert all(type(key) in (str, int) for key in value)
        value = list(value.values())
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]


def size(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell()


def test_checkpoint_size(tmp_path):
    """A checkpoint has the same size for any number of samples."""
    small, large = (entry(cut(tmp_path, Indexed(tuple(n * k for n in (700, 200, 70, 30))))) for k in (1, 20))
    assert large["sampler"]["data"]["number of samples"] == 20_000
    assert large["sampler"]["controller"]["in_flight"] == []  # four are made again
    assert abs(size(large) - size(small)) <= 64  # larger numbers, and the file's own rounding


def test_checkpoint_holds_no_items(tmp_path):
    """A checkpoint holds tensors and plain Python objects, and no list of items."""
    state = entry(cut(tmp_path))
    for leaf in leaves(state):
        assert isinstance(leaf, torch.Tensor) or type(leaf) in (bool, int, float, str, type(None))
        # One number per class, or fewer samples than a batch has.
        assert not isinstance(leaf, torch.Tensor) or leaf.numel() <= max(len(COUNTS), BATCH - 1)


@pytest.mark.parametrize("part", ["sampler", "controller"])
def test_checkpoint_version(tmp_path, part):
    """A checkpoint has a version, and no other version is read."""
    path = cut(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    sampler = checkpoint["callbacks"]["FairSampling"]["sampler"]
    state = {"sampler": sampler, "controller": sampler["controller"]}[part]
    version, state["version"] = state["version"], 99
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=f"This {part} reads state version {version}, got 99"):
        fit(Weighted(), loader(Indexed(COUNTS)), steering(), ckpt=path, max_epochs=2)


# -- another run's checkpoint ----------------------------------------------------------------------------------

ELSEWHERE = {
    "more samples": ((32, 10, 6, 4), {}, {}, "number of samples = 48, this run has 52"),
    "other labels": ((26, 12, 6, 4), {}, {}, r"checksum = \d+, this run has \d+"),
    "more classes": (
        (28, 10, 6, 2, 2),
        {},
        {"target_probs": (0.3, 0.3, 0.2, 0.1, 0.1)},
        "number of classes = 4, this run has 5",
    ),
    "larger batches": (COUNTS, {"batch_size": 12}, {}, "batch size = 8, this run has 12"),
    "another seed": (COUNTS, {}, {"seed": 6}, "seed = 5, this run has 6"),
    "another target": (
        COUNTS,
        {},
        {"target_probs": (0.7, 0.1, 0.1, 0.1)},
        r"steers to \[0.4 0.3 0.2 0.1\], this controller to \[0.7 0.1 0.1 0.1\]",
    ),
    "another reference": (
        COUNTS,
        {},
        {"reference": "uniform"},
        r"stands for the target, that of this run for \[0\.25 0\.25 0\.25 0\.25\]\. Resume with the reference",
    ),
}


@pytest.mark.parametrize(("counts", "of_loader", "settings", "match"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_foreign_checkpoint_is_refused(tmp_path, counts, of_loader, settings, match):
    """The checkpoint of another run is refused, and nothing of it stays."""

    def data():
        return loader(Indexed(counts), **of_loader)

    path = cut(tmp_path)
    fair, fresh = steering(**settings), steering(**settings)
    with pytest.raises(ValueError, match=match):
        fit(Weighted(), data(), fair, ckpt=path, max_epochs=2)
    # The same callback without the checkpoint: a new run like any other.
    after, started = Weighted(len(counts)), Weighted(len(counts))
    fit(after, data(), fair)
    fit(started, data(), fresh)
    assert [step.indices for step in after.steps] == [step.indices for step in started.steps]
    assert bits(fair.state_dict()) == bits(fresh.state_dict())


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (Indexed((32, 10, 6, 4)).targets, "number of samples = 48, this run has 52"),
        (Indexed(COUNTS).targets.flip(0), "checksum"),  # the same class sizes, but other samples
    ],
    ids=["more samples", "another order"],
)
def test_refused_checkpoint_changes_nothing(tmp_path, labels, match):
    """A refused checkpoint does not change the sampler."""
    state = entry(cut(tmp_path))["sampler"]
    sampler = steering().settings.make_sampler(labels, BATCH)
    before = bits(sampler.capture())
    with pytest.raises(ValueError, match=match):
        sampler.restore(state)
    assert bits(sampler.capture()) == before
