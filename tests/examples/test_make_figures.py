"""The figures of the README."""

import numpy as np
import pytest
from matplotlib.image import imread
from recipe_helpers import process_settings_restored


@pytest.fixture(autouse=True)
def _process_settings():
    with process_settings_restored():
        yield


@pytest.mark.slow
def test_figures_are_saved(load, tmp_path, monkeypatch, capsys):
    """Plotted from runs, and small enough for a README."""
    figures = load("make_figures")
    trained = []
    real = figures.train
    monkeypatch.setattr(figures, "train", lambda cfg, *more: trained.append(cfg) or real(cfg, *more))
    figures.main(["--out", str(tmp_path), "--cycles", "1"])
    assert [bool(cfg.fair) for cfg in trained] == [True, False, False, True, True]
    assert all(cfg.data._target_.endswith("DriftDataModule") for cfg in trained)
    for name in ("fair_rebalance.png", "drift_recovery.png"):
        assert (tmp_path / name).stat().st_size < 200_000
        picture = imread(tmp_path / name)
        assert picture.shape[1] >= 1300
        # A title or a legend that runs out of the picture would put ink on its edge.
        assert all((edge[..., :3] == 1.0).all() for edge in (picture[:, :3], picture[:, -3:]))
    printed = capsys.readouterr().out
    rebalance, drift = (
        {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in table.splitlines() if line.startswith("| ")}
        for table in printed.split("\n\n")[-2:]
    )
    # Twelve batches from 99:1 to within 1 % of 50:50.
    assert int(rebalance[figures.FAIR][0]) in range(10, 15)
    assert rebalance[figures.PLAIN][0] == "never"
    assert 5.0 < float(rebalance[figures.FAIR][3]) <= 10.0  # the largest weight
    # Over a turn the trained mix stays; without the plugin it goes, and with small buffers half as far.
    assert float(drift[figures.FAIR][1]) < 0.02
    assert float(drift[figures.SHORT][0]) > 0.02
    # Nothing is clipped where the buffers hold enough; where a class is missing, half of the target is lost.
    lost = {name: drift[name][3].removesuffix(" |") for name in figures.DRIFTED}
    assert lost == {figures.PLAIN: "0.000", figures.FAIR: "0.000", figures.SHORT: "0.500"}


@pytest.mark.slow
def test_trace_is_that_of_the_run(load, tmp_path):
    figures = load("make_figures")
    size = ("data.cycles=1", "data.turn_size=1024")
    fair, plain = (figures.run_trace(3, *overrides, *size) for overrides in ((), ("fair=off",)))
    assert np.array_equal(plain.share, plain.stream)  # as it arrives
    assert plain.turn == 32
    assert plain.stream[:32].max() < 0.2
    assert plain.stream[32:].min() > 0.8
    assert fair.turn < 32  # a FairStream reads ahead
    assert np.abs(fair.share[fair.turn :] - 0.5).max() <= 1 / figures.BATCH
    memory = 1 - 1 / figures.MEMORY
    expected = memory * fair.trained[:-1] + (1 - memory) * fair.share[1:]
    assert fair.trained[1:] == pytest.approx(expected)
    assert len(fair.weight) == len(fair.share)
    assert fair.weight[-1] == pytest.approx(1.0, abs=0.05)
    assert set(plain.weight) == {1.0}
    for name in ("a", "b"):
        traces = {figures.PLAIN: plain, figures.FAIR: fair}
        figures.save(figures.figure_drift(traces, cycles=1), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
