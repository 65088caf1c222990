"""The stream's benchmark, and the bounds on memory that it measures."""

import gc
import importlib
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture
def benchmark(monkeypatch):
    """Return the script, imported from its own folder, as when it is run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
    before = set(sys.modules)
    threads = torch.get_num_threads()
    yield importlib.import_module("stream")
    torch.set_num_threads(threads)
    for name in {"stream", "overhead", "systems"} - before:
        sys.modules.pop(name, None)


def test_samples_alive_are_bounded(benchmark):
    """The samples alive at once exceed the buffers' limit by at most a tenth."""
    most, limit = benchmark.memory(side=8)
    assert limit == 2560
    assert 0.95 * limit < most < 1.1 * limit


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize(
    ("num_classes", "buffer", "batch", "reuse"),
    [(10, 64, 32, 64), (2, 64, 32, 64), (2, 64, 128, 64), (10, 8, 32, 8), (2, 16, 32, 2), (3, 4, 4, 1)],
)
def test_batch_and_a_tenth_are_held_in_addition(benchmark, num_classes, buffer, batch, reuse, loader):
    """In addition to the buffers the current batch and a tenth of the limit are alive; first `experiment=drift`."""
    most, limit = benchmark.memory(4, num_classes, buffer, batch, max_reuse=reuse, loader=loader)
    assert limit == num_classes * buffer
    assert 0.9 * limit < most <= limit + batch + max(0.1 * limit, 1)


def test_recovery_is_measured_from_each_turn(benchmark):
    assert benchmark.recovery(turns=3, batch=64, seed=0, turn_size=3200) == [0, 0]


@pytest.mark.parametrize("in_fit", [False, True])
def test_nothing_grows(benchmark, in_fit, monkeypatch):
    """In the middle of the ninth epoch there are no more objects, open files and shared memory than in the third."""
    original = benchmark.resources
    monkeypatch.setattr(benchmark, "resources", lambda *workers: (len(gc.get_objects()), *original(*workers)[1:]))
    (early, *before), (late, *after) = benchmark.growth(510, [150, 510], 60, in_fit=in_fit)
    assert after == before
    assert late <= early + 60  # batches that leave one object each would add 360


@pytest.mark.slow
def test_nothing_grows_in_workers(benchmark):
    """Neither with workers that stay, nor in a process that starts new ones for each epoch."""
    for settings in ({"persistent": True, "in_fit": True}, {}):
        (_, *before), (_, *after) = benchmark.growth(150, [50, 150], 40, 2, **settings)
        # Those of the batches on their way differ; batches that leave one each would add 100.
        assert max(late - early for early, late in zip(before, after, strict=True)) <= 50


@pytest.mark.slow
def test_tables_are_printed(benchmark, capsys):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    benchmark.main(["--rounds", "1", "--samples", "300", "--turns", "2", "--seeds", "1", "--batches", "300"])
    printed = capsys.readouterr().out
    assert printed.count("| decoded |") == 2
    assert printed.count("| two workers that stay, as in a fit |") == 3
    for name in benchmark.sources():
        assert printed.count(f"| {name} |") == 3
    assert "Recovery after 1 turns of a 99:1 stream" in printed
