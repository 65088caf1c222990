"""Sweeps: each run writes its result, a failed run does not stop the others, and a table and a picture end it."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from recipes.configs import has_optuna
from recipes.report import METRICS, Report
from recipes.sweep_table import REPORT, Sweep, chart, markdown, read_sweep, rich_table, rows_of, run_folders
from recipes.training import quoted

log = logging.getLogger(__name__)

_FILE_WIDTH = 140  # of a table that is printed into a file; rich would take 80


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
        Exception: The exception of ``train``, unless the run is part of a sweep.
    """
    path = Path(HydraConfig.get().runtime.output_dir) / REPORT
    path.unlink(missing_ok=True)  # of an earlier run in the same folder
    start = time.perf_counter()
    try:
        report = train(cfg)
    except Exception as error:
        _write(path, {"status": "failed", "error": error_text(error), "seconds": time.perf_counter() - start})
        if not in_sweep():
            raise
        # The traceback goes to the run's own log file.
        log.exception("This run failed; the sweep goes on.")
        return None
    per_class = {"recall": report.recall, "images": report.images, "drawn": report.drawn}
    result = {name: dict(zip(report.classes, values.tolist(), strict=True)) for name, values in per_class.items()}
    _write(path, {"status": "done", "metrics": report.metrics(), **result, "seconds": time.perf_counter() - start})
    return report


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
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def print_line(report: Report) -> None:
    """Print one run of a sweep in a line."""
    metrics = report.metrics()
    names = ("balanced_accuracy", "worst_class_recall", "largest_weight")
    print(", ".join(f"{METRICS[name]} {metrics[name]:.3f}" for name in names))


def objective(report: Report) -> float:
    """Return the number that a search maximizes: balanced accuracy of the last validation, or of the test without one.

    A search on the test set reports a number that it has tuned.
    """
    return report.balanced_accuracy if report.val_balanced_accuracy is None else report.val_balanced_accuracy


def summarize(folder: str | Path, out: str | Path | None = None, metric: str = "balanced_accuracy") -> Sweep:
    """Write ``sweep.csv``, ``sweep.md`` and ``sweep.png`` of a sweep, and print its table.

    Args:
        folder: The folder of the sweep.
        out: Folder of the three files. Default: the sweep's.
        metric: The metric of the picture, one of ``METRICS``.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
        ValueError: If it is the folder of a single run, or the metric is unknown.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
    sweep = read_sweep(Path(folder))
    out = Path(folder if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    # The files first: if the table cannot be printed, they exist.
    sweep.runs.to_csv(out / "sweep.csv", index=False)
    (out / "sweep.md").write_text(markdown(sweep.table()), encoding="utf-8")
    files = ["sweep.csv", "sweep.md"]
    (out / "sweep.png").unlink(missing_ok=True)  # of an earlier sweep, if this one has no result
    figure = chart(sweep, metric)
    if figure is not None:
        figure.savefig(out / "sweep.png", dpi=160, metadata={"Software": None})  # the same sweep is the same file
        files.append("sweep.png")
    _print(sweep, out, files)
    return sweep


def _print(sweep: Sweep, out: Path, files: list[str]) -> None:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    console.print("", rich_table(sweep, console))
    # Plain print below, because rich would break long lines.
    for run in rows_of(sweep.bad):
        print(f"{run.status}: run {run.run}, {run.error}")
    print(sweep.best() or "")
    print(f"\nTable and picture: {', '.join(files)} in {_relative(out)}")
    if any(sweep.folder.rglob("events.out.tfevents.*")):
        print(f"Compare the runs (tab HParams): tensorboard --logdir {_relative(sweep.folder)}")


def _relative(path: Path) -> str:
    return quoted(os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else path)


class SweepReport(Callback):
    """Hydra callback that ends a sweep with its table and picture.

    If a run has no result, the exit status of the program is 1, as for a single run. A folder that holds runs already
    is refused, because their results would be mixed with those of the sweep.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse a folder that holds runs, before anything is written."""
        folder = Path(config.hydra.sweep.dir)
        if run_folders(folder):
            raise SystemExit(
                f"hydra.sweep.dir must be a folder without runs, and {folder} holds {len(run_folders(folder))}. Name "
                "another folder, or delete it."
            )
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
