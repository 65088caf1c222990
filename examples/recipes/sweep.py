"""Sweeps: each run writes its result, a failed run does not stop the others, and a table and a picture end it."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import math
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from recipes.configs import has_joblib, has_optuna, register
from recipes.interrupt import command_with
from recipes.report import METRICS, Report
from recipes.sweep_chart import PANELS, chart
from recipes.sweep_table import (
    COMMAND,
    REPORT,
    Sweep,
    markdown,
    read_json,
    read_sweep,
    rich_table,
    rows_of,
    run_folders,
)
from recipes.training import quoted

log = logging.getLogger(__name__)

_OF_SETTINGS = (
    ValueError,
    TypeError,
    OSError,
    MisconfigurationException,
    InstantiationException,
    OmegaConfBaseException,
)
_LINE = ("balanced_accuracy", "worst_class_recall", "mean_distance", "largest_weight", "clipped_mass")
_FILE_WIDTH = 160  # of a table that is printed into a file; rich would take 80


class SettingsError(CompactHydraException):
    """An error that Hydra prints as a sentence, with the traceback only under ``HYDRA_FULL_ERROR=1``."""


def in_sweep() -> bool:
    """Return whether Hydra runs this as one of several runs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def train_and_record(train: Callable[[DictConfig], Report], cfg: DictConfig) -> Report | None:
    """Train, and write the result or the error to ``report.json`` in the run's folder.

    Args:
        train: Called with the config.
        cfg: The config of the run, under ``hydra.main``.

    Returns:
        The report; None for a failed run of a sweep, so that the next run starts.

    Raises:
        SettingsError: If ``train`` refuses a setting, unless the run is part of a sweep.
        Exception: Any other exception of ``train``, unless the run is part of a sweep.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    path = folder / REPORT
    path.unlink(missing_ok=True)  # of an earlier run in the same folder
    start = time.perf_counter()
    try:
        report = train(cfg)
    except Exception as error:
        text = error_text(error)
        _write(path, {"status": "failed", "error": text, "seconds": time.perf_counter() - start})
        if in_sweep():
            (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            log.error(f"This run failed, and the sweep goes on: {text} (traceback.txt in {_relative(folder)})")
            return None
        raise_error(error)
    per_class = {"recall": report.recall, "images": report.images, "drawn": report.drawn}
    result = {name: dict(zip(report.classes, values.tolist(), strict=True)) for name, values in per_class.items()}
    numbers = {"metrics": report.metrics(), "errors": report.errors, "seconds": time.perf_counter() - start}
    identity = {"overrides": list(HydraConfig.get().overrides.task), "config": _digest(cfg)}
    _write(path, {"status": "done", **identity, **numbers, **result})
    return report


def raise_error(error: Exception) -> NoReturn:
    """Raise an error of a setting as a :class:`SettingsError`, and any other as it is."""
    if isinstance(error, _OF_SETTINGS):
        raise SettingsError(error_text(error)) from error
    raise error


def run_in_sweep(train: Callable[[DictConfig], Report], cfg: DictConfig) -> float | None:
    """Train a run of a sweep, unless an interrupted sweep has finished it, and print its metrics in a line.

    Returns:
        What a search maximizes; None for a failed run.
    """
    register()  # a process of a parallel launcher has no resolvers yet
    folder = Path(HydraConfig.get().runtime.output_dir)
    earlier = read_json(folder / REPORT) or {}
    known = earlier.get("metrics") or {}
    if earlier.get("status") == "done" and earlier.get("config") == _digest(cfg) and set(METRICS) <= set(known):
        metrics = {name: math.nan if value is None else value for name, value in known.items()}
        print("Finished before: ", end="")
    else:
        for log_file in folder.rglob("events.out.tfevents.*"):  # of the interrupted run
            log_file.unlink()
        report = train_and_record(train, cfg)
        if report is None:
            return None
        metrics = report.metrics()
    number, name = objective(metrics)
    text = ", ".join(f"{METRICS[key]} {metrics[key]:.3f}" for key in _LINE if not math.isnan(metrics[key]))
    on_test = "" if name.startswith("val") else " without a validation: chosen on the test set"
    search = f"; the search goes by {METRICS[name]} {number:.3f}{on_test}" if _is_search(HydraConfig.get()) else ""
    print(text + search)
    return number


def _digest(cfg: DictConfig) -> str:
    """Return a hash of all settings, which tells whether those on the command line or in ``conf/`` have changed."""
    return hashlib.sha256(OmegaConf.to_yaml(cfg).encode()).hexdigest()[:16]  # not resolved: paths are left out


def _is_search(hydra: Any) -> bool:
    return hydra.runtime.choices.get("hparams_search") is not None


@rank_zero_only
def _write(path: Path, result: dict[str, Any]) -> None:
    """Write a whole JSON file or none; NaN and infinity, which JSON does not have, become null."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(_finite(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def error_text(error: BaseException) -> str:
    """Return an error in one line, without Hydra's wrapper.

    Example:
        >>> error_text(ValueError("alpha is too large"))
        'ValueError: alpha is too large'
    """
    where = ""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        where = "".join(f", in {key}" for key in re.findall(r"full_key: (\S+)", str(error)))
        error = error.__cause__
    if isinstance(error, OmegaConfBaseException) and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())}".rstrip(": ")


def objective(metrics: Mapping[str, float]) -> tuple[float, str]:
    """Return the number that a search maximizes, and its metric: balanced accuracy, by validation if there is one."""
    name = "balanced_accuracy" if math.isnan(metrics["val_balanced_accuracy"]) else "val_balanced_accuracy"
    return metrics[name], name


def summarize(folder: str | Path, out: str | Path | None = None, metrics: Sequence[str] = PANELS) -> Sweep:
    """Write ``sweep.csv``, ``sweep.md`` and ``sweep.png`` of a sweep, and print its table.

    Args:
        folder: The folder of the sweep.
        out: Folder of the three files. Default: the sweep's.
        metrics: The metrics of the picture, of ``METRICS``.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
        ValueError: If it is the folder of a single run, or a metric is unknown.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
    sweep = read_sweep(Path(folder))
    out = Path(folder if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    # The files first: if the table cannot be printed, they exist.
    sweep.runs.to_csv(out / "sweep.csv", index=False)
    notes = "".join(f"\n{line}\n" for line in (sweep.best(), sweep.verdict()) if line)
    (out / "sweep.md").write_text(markdown(sweep.table()) + notes, encoding="utf-8")
    files = ["sweep.csv", "sweep.md"]
    (out / "sweep.png").unlink(missing_ok=True)  # of an earlier sweep, if this one has no result
    figure = chart(sweep, metrics)
    if figure is not None:
        figure.savefig(out / "sweep.png", dpi=160, metadata={"Software": None})  # the same sweep is the same file
        files.append("sweep.png")
    _print(sweep, out, files)
    return sweep


def _print(sweep: Sweep, out: Path, files: list[str]) -> None:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    if (sweep.runs["status"] != "unfinished").any():
        console.print("", rich_table(sweep, console))
    # Plain print below, because rich would break long lines.
    for run in rows_of(sweep.bad):
        print(f"{run.status}: run {run.run}, {run.error}")
    print(sweep.best() or "")
    print(sweep.verdict())
    print(f"\nTable and picture: {', '.join(files)} in {_relative(out)}")
    if any(sweep.folder.rglob("events.out.tfevents.*")):
        print(f"Compare the runs (tab HParams): tensorboard --logdir {_relative(sweep.folder)}")


def _relative(path: Path) -> str:
    return quoted(os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else path)


class SweepReport(Callback):
    """Hydra callback that ends a sweep with its table and picture.

    If a run has no result, the exit status of the program is 1, as for a single run. In a folder that holds runs of
    the same command the sweep is continued. Runs of another command are refused, because their results would be mixed
    with those of the sweep.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse a folder that holds runs of another command, before anything is written."""
        folder = Path(config.hydra.sweep.dir)
        if not has_joblib() and config.hydra.runtime.choices.get("hydra/launcher") == "joblib":
            raise SystemExit(
                'hydra/launcher=joblib needs Hydra\'s joblib launcher: pip install "lightning-fair[parallel]", '
                'or from a clone: pip install -e ".[parallel]".'
            )
        search = {"search": _is_search(config.hydra), "sweeper": _of_sweeper(config.hydra.overrides.hydra)}
        command = {"overrides": list(config.hydra.overrides.task), **search}
        if runs := run_folders(folder):
            earlier = read_json(folder / COMMAND)
            if earlier != command:
                whose = f" of `-m {' '.join(earlier['overrides'] + earlier.get('sweeper', []))}`" if earlier else ""
                raise SystemExit(
                    f"hydra.sweep.dir must be a folder without runs, or with those of the same command, and {folder} "
                    f"holds {len(runs)} runs{whose}. Name another folder."
                )
            print(f"The sweep in {_relative(folder)} is continued; its finished runs are not repeated.")
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / COMMAND, command)
        # Without `on_multirun_end` end an interrupted sweep, and a search in which every trial fails.
        atexit.register(_summarize_rest, folder.absolute())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Print the table, save the picture, and set the exit status."""
        atexit.unregister(_summarize_rest)
        folder = config.hydra.sweep.dir
        # Hydra turns other exceptions of a callback into warnings.
        try:
            sweep = summarize(folder)
        except Exception as error:
            log.exception("The sweep's table or picture failed.")
            raise SystemExit(f"To try again: `python examples/sweep_report.py {folder}`.") from error
        if len(sweep.bad):
            raise SystemExit(f"{len(sweep.bad)} of {len(sweep.runs)} runs have no result.")


def _summarize_rest(folder: Path) -> None:
    if run_folders(folder):
        summarize(folder)
        print(f"\nTo continue: {command_with('hydra.sweep.dir', folder)}")


def _of_sweeper(overrides: Sequence[str]) -> list[str]:
    """Return Hydra's own settings that change what is swept; a continued search may have more trials."""
    more = ("n_trials", "n_jobs", "max_batch_size")
    said = [override.lstrip("+~") for override in overrides]
    return [
        word
        for word in said
        if re.match(r"hydra[./]sweeper\b", word) and word.partition("=")[0].rpartition(".")[2] not in more
    ]


class NeedsOptuna(Callback):
    """Hydra callback that refuses ``hparams_search=optuna`` without its extra, and says how to install it.

    Raises:
        ImportError: If the sweeper is not installed.
    """

    def __init__(self) -> None:
        if not has_optuna():
            raise ImportError(
                'hparams_search=optuna needs Hydra\'s Optuna sweeper: pip install "lightning-fair[optuna]", '
                'or from a clone: pip install -e ".[optuna]".'
            )
