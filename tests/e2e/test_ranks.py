"""Law 6: ranks together are one process with a larger batch. Every process here is a real one, over gloo."""

import os
import pickle
import subprocess
from functools import partial
from itertools import chain

import numpy as np
import pytest
import rank_runs
import torch
from lightning_helpers import TARGET, moving
from rank_runs import (
    COUNTS,
    QUIET,
    Drop,
    NoneNowAndThen,
    Ranks,
    RanksError,
    Run,
    labels_of_one,
    labels_that_change,
    resume,
    sample,
    shards,
    tags,
    train,
    train_unlike,
    train_with_own_seed,
    train_with_sampler,
    train_without_us,
)
from tag_helpers import Tagged

from lightning_fair import FairSampling
from lightning_fair.schedules import Linear

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="The processes are started and ended as POSIX does."),
]

K, BATCH = len(COUNTS), 8  # of all ranks together
EPOCH = -(-sum(COUNTS) // BATCH)
HORIZON = 16
SMALL = (24, 12, 8, 5)  # 7 batches: few enough to resume from each


@pytest.fixture(scope="module")
def four():
    ranks = Ranks(4)
    yield ranks
    ranks.end()


def global_batches(runs: list[Run]) -> list[list[int]]:
    """The samples of each step on all ranks."""
    return [list(chain(*parts)) for parts in zip(*(run.indices for run in runs), strict=True)]


def as_sets(steps: list[list[int]]) -> list[list[int]]:
    return [sorted(step) for step in steps]


def assert_agree(runs: list[Run]) -> None:
    """Check that the state of the draws is the same on every rank, bit for bit, after every step."""
    assert runs[0].states
    for run in runs[1:]:
        assert run.draw_ids == runs[0].draw_ids
        assert np.array_equal(run.probs, runs[0].probs)
        assert run.states == runs[0].states


def assert_items_used_equally(runs: list[Run], tolerance: int = 1) -> None:
    """Check that the uses of any two items of a class never differ by more than ``tolerance``, over all ranks.

    A run that begins within a pass, after a resume, sees the rest of that pass and one more: 2.
    """
    labels = np.repeat(np.arange(K), COUNTS)
    uses = np.zeros(labels.size, dtype=int)
    for step in global_batches(runs):
        np.add.at(uses, step, 1)
        assert max(np.ptp(uses[labels == label]) for label in range(K)) <= tolerance


def mixes(runs: list[Run]) -> list[np.ndarray]:
    """The class mix that each step trained on, over all ranks."""
    labels = zip(*([step.labels for step in run.steps] for run in runs), strict=True)
    counts = [np.bincount(list(chain(*parts)), minlength=K) for parts in labels]
    return [of_step / of_step.sum() for of_step in counts]


def follow(mixes: list[np.ndarray]) -> np.ndarray:
    """The trained mix, by its definition."""
    trained_mix = np.array(TARGET)
    for mix in mixes:
        trained_mix = trained_mix + (mix - trained_mix) / HORIZON
    return trained_mix


# -- one batch ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    return train(loaded={"batch_size": BATCH}, max_epochs=2)


@pytest.mark.parametrize("number", [2, 4])
def test_ranks_share_one_batch(number, alone, request):
    """Ranks together train on the batch of one process."""
    runs = request.getfixturevalue("two" if number == 2 else "four")(
        loaded={"batch_size": BATCH // number}, max_epochs=2
    )

    assert np.ptp(alone.probs, axis=0).max() > 0.05  # else nothing is tested
    assert as_sets(global_batches(runs)) == as_sets(alone.indices)
    assert {len(step) for run in runs for step in run.indices} == {BATCH // number}
    assert [run.epochs for run in runs] == [[EPOCH, EPOCH]] * number
    assert all(np.array_equal(run.probs, alone.probs) for run in runs)
    assert_agree(runs)
    assert_items_used_equally(runs)

    shares = np.array([[np.bincount(step.labels, minlength=K) for step in run.steps] for run in runs])
    assert np.ptp(shares, axis=0).max() == 1  # every rank has a like share of every class

    weights = np.mean([[step.weights.mean() for step in run.steps] for run in runs], axis=0)
    assert np.allclose(weights, [step.weights.mean() for step in alone.steps], rtol=1e-6)
    # So the model is the same up to rounding.
    for run in runs:
        assert run.params == runs[0].params
        assert np.allclose(*(np.frombuffer(r.params[-1], np.float32) for r in (run, alone)), atol=1e-5)


@pytest.mark.parametrize("droppers", [(), (1,)])
def test_several_labels(droppers, two):
    """Ranks together train on the batch of one process, with its weights and losses, also if a rank drops samples."""
    fair = FairSampling(target_probs="sqrt", reference="prior", lambda2=0.3, horizon=HORIZON, seed=0, feedback_delay=1)
    settings = {"fair": fair, "tagged": True, "make_loader": tags}
    runs = two(train, loaded={"collate_fn": Drop(droppers)} if droppers else {}, **settings)
    assert_agree(runs)
    assert all(sums == [3 * 7] for run in runs for sums in run.all_reduces)
    drawn = np.frombuffer(runs[0].states[-1]["label_counts"][2], np.int64)
    assert (drawn > Tagged().sets.to_dense()[list(chain(*global_batches(runs)))].sum(axis=0)).any() == bool(droppers)
    if droppers:
        return
    alone = train(loaded={"batch_size": BATCH}, **settings)
    assert as_sets(global_batches(runs))[:10] == as_sets(alone.indices)[:10]
    assert np.ptp(alone.probs, axis=0).max() > 0.05
    np.testing.assert_allclose(runs[0].probs[:10], alone.probs[:10], atol=1e-4)
    weights = np.mean([[step.weights.mean() for step in run.steps] for run in runs], axis=0)
    np.testing.assert_allclose(weights[:10], [step.weights.mean() for step in alone.steps][:10], rtol=1e-3)


@pytest.mark.parametrize("mixin", [True, False], ids=["with the mixin", "without"])
def test_ranks_have_same_state(mixin, two):
    """Every rank has the same state after every step."""
    without_workers, with_workers = (
        two(fair=moving(feedback_delay=5), mixin=mixin, loaded={"num_workers": workers}, max_epochs=2)
        for workers in (0, 2)
    )
    for runs in (without_workers, with_workers):
        assert_agree(runs)
        assert_items_used_equally(runs)
    assert np.ptp(without_workers[0].probs, axis=0).max() > 0.05
    # The number of workers does not change the batches.
    assert [run.indices for run in with_workers] == [run.indices for run in without_workers]

    # One small sum per step.
    size = 3 * (K + 1) if mixin else K
    assert all(sums == [size] for run in without_workers + with_workers for sums in run.all_reduces)


@pytest.mark.parametrize("settings", [{}, {"lambda2": 0.3}, {"lambda2": 0.3, "feedback_to": "objective"}], ids=str)
def test_adjusted_logits_on_every_rank(settings, two):
    """With the hook, ranks have the state and parameters of the mixin, bit for bit, and train as one process does."""
    settings = {
        **QUIET,
        "horizon": HORIZON,
        "correction": "logits",
        "reference": "uniform",
        "feedback_delay": 1,
        **settings,
    }
    hooked = FairSampling(**settings, logits="net")
    runs = two(train, mixin=False, fair=hooked)
    assert_agree(runs)
    mixin = two(train, fair=FairSampling(**settings))
    assert [run.params for run in mixin] == [run.params for run in runs] == [runs[0].params] * 2
    assert all(np.array_equal(run.probs, runs[0].probs) for run in mixin)
    if settings.get("lambda2"):  # else the mixin has the losses for the log, and the hook has none
        assert [run.states for run in mixin] == [run.states for run in runs]
    uncorrected = two(train, mixin=False, fair=FairSampling(**QUIET, correction="none"))
    assert uncorrected[0].params != runs[0].params
    one = train(mixin=False, fair=hooked, loaded={"batch_size": BATCH})
    np.testing.assert_allclose(one.probs, runs[0].probs, rtol=1e-4)
    for step, (params, others) in enumerate(zip(one.params, runs[0].params, strict=True)):
        if step < EPOCH - 1:  # the last batch may be split unevenly
            np.testing.assert_allclose(np.frombuffer(params, "f4"), np.frombuffer(others, "f4"), rtol=1e-3, atol=1e-5)


def test_losses_of_all_ranks(two):
    """Losses of all ranks are fed back."""
    runs = two(fair=moving(feedback_delay=1))
    alone = train(fair=moving(feedback_delay=1), loaded={"batch_size": BATCH})
    # Up to rounding, the losses are those of one process.
    losses = [run.states[4]["controller"]["ema_loss"][2] for run in (runs[0], alone)]
    assert np.allclose(*(np.frombuffer(each) for each in losses), rtol=1e-5)
    assert np.allclose(runs[0].probs[:10], alone.probs[:10], atol=1e-4)


def test_losses_of_all_ranks_move_the_objective(two):
    """The reference of each draw is the same on every rank, bit for bit, and that of one process up to rounding."""
    fair = moving(feedback_to="objective", reference="uniform", feedback_delay=1)
    runs = two(fair=fair)
    assert_agree(runs)
    assert np.array_equal(runs[0].references, runs[1].references)
    assert np.ptp(runs[0].references, axis=0).max() > 0.05
    alone = train(fair=fair, loaded={"batch_size": BATCH})
    assert np.allclose(runs[0].references[:10], alone.references[:10], atol=1e-4)


def test_ranks_with_own_seeds(two):
    """Ranks with different global seeds make the same draws."""
    runs = two(train_with_own_seed, fair=FairSampling(target_probs=TARGET, horizon=HORIZON))
    assert_agree(runs)
    assert_items_used_equally(runs)


# -- epochs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use_distributed_sampler": False}, EPOCH),
        ({"limit_train_batches": 5}, 5),
        ({"limit_train_batches": 0.5, "use_distributed_sampler": False}, EPOCH // 2),
        ({"limit_train_batches": 5, "loaded": {"num_workers": 2}}, 5),
        ({"accumulate_grad_batches": 2}, EPOCH),
        ({"loaded": {"batch_size": 7}}, -(-sum(COUNTS) // 14)),
        ({"reload_dataloaders_every_n_epochs": 1, "install": "datamodule"}, EPOCH),
    ],
    ids=str,
)
def test_epoch_length(settings, expected, two):
    """All ranks together go over the data once per epoch."""
    runs = two(max_epochs=2, **settings)
    assert [run.epochs for run in runs] == [[expected] * 2] * 2
    assert_agree(runs)
    assert_items_used_equally(runs)


# -- the user's own samplers, and Lightning's ---------------------------------------------------------------


def lengths_and_warnings(runs: list[dict]) -> tuple[set, set]:
    """Over both ranks, a loader given or made in a hook, and Lightning's injection on or off."""
    assert [run.failure for by_case in runs for run in by_case.values() if run.failure] == []
    for case in runs[0]:
        assert_agree([by_case[case] for by_case in runs])
        assert_items_used_equally([by_case[case] for by_case in runs])
    everything = [run for by_case in runs for run in by_case.values()]
    return {tuple(run.epochs) for run in everything}, {
        any("has no effect" in warning for warning in run.warnings) for run in runs[0].values()
    }


@pytest.mark.parametrize(
    ("kind", "steps", "warns"),
    [
        ("shuffled", EPOCH, False),
        ("in order", EPOCH, False),
        ("last dropped", sum(COUNTS) // BATCH, False),
        ("DistributedSampler", EPOCH, False),
        ("WeightedRandomSampler", EPOCH, True),
        ("40 at random", 40 // BATCH, False),
        ("BatchSampler", EPOCH, False),
        ("BatchSampler, split", EPOCH, False),
        ("own batch sampler", EPOCH, True),
        ("own batch sampler, split", EPOCH, True),
        ("in bulk", EPOCH, False),
        ("in bulk, split", EPOCH, False),
        ("prefetcher", EPOCH, False),
    ],
)
def test_every_sampler_works(kind, steps, warns, two):
    """Every kind of sampler works without a special setting of the Trainer."""
    assert lengths_and_warnings(two(train_with_sampler, kind=kind)) == ({(steps,)}, {warns})


@pytest.mark.parametrize("kind", ["SubsetRandomSampler", "own batch sampler of a part"])
def test_subset_samplers_are_refused(kind, two):
    """A sampler of a part of the data is refused on all ranks."""
    for by_case in two(train_with_sampler, kind=kind):
        for run in by_case.values():
            assert "part of its data set with SubsetRandomSampler" in (run.failure or f"trained {run.epochs}")


def test_unsplittable_batch_sampler(two):
    """The error for a batch sampler that Lightning cannot split names the setting."""
    for by_case in two(train_with_sampler, kind="no BatchSampler"):
        for (_, injection), run in by_case.items():
            if injection:  # Lightning's own error, before the loader comes to us
                assert "Trainer(use_distributed_sampler=False)" in run.failure
            else:
                assert run.failure is None
                assert run.epochs == [EPOCH]


# -- resume ------------------------------------------------------------------------------------------------


def checkpoints(folder) -> list:
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def cut(checkpoint) -> int:
    """Return the steps before a checkpoint of ``SMALL``, which has 7 per epoch."""
    name = checkpoint.stem
    return int(name.removeprefix("step")) if name.startswith("step") else 7 * (1 + int(name.removeprefix("epoch")))


@pytest.mark.parametrize(
    ("workers", "settings"),
    [(0, {}), (2, {}), (0, {"feedback_to": "objective", "reference": "uniform", "correction": "logits"})],
    ids=["no workers", "2 workers", "logits, losses to the objective"],
)
def test_resume_on_every_rank(workers, settings, two, tmp_path):
    """Resume is exact on every rank."""
    fair = moving(feedback_delay=5, **settings)
    same = {"loaded": {"counts": SMALL, "num_workers": workers}, "fair": fair, "max_epochs": 2}
    whole = two(keep=tmp_path, **same)
    saved = [c for c in checkpoints(tmp_path) if cut(c) < 14]
    assert sorted({cut(c) for c in saved}) == list(range(1, 14))
    if workers:  # their start takes time
        saved = [c for c in saved if c.stem in ("step3", "step6", "step7", "epoch0", "step9")]
    for resumed, run in zip(two(resume, checkpoints=saved, **same), whole, strict=True):
        for checkpoint, rest in zip(saved, resumed, strict=True):
            at = cut(checkpoint)
            for what in ("draw_ids", "indices", "states", "params"):
                assert getattr(rest, what) == getattr(run, what)[at:], (checkpoint.name, what)
            assert np.array_equal(rest.probs, run.probs[at:])
            assert np.array_equal(rest.references, run.references[at:])
    assert bool(settings) == (np.ptp(whole[0].references, axis=0).max() > 0.01)


def test_random_states_of_every_rank(two, tmp_path):
    """Each rank draws its own random numbers on, and another number of ranks is told that it cannot."""
    same = {"loaded": {"counts": SMALL}, "max_epochs": 2, "noisy": True}
    whole = two(keep=tmp_path, **same)
    saved = [tmp_path / f"{name}.ckpt" for name in ("step3", "epoch0", "step9")]
    states = torch.load(saved[0], weights_only=True)["callbacks"]["RandomStates"]["ranks"]
    assert not torch.equal(*(state["torch"] for state in states))
    for resumed, run in zip(two(resume, checkpoints=saved, **same), whole, strict=True):
        assert [rest.params for rest in resumed] == [run.params[cut(checkpoint) :] for checkpoint in saved]
    with pytest.warns(UserWarning, match="random states of 2 ranks, and this run has 1"):
        train(ckpt=saved[0], **{**same, "loaded": {"counts": SMALL, "batch_size": 8}})


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_with_same_global_batch(workers, two, four, tmp_path):
    """Resume with another number of ranks and the same batch in all is exact."""

    def with_batch(size: int) -> dict:
        return {"loaded": {"counts": SMALL, "num_workers": workers, "batch_size": size}, "max_epochs": 2}

    whole = two(keep=tmp_path, **with_batch(4))
    saved = [c for c in checkpoints(tmp_path) if c.stem in ("step3", "step7", "epoch0", "step9")]
    on_four = zip(*four(resume, checkpoints=saved, **with_batch(2)), strict=True)
    on_one = ([run] for run in resume(saved, **with_batch(8)))
    for others in (on_four, on_one):
        for checkpoint, runs in zip(saved, others, strict=True):
            at = cut(checkpoint)
            assert as_sets(global_batches(runs)) == as_sets(global_batches(whole))[at:]
            assert np.array_equal(runs[0].probs, whole[0].probs[at:])
            assert_agree(runs)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_with_same_local_batch(workers, two, four, tmp_path):
    """Resume with another number of ranks and the same local batch continues from the trained mix."""
    same = {"loaded": {"num_workers": workers}, "max_epochs": 2}
    before = two(keep=tmp_path, **same)
    # Four ranks have 11 batches per epoch, so step 15 is after its end.
    saved = [tmp_path / f"{name}.ckpt" for name in ("step10", "step15", "epoch0", "step23")]
    trained = [10, 15, EPOCH, 23]
    on_four = zip(*four(resume, checkpoints=saved, **same), strict=True)
    on_one = ([run] for run in resume(saved, **same))
    for number, others in ((4, on_four), (1, on_one)):
        epoch = -(-sum(COUNTS) // (4 * number))
        for at, runs in zip(trained, others, strict=True):
            assert_agree(runs)
            assert_items_used_equally(runs, tolerance=2)
            if (done := at % EPOCH) < epoch:  # else Lightning restarts that epoch
                assert len(runs[0].steps) == (2 - at // EPOCH) * epoch - done
            assert np.allclose(runs[0].trained_mixes[-1], follow(mixes(before)[:at] + mixes(runs)), rtol=0, atol=1e-12)
            assert runs[0].draw_ids == list(range(at, at + len(runs[0].draw_ids)))


# -- uneven inputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixin", [True, False], ids=["with the mixin", "without"])
@pytest.mark.parametrize("droppers", [(1,), (0, 1)], ids=["one rank drops", "ranks drop different ones"])
def test_uneven_batches(mixin, droppers, two):
    """Uneven batches do not block, and count as trained on."""
    runs = two(fair=moving(feedback_delay=1), mixin=mixin, loaded={"collate_fn": Drop(droppers)}, max_epochs=2)
    sizes = [[len(step) for step in run.indices] for run in runs]
    assert sizes[0] != sizes[1]
    assert [run.epochs for run in runs] == [[EPOCH, EPOCH]] * 2
    assert_agree(runs)
    trained = mixes(runs)
    for step, trained_mix in enumerate(runs[0].trained_mixes):
        assert np.allclose(trained_mix, follow(trained[: step + 1]), rtol=0, atol=1e-9)


def test_uneven_batches_of_workers(two):
    """Uneven batches from workers leave the same state on every rank."""
    runs = two(fair=moving(feedback_delay=5), loaded={"collate_fn": Drop((1,)), "num_workers": 2}, max_epochs=2)
    assert [run.epochs for run in runs] == [[EPOCH, EPOCH]] * 2
    assert_agree(runs)


def test_none_batch_on_all_ranks(two):
    """A batch that is None on all ranks is skipped."""
    runs = two(loaded={"collate_fn": NoneNowAndThen((0, 1))}, fair=FairSampling(**QUIET, feedback_delay=1))
    assert [run.epochs for run in runs] == [[EPOCH]] * 2
    assert runs[0].states == runs[1].states
    assert len(runs[0].steps) == EPOCH - EPOCH // 5


# -- ranks that differ --------------------------------------------------------------------------------------


def fair(**settings) -> dict:
    return {"fair": FairSampling(**{**QUIET, **settings})}


def stream(*counts, batch_size=4, **settings) -> dict:
    return {"make_loader": partial(shards, *counts, batch_size=batch_size), **fair(seed=None, **settings)}


LABELS = [0, 0, 0, 1] * 9
OTHER = SMALL[::-1]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([{"loaded": {"batch_size": size}} for size in (8, 6)], "batch_size (8 on rank 0, 6 on rank 1)"),
        ([{"loaded": {"counts": (*SMALL[:3], n)}} for n in (5, 6)], "number of samples (49 on rank 0, 50 on rank 1)"),
        ([{"loaded": {"counts": (*SMALL[:3], n)}} for n in (5, 0)], "number of samples (49 on rank 0, 44 on rank 1)"),
        ([{"loaded": {"counts": counts}} for counts in (SMALL, OTHER)], "differ in labels' checksum ("),
        ([{"loaded": {"num_workers": workers}} for workers in (0, 9)], "feedback_delay, which more workers raise (16"),
        ([{"limit_train_batches": limit} for limit in (5, 6)], "limit_train_batches (5 on rank 0, 6 on rank 1)"),
        ([fair(steps_per_epoch=steps) for steps in (5, 6)], "steps_per_epoch (5 on rank 0, 6 on rank 1)"),
        ([fair(alpha=Linear(0.0, 8.0, steps)) for steps in (100, 200)], "alpha (Linear(start=0.0, end=8.0, duration=1"),
        ([fair(target_probs=name) for name in ("uniform", "prior")], "target_probs ([0.25 0.25 0.25 0.25] (checksum"),
        ([fair(reference=name) for name in ("target", "uniform")], "reference (target on rank 0, [0.25 0.25"),
        ([fair(class_names=names) for names in (list("abcd"), list("bacd"))], "class names (['a' 'b' 'c' 'd']"),
        ([fair(seed=seed) for seed in (1, 2)], "seed (1 on rank 0, 2 on rank 1)"),
        (
            [fair(preset=name) for name in ("balanced", "calibrated")],
            "correction (weights on rank 0, logits on rank 1)",
        ),
        ([fair(labels=labels_of_one)] * 2, "OSError: no labels on this disk"),
        ([{"max_epochs": 3, **fair(labels=labels_that_change)}] * 2, "differ in labels' checksum ("),
        ([stream(SMALL, OTHER, batch_size=size) for size in (4, 6)], "batch_size (4 on rank 0, 6 on rank 1)"),
        (
            [stream(SMALL, OTHER, num_classes=n, target_probs=None) for n in (4, 5)],
            "num_classes (4 on rank 0, 5 on rank 1)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ranks_that_differ(own, expected, two):
    """What would make the batches of the ranks differ is an error on each of them, which says what it is."""
    for run in two(train_unlike, own=own):
        assert expected in (run.failure or f"trained {run.epochs}")


def test_other_checkpoint_on_a_rank(two, tmp_path):
    """Ranks that resume from different checkpoints are refused."""
    two(keep=tmp_path)
    for run in two(train_unlike, own=[{"ckpt": tmp_path / f"step{step}.ckpt"} for step in (3, 5)]):
        assert "differ in samples trained on (" in (run.failure or f"trained {run.epochs}")


def test_ranks_without_trainer(two):
    """Without a Trainer, the samplers compare themselves when they begin."""
    same = two(train_unlike, act=sample, own=[{"labels": LABELS, "batch_size": 4}] * 2)
    assert [run.failure for run in same] == [None, None]
    for own, expected in (
        ([{"labels": LABELS, "batch_size": size} for size in (4, 6)], "batch_size (4 on rank 0, 6 on rank 1)"),
        ([{"labels": labels, "batch_size": 4} for labels in (LABELS, LABELS[::-1])], "differ in labels' checksum ("),
        ([{"labels": LABELS, "batch_size": 4, "epoch": epoch} for epoch in (0, 1)], "epoch (0 on rank 0, 1 on rank 1)"),
        ([{"labels": LABELS, "batch_size": 4, "rank": 0}] * 2, "its own rank, got rank=0, 0"),
    ):
        assert [expected in (run.failure or "") for run in two(train_unlike, act=sample, own=own)] == [True, True]


@pytest.mark.parametrize(
    "own",
    [
        [{}, {"loaded": {"num_workers": 1}}],
        [{"loaded": {"num_workers": workers}, **fair(feedback_delay=19)} for workers in (0, 9)],
        [{"limit_train_batches": 10, **stream(SMALL, (5, 8, 120, 24))}] * 2,
    ],
    ids=["other workers", "the delay of most workers", "own shards in a stream"],
)
def test_ranks_may_differ(own, two):
    """Ranks that draw the same batches in spite of a difference train, without a warning."""
    for run in two(train_unlike, own=own):
        assert (run.failure, [w for w in run.warnings if "rank" in w]) == (None, [])
        assert run.steps


# -- ways to install, ways to launch -------------------------------------------------------------------------


def test_every_way_to_install(two):
    """Every way to install the callback trains the same."""
    callback, *others = (two(install=install) for install in ("callback", "datamodule", "mixin"))
    assert_agree(callback)
    for runs in others:
        assert [(run.indices, run.states) for run in runs] == [(run.indices, run.states) for run in callback]


@pytest.mark.parametrize("strategies", [["ddp"], ["ddp_spawn", "ddp_fork"]], ids=str)
def test_every_way_to_launch(strategies, two, tmp_path):
    """Every way to launch trains the same."""
    expected = two(max_epochs=2)
    launched = rank_runs.start("launch", str(tmp_path), *strategies)
    try:
        assert launched.wait(rank_runs.PATIENCE) == 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"{strategies} did not end in time.")
    finally:
        rank_runs.end(launched)
    for name in strategies:
        for rank, reference in enumerate(expected):
            run = pickle.loads((tmp_path / name / f"rank{rank}").read_bytes())
            assert (run.indices, run.states, run.params) == (reference.indices, reference.states, reference.params)


# The last test, for after it the processes have to be started again.
def test_none_batch_on_one_rank(two):
    """The other ranks wait for its gradients without the plugin too. The test ends the processes that hang."""
    with pytest.raises(RanksError):
        two(train_without_us, collate_fn=NoneNowAndThen((1,)), patience=8)
    assert two.processes == []
