"""Sweeps: runs write results, failed runs do not stop the others, and TensorBoard's HParams tab compares them."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from recipe_helpers import ROOT, process_settings_restored, run_script
from recipes import configs, sweep, training
from recipes.report import METRICS, make_report
from recipes.sweep_table import read_sweep
from sweep_helpers import result, save_sweep
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

FAST = ("trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "trainer.accelerator=cpu")
QUIET = ("trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "callbacks=none")


needs_optuna = pytest.mark.skipif(not configs.has_optuna(), reason='the extra "optuna" is not installed')


@pytest.fixture
def config(tmp_path):
    """Compose a run as Hydra does it, under ``hydra.main``."""
    state = HydraConfig.instance().cfg
    configs.register()
    GlobalHydra.instance().clear()

    def composed(*overrides, mode="RUN", folder=tmp_path):
        cfg = compose(
            "train",
            overrides=[f"output_dir={folder}", f"hydra.mode={mode}", *FAST, *QUIET, *overrides],
            return_hydra_config=True,
        )
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.job.id = cfg.hydra.job.num = 0
        HydraConfig.instance().set_config(cfg)
        return cfg

    with process_settings_restored(), initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield composed
    HydraConfig.instance().cfg = state


def report(value=0.75, validated=0.5):
    return make_report(["cat", "dog"], [9, 1], [5, 5], [1.0, 2 * value - 1], value, float("inf"), 1.0, validated)


def test_run_writes_result(config, tmp_path):
    sweep.train_and_record(lambda cfg: report(), config())
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["status"] == "done"
    assert written["metrics"] == {
        "balanced_accuracy": 0.75,
        "worst_class_recall": 0.5,
        "many_shot_accuracy": None,
        "medium_shot_accuracy": None,
        "few_shot_accuracy": 0.75,  # of 9 and 1 images
        "accuracy": 0.75,
        "val_balanced_accuracy": 0.5,
        "mean_distance": None,
        "worst_distance": None,
        "recovery": None,
        "largest_weight": None,  # JSON knows no infinity
        "clipped_mass": 0.0,
        "effective_sample_size": 1.0,
    }
    assert written["overrides"] == list(HydraConfig.get().overrides.task)
    assert (written["recall"], written["images"], written["drawn"]) == (
        {"cat": 1.0, "dog": 0.5},
        {"cat": 9, "dog": 1},
        {"cat": 5, "dog": 5},
    )
    assert written["seconds"] >= 0.0
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_search_maximizes_validation(config, capsys):
    """Or the test, if there is no validation, and the same line says so."""
    cfg = config("hparams_search=optuna", mode="MULTIRUN")
    assert sweep.run_in_sweep(lambda cfg: report(0.75, 0.5), cfg) == 0.5
    assert capsys.readouterr().out.endswith("the search goes by balanced accuracy, validation 0.500\n")
    cfg = config("hparams_search=optuna", "seed=2", mode="MULTIRUN")
    assert sweep.run_in_sweep(lambda cfg: report(0.75, None), cfg) == 0.75
    line = capsys.readouterr().out
    assert line.endswith("the search goes by balanced accuracy 0.750 without a validation: chosen on the test set\n")


def test_finished_run_is_not_repeated(config, tmp_path, capsys):
    """A run of other settings is, and one that was interrupted, whose logs are removed."""

    def train(cfg):
        trained.append(cfg.fair.alpha)
        return report()

    trained, logs = [], tmp_path / "tensorboard" / "events.out.tfevents.1"
    logs.parent.mkdir()
    for alpha in (4, 4, 5):
        logs.touch()
        assert sweep.run_in_sweep(train, config(f"fair.alpha={alpha}", mode="MULTIRUN")) == 0.5
    assert trained == [4, 5]
    assert capsys.readouterr().out.count("Finished before: balanced accuracy 0.750") == 1
    (tmp_path / "report.json").unlink()
    sweep.run_in_sweep(train, config("fair.alpha=5", mode="MULTIRUN"))
    assert trained == [4, 5, 5]
    assert not logs.exists()


@pytest.mark.parametrize("change", ["metric", "conf"])
def test_finished_run_is_repeated_after_a_change(config, tmp_path, change):
    """Of the metrics that a report has, or of a file in ``conf/``."""
    trained = []

    def train(cfg):
        trained.append(cfg)
        return report()

    sweep.run_in_sweep(train, config(mode="MULTIRUN"))
    cfg = config(mode="MULTIRUN")
    if change == "conf":
        cfg.fair.alpha = 3
    else:
        written = json.loads((tmp_path / "report.json").read_text())
        del written["metrics"]["recovery"]
        (tmp_path / "report.json").write_text(json.dumps(written))
    assert sweep.run_in_sweep(train, cfg) == 0.5
    assert len(trained) == 2


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a sweep with Hydra's own settings."""
    monkeypatch.setattr(sweep.atexit, "register", lambda *_: None)

    def started(*overrides, choices=()):
        hydra = {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": ["a=1"], "hydra": list(overrides)}}
        cfg = OmegaConf.create({"hydra": {**hydra, "runtime": {"choices": dict(choices)}}})
        sweep.SweepReport().on_multirun_start(cfg)

    return started


def test_other_sweeper_settings_are_refused(start, tmp_path):
    """More trials are not, nor another folder."""
    start("hydra.sweeper.params={a: 1}", "hydra.sweeper.n_trials=2", "hydra.mode=MULTIRUN")
    save_sweep(tmp_path, [("a=1", None)])
    start("hydra.sweeper.params={a: 1}", "hydra.sweeper.n_trials=3", f"hydra.sweep.dir={tmp_path}")
    with pytest.raises(SystemExit, match=r"holds 1 runs of `-m a=1 hydra\.sweeper\.params=\{a: 1\}`"):
        start("hydra.sweeper.params={a: 2}")


def test_launcher_names_missing_extra(start, monkeypatch):
    monkeypatch.setattr(sweep, "has_joblib", lambda: False)
    with pytest.raises(SystemExit, match=r"joblib launcher: pip install .*lightning-fair\[parallel\]"):
        start(choices={"hydra/launcher": "joblib"})


def test_continuing_command_is_that_of_the_sweep(tmp_path, monkeypatch, capsys):
    """With the folder in Hydra's quotes and the shell's."""
    monkeypatch.chdir(tmp_path)
    typed = ["python3", "examples/train.py", "-m", "a=1,2"]
    monkeypatch.setattr(sys, "orig_argv", [*typed, "++hydra.sweep.dir=old"])
    for folder in ("a,b", "(x)", "a=b", "ä", "a b", "plain"):
        sweep._summarize_rest(save_sweep(tmp_path / folder, [("a=1", None)]))
        *words, last = shlex.split(capsys.readouterr().out.partition("To continue: ")[2])
        assert words == typed
        assert OverridesParser.create().parse_override(last).value() == folder


def fail(cfg):
    raise InstantiationException("Error in call to target") from ValueError("min_prob must be\n  small")


def test_only_single_run_raises(config, tmp_path):
    """A failed run of a sweep writes its error and returns."""
    with pytest.raises(sweep.SettingsError, match=r"^ValueError: min_prob must be small$"):
        sweep.train_and_record(fail, config())
    single = json.loads((tmp_path / "report.json").read_text())
    assert sweep.train_and_record(fail, config(mode="MULTIRUN")) is None
    of_sweep = json.loads((tmp_path / "report.json").read_text())
    assert single["error"] == of_sweep["error"] == "ValueError: min_prob must be small"
    assert single["status"] == of_sweep["status"] == "failed"
    assert "Traceback" in (tmp_path / "traceback.txt").read_text()


def test_interrupt_ends_sweep(config, tmp_path):
    """No report of an earlier run stays."""

    def interrupt(cfg):
        raise KeyboardInterrupt

    sweep.train_and_record(lambda cfg: report(), config())
    with pytest.raises(KeyboardInterrupt):
        sweep.train_and_record(interrupt, config(mode="MULTIRUN"))
    assert not (tmp_path / "report.json").exists()


def hparams_tab(logdir):
    """HParams and metrics of each run in TensorBoard's HParams tab, and the columns: those that it shows, and all."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider, logdir=str(logdir)))
    context = RequestContext()
    metadata = backend.hparams_metadata(context, "")
    listed = backend.hparams_from_data_provider(context, "", None)
    experiment = backend.experiment_from_metadata(context, "", True, metadata, listed)
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN]
    )
    request.col_params.extend(api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos)
    response = list_session_groups.Handler(context, backend, "", request).run()
    shown = {}
    for group in response.session_groups:
        for session in group.sessions:
            values = {key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()}
            shown[session.name] = (values, {metric.name.tag: metric.value for metric in session.metric_values})
    first = sorted(experiment.hparam_infos, key=lambda info: not info.differs)[:5]  # as its page does
    first = [info.name for info in first if info.differs], [info.name.tag for info in experiment.metric_infos][:5]
    return shown, first, {info.name for info in experiment.hparam_infos}


@pytest.mark.slow
@pytest.mark.parametrize("order", [("off", "balanced"), ("balanced", "off")])
def test_hparams_tab_compares_runs(config, tmp_path, order):
    """Runs with and without the plugin, in either order; settings that differ and the main metrics come first."""
    reports = {}
    for index, fair in enumerate(order):
        folder = tmp_path / str(index)
        reports[fair] = training.train(config(f"fair={fair}", "model.net.dropout=0.1", folder=folder))
    sessions, first, columns = hparams_tab(tmp_path)
    rest = "trainer.max_epochs=1,trainer.check_val_every_n_epoch=1,model.net.dropout=0.1"
    names = [f"{index}/fair={fair},{rest}" for index, fair in enumerate(order)]
    assert sorted(sessions) == names
    known = [
        f"Result/{n:02d}_{name}" for n, name in enumerate(METRICS, 1) if not np.isnan(reports["off"].metrics()[name])
    ]
    assert first == (["fair"], known[:5])
    assert list(reports["off"].metrics()) == list(METRICS)
    assert {*training.HPARAMS, "fair", "model.net.dropout"} <= columns
    for index, fair in enumerate(order):
        hparams, metrics = sessions[names[index]]
        assert hparams["fair"] == fair
        is_on = fair == "balanced"
        settings = [hparams.get(f"fair.{name}") for name in ("alpha", "horizon", "preset", "correction")]
        assert settings == ([8.0, "default", "balanced", "weights"] if is_on else [None] * 4)
        assert (hparams["data"], hparams["seed"], hparams["model.net.dropout"]) == ("DigitsDataModule", 1.0, 0.1)
        # No class of the digits has more than 100 images; other runs of a sweep may need the column.
        expected = reports[fair].metrics()
        of_streams = {"mean_distance", "worst_distance", "recovery"}
        assert {name for name, value in expected.items() if np.isnan(value)} == {"many_shot_accuracy", *of_streams}
        assert {tag.partition("_")[2]: v for tag, v in metrics.items() if tag.startswith("Result")} == pytest.approx(
            {name: v for name, v in expected.items() if not np.isnan(v)}, rel=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["none", "csv"])
def test_no_tensorboard_no_events(config, tmp_path, logger):
    assert training.train(config(f"logger={logger}")).val_balanced_accuracy is not None
    assert not list(tmp_path.rglob("events.out.tfevents.*"))
    assert bool(list(tmp_path.rglob("metrics.csv"))) == (logger == "csv")


@pytest.mark.slow
def test_no_validation_no_number(config):
    assert training.train(config("logger=none", "trainer.limit_val_batches=0")).val_balanced_accuracy is None


# -- whole sweeps ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sweep_with_failed_runs(tmp_path):
    """It ends with the table, the picture, and the exit status 1."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "my sweep"
    elsewhere.mkdir()
    swept = ("fair.alpha=100,8", "fair.max_weight=3,30", f"hydra.sweep.dir='{folder}'")
    done = run_script("train.py", elsewhere, "-m", "experiment=digits", *FAST, *QUIET, *swept)
    assert done.returncode == 1
    assert "2 of 4 runs have no result." in done.stderr
    table = done.stdout[done.stdout.index("Sweep of 4 runs") :]
    assert len(re.findall(r"│ 100 +│ [\de.-]+ +│ +failed │.*0 of 1 │", table)) == 2
    assert len(re.findall(r"│ 8 +│ [\de.-]+ +│ +0\.\d{3} │", table)) == 2
    assert table.count("the class mix oscillates") == 2  # the whole error of each, below the table
    assert "Best by balanced accuracy, validation: fair.alpha=8 fair.max_weight=" in table
    assert f'tensorboard --logdir "{folder}"' in table
    for name in ("sweep.csv", "sweep.md", "sweep.png", "0/report.json", "3/report.json"):
        assert (folder / name).stat().st_size > 0
    assert "Traceback" in (folder / "0" / "traceback.txt").read_text()
    assert "Traceback" not in done.stdout + done.stderr
    assert not (elsewhere / "outputs").exists()
    shown, (first, _), _ = hparams_tab(folder)
    assert first == ["fair.max_weight"]
    assert {name.split(",")[0]: hparams["fair.max_weight"] for name, (hparams, _) in shown.items()} == {
        "2/fair.alpha=8": 3.0,
        "3/fair.alpha=8": 30.0,
    }

    files = {name: (folder / name).read_bytes() for name in ("sweep.csv", "sweep.md", "sweep.png")}
    second = run_script("sweep_report.py", elsewhere, str(folder), "--out", "again")
    assert second.returncode == 0
    assert {name: (elsewhere / "again" / name).read_bytes() for name in files} == files


@pytest.mark.slow
def test_sweep_over_seeds(tmp_path):
    done = run_script("train.py", tmp_path, "-m", "experiment=digits", *FAST, *QUIET, "logger=none", "seed=1,2")
    assert done.returncode == 0, done.stderr
    assert "mean ± standard deviation over seed" in done.stdout
    assert re.search(r"0\.\d{3} ± 0\.\d{3}", done.stdout)
    assert "tensorboard" not in done.stdout
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    assert f"sweep.png in {folder.relative_to(tmp_path)}" in done.stdout


@pytest.mark.slow
def test_sweep_refuses_folder_with_runs(config, tmp_path):
    first, second = (config(mode="MULTIRUN").hydra.sweep.dir for _ in range(2))
    assert first != second  # to the microsecond
    save_sweep(tmp_path / "old", [("a=1", result(0.5))])
    before = sorted(tmp_path.rglob("*"))
    for folder in ("old", "old/0"):  # a sweep and a run
        done = run_script("train.py", tmp_path, "-m", "experiment=digits", "seed=1,2", f"hydra.sweep.dir={folder}")
        assert done.returncode == 1
        error = "a folder without runs, or with those of the same command, and {} holds 1 runs. Name another folder."
        assert done.stderr.strip().endswith(error.format(folder))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_interrupted_sweep_is_continued(tmp_path):
    """Only the unfinished runs are trained; another command is refused, and names that of the folder."""
    command = ("-m", "fair.alpha=2,8", *FAST, *QUIET, "logger=none", "hydra.sweep.dir=a")
    assert run_script("train.py", tmp_path, *command).returncode == 0
    first, second = (tmp_path / "a" / number / "report.json" for number in "01")
    before, seconds = first.read_bytes(), second.stat().st_mtime_ns
    second.unlink()
    done = run_script("train.py", tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert "The sweep in a is continued; its finished runs are not repeated." in done.stdout
    assert (done.stdout.count("Finished before"), first.read_bytes()) == (1, before)
    assert second.stat().st_mtime_ns > seconds
    other = run_script("train.py", tmp_path, *command, "seed=1,2")
    assert other.returncode == 1
    assert "a holds 2 runs of `-m fair.alpha=2,8 trainer.max_epochs=1" in other.stderr


@pytest.mark.slow
@pytest.mark.skipif(not configs.has_joblib(), reason='the extra "parallel" is not installed')
def test_sweep_in_processes(tmp_path):
    command = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "baseline=drw", "seed=1,2")
    done = run_script("train.py", tmp_path, *command, *QUIET, "logger=none", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    assert read_sweep(folder).runs["status"].tolist() == ["done"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("runs", [["a=1", "a=2"], []])
def test_interrupted_sweep_has_table(tmp_path, runs):
    """As Optuna's sweeper does if no trial has a result: an error, and no ``on_multirun_end``."""
    code = [
        "from pathlib import Path",
        "from omegaconf import OmegaConf",
        "from recipes.sweep import SweepReport",
        "from sweep_helpers import save_sweep",
        "hydra = {'sweep': {'dir': 'broken'}, 'overrides': {'task': [], 'hydra': []}, 'runtime': {'choices': {}}}",
        "SweepReport().on_multirun_start(OmegaConf.create({'hydra': hydra}))",
        f"save_sweep(Path('broken'), [(run, None) for run in {runs}])",
        "raise ValueError('No trials are completed yet.')",
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "examples")])
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert ("unfinished: run 1" in done.stdout) == bool(runs)
    assert "Sweep of" not in done.stdout  # no table without a result
    assert (" hydra.sweep.dir=broken\n" in done.stdout) == ("To continue: " in done.stdout) == bool(runs)
    assert (tmp_path / "broken" / "sweep.csv").exists() == bool(runs)


@pytest.mark.slow
def test_single_run_fails(tmp_path):
    done = run_script("train.py", tmp_path, "experiment=digits", *FAST, *QUIET, "fair.alpha=100")
    assert done.returncode == 1
    error, *hint = done.stderr.strip().splitlines()[-3:]
    assert error.startswith("ValueError: alpha * lambda1 must be below")
    assert "HYDRA_FULL_ERROR=1" in hint[-1]
    assert "Traceback" not in done.stderr


def test_search_names_missing_extra(config, monkeypatch):
    cfg = config("hparams_search=optuna")
    assert cfg.hydra.sweeper.direction == "maximize"
    assert type(instantiate(cfg.hydra.callbacks.sweep_report)) is sweep.SweepReport
    monkeypatch.setattr(sweep, "has_optuna", lambda: False)
    with pytest.raises(
        InstantiationException, match=r"needs Hydra.*Optuna sweeper: pip install .*lightning-fair\[optuna\]"
    ):
        instantiate(cfg.hydra.callbacks.needs_optuna)


@pytest.mark.slow
@pytest.mark.skipif(configs.has_optuna(), reason="the Optuna sweeper is installed")
def test_search_without_extra_ends(tmp_path):
    done = run_script("train.py", tmp_path, "hparams_search=optuna")
    assert done.returncode == 1
    assert 'pip install -e ".[optuna]"' in done.stderr
    assert not list(tmp_path.rglob("report.json"))


@pytest.mark.slow
@needs_optuna
def test_search_without_result_has_table(tmp_path):
    arguments = ("hydra.sweeper.n_trials=2", "fair.lambda1=50", "hydra.sweep.dir=a")
    done = run_script("train.py", tmp_path, "hparams_search=optuna", *FAST, *QUIET, "logger=none", *arguments)
    assert done.returncode == 1
    table = done.stdout[done.stdout.index("Sweep of 2 runs") :]
    assert table.count("0 of 1") == 2
    assert table.count("the class mix oscillates") == 2
    assert (tmp_path / "a" / "sweep.csv").exists()


@pytest.mark.slow
@needs_optuna
def test_search_is_repeatable(tmp_path):
    """It goes on after a failed trial."""
    # Where alpha is 48, lambda2 above 0.09 is refused as unstable: some of the trials fail.
    params = '{fair.alpha: "choice(8, 48)", fair.lambda2: "interval(0.0, 0.4)"}'
    runs = []
    for folder in ("a", "b"):
        arguments = ("hydra.sweeper.n_trials=6", f"hydra.sweeper.params={params}", f"hydra.sweep.dir={folder}")
        done = run_script("train.py", tmp_path, "hparams_search=optuna", *FAST, *QUIET, "logger=none", *arguments)
        runs.append(read_sweep(tmp_path / folder).runs)
        assert done.returncode == (runs[-1]["status"] != "done").any(), done.stderr
    first, second = runs
    assert len(first) == 6
    assert set(first["status"]) == {"done", "failed"}
    settings = ["fair.alpha", "fair.lambda2"]
    assert first[settings].astype(str).equals(second[settings].astype(str))
    best = OmegaConf.load(tmp_path / "a" / "optimization_results.yaml")
    assert best.best_value == first["val_balanced_accuracy"].max()


@pytest.mark.slow
@needs_optuna
def test_command_line_changes_search(tmp_path):
    """A setting with a value is not searched; one with a range is."""
    fixed = ("fair.max_weight=5", "fair.lambda2=0")
    searched = ("fair.alpha=interval(1, 4)", "model.lr=tag(log, interval(1e-4, 1e-2))")
    arguments = ("hydra.sweeper.n_trials=3", "hydra.sweep.dir=a", *fixed, *searched)
    done = run_script("train.py", tmp_path, "hparams_search=optuna", *FAST, *QUIET, "logger=none", *arguments)
    assert done.returncode == 0, done.stderr
    swept = read_sweep(tmp_path / "a")
    assert sorted(swept.keys) == ["fair.alpha", "model.lr"]
    assert swept.runs["fair.alpha"].astype(float).between(1, 4).all()
    assert set(swept.runs["fair.max_weight"]) | set(swept.runs["fair.lambda2"]) == {"5", "0"}


def test_range_replaces_range(config):
    default = config("hparams_search=optuna").hydra.sweeper.params
    cfg = config("hparams_search=optuna", 'hydra.sweeper.params={fair.alpha: "interval(1, 4)"}')
    assert cfg.hydra.sweeper.params == {**default, "fair.alpha": "interval(1, 4)"}


@pytest.mark.slow
def test_search_space_is_stable(config):
    params = config("hparams_search=optuna").hydra.sweeper.params
    assert set(params) == {"fair.alpha", "fair.max_weight", "fair.lambda2"}
    top = {key: re.search(r"interval\(.*?, (.*?)\)", value)[1] for key, value in params.items()}
    training.train(
        config("logger=none", "trainer.fast_dev_run=true", *(f"{key}={value}" for key, value in top.items()))
    )
