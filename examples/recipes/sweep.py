"""Sweeps: a run leaves its result, a failed one leaves the others running, and the end is a table and a picture."""

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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from recipes.configs import has_optuna
from recipes.report import Report
from recipes.sweep_results import (
    METRICS,
    REPORT,
    Sweep,
    markdown,
    metrics_of,
    read_sweep,
    rich_table,
    runs_in,
    short,
    write_csv,
)

log = logging.getLogger(__name__)

_FILE_WIDTH = 140  # of a table that goes into a file: rich would take 80


def in_sweep() -> bool:
    """Return whether Hydra runs this as one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def recorded(train: Callable[[DictConfig], Report], cfg: DictConfig) -> Report | None:
    """Train, and leave the result or the error as ``report.json`` in the run's folder.

    Args:
        train: Called with the config.
        cfg: The config of the run, under ``hydra.main``.

    Returns:
        The report; in a sweep None for a run that failed, so that the next one starts.

    Raises:
        Exception: Whatever ``train`` raises, unless the run is one of a sweep.
    """
    path = Path(HydraConfig.get().runtime.output_dir) / REPORT
    # A sweep into the folder of an earlier one: its results are not those of this one.
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        report = train(cfg)
    except Exception as error:
        write(path, {"status": "failed", "error": in_words(error), "seconds": time.perf_counter() - start})
        if not in_sweep():
            raise
        # The run's own log file has the traceback.
        log.exception("This run failed; the sweep goes on.")
        return None
    result = {
        "status": "done",
        "metrics": metrics_of(report),
        "recall": dict(zip(report.classes, report.recall.tolist(), strict=True)),
        "images": dict(zip(report.classes, report.images.tolist(), strict=True)),
        "drawn": dict(zip(report.classes, report.drawn.tolist(), strict=True)),
        "seconds": time.perf_counter() - start,
    }
    write(path, result)
    return report


@rank_zero_only
def write(path: Path, result: dict[str, Any]) -> None:
    """Write JSON, all of it or nothing; numbers that JSON does not know become null."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(_finite(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_words(error: BaseException) -> str:
    """Return an error in one line, without Hydra's wrapping.

    Example:
        >>> in_words(ValueError("alpha is too large"))
        'ValueError: alpha is too large'
    """
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def show_line(report: Report) -> None:
    """Print one run of a sweep in a line; the table of all comes at the end."""
    numbers = metrics_of(report)
    names = ("balanced_accuracy", "worst_class_recall", "largest_weight")
    print(", ".join(f"{METRICS[name]} {numbers[name]:.3f}" for name in names))


def objective(report: Report) -> float:
    """Return what a search maximises: balanced accuracy of the last validation, or of the test if there was none.

    A search that picks by the test set reports a number that it has tuned.
    """
    validated = report.val_balanced_accuracy
    return report.balanced_accuracy if validated is None else validated


def summarise(folder: str | Path, out: str | Path | None = None, metric: str = "balanced_accuracy") -> Sweep:
    """Write ``sweep.csv``, ``sweep.md`` and ``sweep.png`` of a sweep, and print its table.

    Args:
        folder: The folder of the sweep.
        out: Where the files go. Default: into the folder.
        metric: What the picture shows, one of ``METRICS``.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
        ValueError: If it is the folder of a single run, or the metric is none.
    """
    from recipes.sweep_chart import chart, save

    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}.")
    sweep = read_sweep(folder)
    out = Path(folder if out is None else out)
    out.mkdir(parents=True, exist_ok=True)
    # Before anything is printed: where that fails, the files are there.
    write_csv(sweep, out / "sweep.csv")
    (out / "sweep.md").write_text(markdown(sweep), encoding="utf-8")
    files = ["sweep.csv", "sweep.md"]
    figure = chart(sweep, metric)
    (out / "sweep.png").unlink(missing_ok=True)  # without a result there is none, not that of an earlier sweep
    if figure is not None:
        save(figure, out / "sweep.png")
        files.append("sweep.png")
    print()
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    console.print(rich_table(sweep, console))
    for run in sweep.bad:
        print(f"{run.status}: run {run.name}, {run.error}")
    missing = planned(sweep.folder) - len(sweep.runs)
    if missing > 0:
        runs = "run was" if missing == 1 else "runs were"
        print(f"{missing} more {runs} not begun: the sweep was interrupted, or is still running.")
    best = sweep.best()
    if best is not None:
        group, by = best
        settings = " ".join(f"{key}={short(value)}" for key, value in group.settings.items())
        print(f"Best by {METRICS[by]}: {settings}, {group.text(by)}; on the test set {group.text('balanced_accuracy')}")
    # Plain print: rich would break a long path over two lines.
    print(f"\nTable and picture: {', '.join(files)} in {_shown(out)}")
    if any(sweep.folder.rglob("events.out.tfevents.*")):
        print(f"Compare the runs (tab HParams): tensorboard --logdir {_shown(sweep.folder)}")
    return sweep


def planned(folder: Path) -> int:
    """Return how many runs Hydra's own sweeper set out to make in the folder; 0 if that cannot be told."""
    try:
        multirun = OmegaConf.load(folder / "multirun.yaml")
        overrides = OverridesParser.create().parse_overrides(list(multirun.hydra.overrides.task))
        sweeps = [override for override in overrides if override.is_sweep_override()]
        return math.prod(len(list(override.sweep_string_iterator())) for override in sweeps)
    except Exception:  # no such file, a search, or a pattern that only Hydra's loader can expand
        return 0


def _shown(path: Path) -> str:
    text = os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
    return f'"{text}"' if " " in text else text


class SweepReport(Callback):
    """Hydra's callback that ends a sweep with its table and picture.

    If a run failed, the exit status of the program is then 1, as that of a single run is. A folder that has runs in it
    already is refused: they would be taken for this sweep's, or overwritten.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse a folder with runs in it, before anything is written."""
        folder = Path(config.hydra.sweep.dir)
        if runs_in(folder):
            raise SystemExit(
                f"hydra.sweep.dir must be a folder without runs, and {folder} holds {len(runs_in(folder))}. Name "
                "another one, or delete it."
            )
        # A search in which every trial fails, like an interrupt, ends without `on_multirun_end`.
        atexit.register(_summarise_rest, folder.absolute())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        """Print the table, draw the picture, and end the program if a run has no result."""
        atexit.unregister(_summarise_rest)
        folder = config.hydra.sweep.dir
        # Hydra turns the exceptions of a callback into warnings, but lets SystemExit pass.
        try:
            sweep = summarise(folder)
        except Exception as error:
            log.exception("The sweep's table or picture could not be made.")
            raise SystemExit(f"`python examples/sweep_report.py {folder}` tries it again.") from error
        if sweep.bad:
            raise SystemExit(f"{len(sweep.bad)} of {len(sweep.runs)} runs have no result.")


def _summarise_rest(folder: Path) -> None:
    """Print the table of a sweep that broke off, where it came to any run."""
    if runs_in(folder):
        summarise(folder)


class NeedsOptuna(Callback):
    """Refuses ``hparams_search=optuna`` without its extra, before Hydra refuses it in words that help nobody.

    Raises:
        ImportError: If the sweeper is not installed.
    """

    def __init__(self) -> None:
        if not has_optuna():
            raise ImportError(
                'hparams_search=optuna needs Hydra\'s Optuna sweeper: pip install "lightning-fair[optuna]", '
                'or from a clone: pip install -e ".[optuna]".'
            )
