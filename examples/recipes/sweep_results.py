"""The runs of a sweep as they lie in its folder: read, grouped over seeds, and written as tables.

A run is a folder with Hydra's `.hydra/overrides.yaml` and, once it has ended, a `report.json`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.report import Report

OVERRIDES = Path(".hydra") / "overrides.yaml"
REPORT = "report.json"

# What is compared, in the order of the table's columns.
METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "worst_class_recall": "worst-class recall",
    "many_shot_accuracy": "many-shot accuracy",
    "medium_shot_accuracy": "medium-shot accuracy",
    "few_shot_accuracy": "few-shot accuracy",
    "accuracy": "plain accuracy",
    "val_balanced_accuracy": "balanced accuracy, validation",
    "largest_weight": "largest weight",
    "effective_sample_size": "effective sample size",
}
_DIGITS = {"largest_weight": 2, "effective_sample_size": 1}
_NOTE = 60  # characters of an error in the table; the CSV has all of it


def metrics_of(report: Report) -> dict[str, float]:
    """Return the numbers that runs are compared by; of a validation and of many, medium or few shots where there are.

    Example:
        >>> from recipes.report import make_report
        >>> metrics_of(make_report(["cat", "dog"], [90, 10], [50, 50], [1.0, 0.5], 0.75, 1.0, 32.0))
        {'balanced_accuracy': 0.75, 'worst_class_recall': 0.5, 'medium_shot_accuracy': 1.0, 'few_shot_accuracy': 0.5,
        'accuracy': 0.75, 'largest_weight': 1.0, 'effective_sample_size': 32.0}
    """
    shots = {f"{name}_shot_accuracy": None if math.isnan(recall) else recall for name, recall in report.shots.items()}
    numbers = {
        "balanced_accuracy": report.balanced_accuracy,
        "worst_class_recall": float(np.nanmin(report.recall)),
        **shots,
        "accuracy": report.accuracy,
        "val_balanced_accuracy": report.val_balanced_accuracy,
        "largest_weight": report.largest_weight,
        "effective_sample_size": report.effective_sample_size,
    }
    return {name: value for name, value in numbers.items() if value is not None}


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        name: Its folder, from the sweep's.
        settings: What was set on its command line, key by key, as written there.
        status: ``"done"``, ``"failed"``, ``"unfinished"`` (no report) or ``"unreadable"`` (a report that is none).
        error: What went wrong; empty if nothing.
        metrics: Its numbers, by the names in ``METRICS``.
        recall: Recall of each class; NaN for one without test images.
        seconds: How long it took; NaN if it is not known.
    """

    name: str
    settings: Mapping[str, str]
    status: str
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    recall: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan


@dataclass(frozen=True)
class Group:
    """The runs that differ in nothing but a seed.

    Attributes:
        settings: Value of each swept key.
        runs: The runs, finished or not.
    """

    settings: Mapping[str, str]
    runs: Sequence[Run]

    def values(self, metric: str) -> list[float]:
        """Return the metric of every run that has it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    @property
    def bad(self) -> list[Run]:
        """The runs without a result."""
        return [run for run in self.runs if run.status != "done"]

    def text(self, metric: str) -> str:
        """Return the mean, with the standard deviation of several; what became of the runs if there is none."""
        values = self.values(metric)
        return spread(values, _DIGITS.get(metric, 3)) if values else self.bad[0].status if self.bad else "-"


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep.

    Attributes:
        folder: Where they lie.
        runs: The runs, in the order of their names.
        keys: What was swept, but for seeds, in the order of the command line.
        seeds: The swept keys that are seeds.
    """

    folder: Path
    runs: Sequence[Run]
    keys: Sequence[str]
    seeds: Sequence[str]

    @property
    def bad(self) -> list[Run]:
        """The runs without a result."""
        return [run for run in self.runs if run.status != "done"]

    def groups(self, keys: Sequence[str] | None = None) -> list[Group]:
        """Return the runs by their values of the keys (default: of all that were swept), in the values' order."""
        keys = self.keys if keys is None else keys
        found: dict[tuple[str, ...], list[Run]] = {}
        for run in self.runs:
            found.setdefault(tuple(run.settings.get(key, "default") for key in keys), []).append(run)
        ranks = [{value: rank for rank, value in enumerate(self.values_of(key))} for key in keys]
        order = sorted(found, key=lambda values: [rank[value] for rank, value in zip(ranks, values, strict=True)])
        return [Group(dict(zip(keys, values, strict=True)), found[values]) for values in order]

    def values_of(self, key: str) -> list[str]:
        """Return the values of a key, numbers by size, others as they came."""
        values = list(dict.fromkeys(run.settings.get(key, "default") for run in self.runs))
        return sorted(values, key=float) if all(is_number(value) for value in values) else values

    def best(self) -> tuple[Group, str] | None:
        """Return the group with the highest mean and the metric: of the validation, where every run has one.

        None if nothing was swept or nothing finished.
        """
        groups = [group for group in self.groups() if group.values("balanced_accuracy")]
        if not groups or not self.keys:
            return None
        validated = all(group.values("val_balanced_accuracy") for group in groups)
        metric = "val_balanced_accuracy" if validated else "balanced_accuracy"
        return max(groups, key=lambda group: float(np.mean(group.values(metric)))), metric


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean and, of several values, the standard deviation.

    Example:
        >>> spread([0.8]), spread([0.8, 0.9, 1.0])
        ('0.800', '0.900 ± 0.100')
    """
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def is_number(value: str) -> bool:
    """Return whether the text is a finite number."""
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def short(value: str) -> str:
    """Return a setting as the table shows it: long numbers, as a search draws them, with four digits.

    Example:
        >>> short("0.00042731881923"), short("1e-3"), short("sqrt")
        ('0.0004273', '1e-3', 'sqrt')
    """
    return f"{float(value):.4g}" if len(value) > 8 and is_number(value) else value


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of the runs in a folder, itself among them if it is one."""
    return [path.parent.parent for path in folder.rglob(str(OVERRIDES))]


def read_sweep(folder: str | Path) -> Sweep:
    """Read what lies in the folder of a sweep.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
        ValueError: If it is the folder of a single run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Name one that `python examples/train.py -m ...` made.")
    if (folder / OVERRIDES).is_file():
        raise ValueError(f"{folder} is a single run, not a sweep. Name the folder that has the runs in it.")
    found = runs_in(folder)
    if not found:
        raise FileNotFoundError(
            f"{folder} is no sweep: no folder in it has {OVERRIDES.as_posix()}. "
            "Name one that `python examples/train.py -m ...` made, such as outputs/sweeps/<date>."
        )
    # Hydra numbers the runs: 10 comes after 9.
    found.sort(key=lambda path: [(not part.isdigit(), part.zfill(9)) for part in path.relative_to(folder).parts])
    runs = [read_run(path, path.relative_to(folder).as_posix()) for path in found]
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    swept = [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]
    seeds = [key for key in swept if key.rpartition(".")[2] == "seed"]
    return Sweep(folder, runs, [key for key in swept if key not in seeds], seeds)


def read_run(folder: Path, name: str) -> Run:
    """Return the run in the folder, whatever is left of it."""
    settings: dict[str, str] = {}
    try:
        for override in OmegaConf.to_container(OmegaConf.load(folder / OVERRIDES)) or []:
            key, _, value = str(override).partition("=")
            settings[key.lstrip("+~")] = value
        text = (folder / REPORT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Run(name, settings, "unfinished", f"no {REPORT}: it was interrupted, or is still running")
    except Exception as error:
        return Run(name, settings, "unreadable", f"{OVERRIDES.as_posix()}: {type(error).__name__}")
    try:
        result: dict[str, Any] = json.loads(text)
        if result["status"] == "failed":
            return Run(name, settings, "failed", str(result["error"]), seconds=float(result["seconds"]))
        metrics = {key: float(result["metrics"][key]) for key in METRICS if result["metrics"].get(key) is not None}
        recall = {str(key): math.nan if value is None else float(value) for key, value in result["recall"].items()}
        return Run(name, settings, "done", "", metrics, recall, float(result["seconds"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Run(name, settings, "unreadable", f"{REPORT} is not a whole report ({type(error).__name__})")


def rows(sweep: Sweep, metrics: Sequence[str] = tuple(METRICS)) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row of texts for each group; metrics that no run has are left out."""
    groups = sweep.groups()
    shown = [metric for metric in metrics if any(group.values(metric) for group in groups)] or ["balanced_accuracy"]
    header = [*sweep.keys, *(METRICS[metric] for metric in shown), "runs"]
    if sweep.bad:
        header.append("note")
    table = []
    for group in groups:
        done = len(group.runs) - len(group.bad)
        row = [short(group.settings[key]) for key in sweep.keys] + [group.text(metric) for metric in shown[:1]]
        row += [group.text(metric) if group.values(metric) else "" for metric in shown[1:]]
        row.append(f"{done} of {len(group.runs)}" if group.bad else str(done))
        if sweep.bad:
            row.append("; ".join(dict.fromkeys(note(run) for run in group.bad)))
        table.append(row)
    return header, table


def note(run: Run) -> str:
    """Return in short why a run has no result."""
    text = f"{run.status}: {run.error}"
    return text if len(text) <= _NOTE else text[: _NOTE - 1].rstrip() + "…"


def rich_table(sweep: Sweep, console: Console) -> Table:
    """Return the table for a terminal, with the columns that fit there; the files have all."""
    shown = [metric for metric in METRICS if metric not in ("accuracy", "effective_sample_size")]
    endless = console.options.update_width(10**6)
    for metric in ("medium_shot_accuracy", "many_shot_accuracy", "few_shot_accuracy", "largest_weight"):
        table = _rich_table(sweep, shown)
        if console.measure(table, options=endless).minimum <= console.width:
            return table
        shown.remove(metric)
    return _rich_table(sweep, shown)


def _rich_table(sweep: Sweep, metrics: Sequence[str]) -> Table:
    header, body = rows(sweep, metrics)
    repeats = f", mean ± standard deviation over {' and '.join(sweep.seeds)}" if sweep.seeds else ""
    table = Table(title=f"Sweep of {len(sweep.runs)} runs{repeats}", title_justify="left")
    for name in header:
        text = name in sweep.keys or name == "note"
        table.add_column(name, justify="left" if text else "right", no_wrap=name in sweep.keys)
    for row in body:
        # As text: a setting or an error may have what rich takes for markup, such as [/c].
        table.add_row(*map(Text, row))
    return table


def markdown(sweep: Sweep) -> str:
    """Return the table as Markdown."""
    header, body = rows(sweep)
    lines = [header, ["---"] * len(header), *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def write_csv(sweep: Sweep, path: Path) -> None:
    """Write one row for each run: its settings, status, numbers, the recall of each class, and the whole error."""
    settings = list(dict.fromkeys(key for run in sweep.runs for key in run.settings))
    classes = list(dict.fromkeys(name for run in sweep.runs for name in run.recall))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *settings, "status", *METRICS, *(f"recall/{c}" for c in classes), "seconds", "error"])
        for run in sweep.runs:
            numbers = [*(run.metrics.get(name) for name in METRICS), *(run.recall.get(c) for c in classes), run.seconds]
            known = ["" if number is None or math.isnan(number) else number for number in numbers]
            values = [run.settings.get(key, "") for key in settings]
            writer.writerow([run.name, *values, run.status, *known, run.error])
