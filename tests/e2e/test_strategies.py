"""Ranks on two nodes, and ranks that share the model's parameters, as far as these run on the CPU."""

import os
import pickle
import subprocess
from functools import partial

import numpy as np
import pytest
import rank_runs
import torch
from rank_runs import QUIET, model_parallel, resume, train
from test_ranks import as_sets, assert_agree, global_batches

from lightning_fair import FairSampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="The processes are started and ended as POSIX does."),
]
SMALL = (24, 12, 8, 5)  # 7 batches of 8


def on_nodes(processes, folder):
    """Start two torchrun, each with its part of the processes, and return the runs of all ranks."""
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", f"--nproc_per_node={processes // 2}"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={rank_runs.free_port()}"]
    task = "train_on_node", str(folder), str(processes)
    nodes = [rank_runs.start(*task, run=[*launcher, f"--node_rank={node}"]) for node in range(2)]
    try:
        assert [node.wait(rank_runs.PATIENCE) for node in nodes] == [0, 0]
    except subprocess.TimeoutExpired:
        pytest.fail("The nodes did not end in time.")
    finally:
        for node in nodes:
            rank_runs.end(node)
    return [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(processes)]


def test_two_nodes(tmp_path):
    """Two nodes of torchrun train on the batches of one process with the double batch size."""
    runs = on_nodes(2, tmp_path)
    alone = train(loaded={"batch_size": 8}, max_epochs=2)
    assert len(alone.indices) == 42
    assert as_sets(global_batches(runs)) == as_sets(alone.indices)
    assert all(np.array_equal(run.probs, alone.probs) for run in runs)
    assert_agree(runs)
    assert runs[0].params == runs[1].params
    assert np.allclose(*(np.frombuffer(run.params[-1], np.float32) for run in (runs[0], alone)), atol=1e-5)


needs_fully_shard = pytest.mark.skipif(torch.__version__ < "2.6", reason="This torch has no public fully_shard.")
WEIGHTS = {**QUIET, "lambda2": 0.3, "feedback_delay": 1}
LOGITS = {**WEIGHTS, "correction": "logits", "reference": "uniform"}


@needs_fully_shard
@pytest.mark.parametrize(
    ("settings", "mixin"),
    [(WEIGHTS, True), (LOGITS, True), ({**LOGITS, "logits": "net"}, False)],
    ids=["weights", "logits by the mixin", "logits by the hook"],
)
def test_sharded_model(settings, mixin, two):
    """Ranks that share the parameters by fully_shard train as those of ddp do."""
    same = {"fair": FairSampling(**settings), "mixin": mixin, "loaded": {"counts": SMALL}, "max_epochs": 2}
    sharded, whole = two(strategy=model_parallel, **same), two(**same)
    assert_agree(sharded)
    for run, expected in zip(sharded, whole, strict=True):
        assert run.indices == expected.indices
        np.testing.assert_allclose(run.probs, expected.probs, rtol=1e-6)
        np.testing.assert_allclose([s.weights for s in run.steps], [s.weights for s in expected.steps], rtol=1e-6)
        for params, others in zip(run.params, expected.params, strict=True):
            np.testing.assert_allclose(np.frombuffer(params, "f4"), np.frombuffer(others, "f4"), rtol=1e-5, atol=1e-6)


@needs_fully_shard
def test_resume_of_sharded_model(two, tmp_path):
    """A run that is resumed from a checkpoint within an epoch goes on as it was."""
    same = {"strategy": model_parallel, "loaded": {"counts": SMALL}, "max_epochs": 2, "fair": FairSampling(**WEIGHTS)}
    whole = two(keep=tmp_path, **same)
    for (resumed,), run in zip(two(resume, checkpoints=[tmp_path / "step3.ckpt"], **same), whole, strict=True):
        for what in ("draw_ids", "indices", "states", "params"):
            assert getattr(resumed, what) == getattr(run, what)[3:], what


@needs_fully_shard
def test_ranks_of_one_layer(two):
    """Ranks that compute one layer together, by tensor parallelism, have the same batch: that of one process."""
    settings = {"fair": FairSampling(**WEIGHTS), "loaded": {"counts": SMALL, "batch_size": 8}, "max_epochs": 2}
    runs, alone = two(strategy=partial(model_parallel, 2), **settings), train(**settings)
    assert_agree(runs)
    assert [run.indices for run in runs] == [alone.indices] * 2
    np.testing.assert_allclose(runs[0].probs, alone.probs, rtol=1e-6)
