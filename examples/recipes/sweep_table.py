"""The runs of a sweep as a data frame, read from the sweep's folder, and its tables.

The folder of a sweep holds its command in `sweep.json`; that of a run holds Hydra's `.hydra/overrides.yaml` and, once
the run has ended, a `report.json`.
"""

from __future__ import annotations

import functools
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.stats import studentized_range

from recipes.report import METRICS, mean_std

OVERRIDES = Path(".hydra") / "overrides.yaml"
REPORT = "report.json"
COMMAND = "sweep.json"
DIGITS = {**dict.fromkeys(METRICS, 3), "largest_weight": 2, "recovery": 1}
_NOTE_WIDTH = 60  # characters of an error in the table; sweep.csv has the whole error
_LEVEL = 0.95


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep.

    Attributes:
        folder: Folder of the sweep.
        runs: One row a run, in the order of their numbers: ``run``, its settings, ``status`` (``"done"``, ``"failed"``,
            ``"unfinished"`` without a report, or ``"unreadable"``), the numbers in ``METRICS``, the recall of each
            class, ``seconds``, and ``error`` (empty for a finished run). A swept column is categorical: numbers by
            size, other values in the order of the runs.
        keys: The swept settings other than seeds, in the order of the command line.
        seeds: The swept settings that are seeds.
        search: Whether a search chose the settings; its table has the best first.
    """

    folder: Path
    runs: pd.DataFrame
    keys: list[str]
    seeds: list[str]
    search: bool = False

    @property
    def bad(self) -> pd.DataFrame:
        """The runs without a result."""
        return self.runs[self.runs["status"] != "done"]

    def groups(self) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
        """Return the runs that differ in nothing but seeds, with their values of the keys.

        They are in the order of the values, those of a search with the best first.
        """
        if not self.keys:
            return [((), self.runs)]
        groups = list(self.runs.groupby(self.keys, observed=True))
        if not self.search:
            return groups
        scores = {values: float(group[self.chosen_by].mean()) for values, group in groups}
        return sorted(groups, key=lambda pair: -np.nan_to_num(scores[pair[0]], nan=-np.inf))

    @property
    def chosen_by(self) -> str:
        """The metric by which the best is chosen: that of the validation if every finished run has one."""
        done = self.runs[self.runs["status"] == "done"]
        validated = len(done) and done["val_balanced_accuracy"].notna().all()
        return "val_balanced_accuracy" if validated else "balanced_accuracy"

    def noise(self, metric: str) -> float:
        """Return ``noise_and_source(metric)[0]``."""
        return self.noise_and_source(metric)[0]

    def noise_and_source(self, metric: str) -> tuple[float, str]:
        """Return the range of the groups' means that chance alone exceeds in 5 % of all sweeps; NaN if it is not known.

        This is Tukey's range. The standard error is that of the repeats: what remains of the metric after a mean for
        each group and one for each seed. Without repeats it is the binomial error of the accuracies, which lacks what
        another seed of the training changes. The second value says which it is; it is empty for NaN.
        """
        groups = [group.set_index([*self.seeds, "run"][: len(self.seeds) or 1])[metric] for _, group in self.groups()]
        grid = pd.DataFrame([group for group in groups if group.index.is_unique]).dropna().to_numpy(dtype=float)
        if self.seeds and min(grid.shape) > 1:
            residuals = grid - grid.mean(0) - grid.mean(1, keepdims=True) + grid.mean()
            freedom = (grid.shape[0] - 1) * (grid.shape[1] - 1)
            error, source = np.sqrt((residuals**2).sum() / freedom / grid.shape[1]), self._repeats
        else:
            errors = [group[f"error/{metric}"].dropna() for _, group in self.groups() if f"error/{metric}" in group]
            squares = [(values**2).mean() / len(values) for values in errors if len(values)]  # of a group's mean
            freedom, error = np.inf, np.sqrt(np.mean(squares)) if squares else np.nan
            source = f"the binomial error of the {'validation' if metric.startswith('val') else 'test set'}"
        number = sum(bool(group.notna().any()) for group in groups)
        noise = float(error * _tukey(number, freedom)) if number > 1 else float("nan")
        return noise, "" if np.isnan(noise) else source

    @property
    def _repeats(self) -> str:
        return f"{' and '.join(self.seeds)} as repeats"

    def range(self, metric: str) -> float:
        """Return the largest difference between the means of two groups; NaN without results."""
        means = [group[metric].mean() for _, group in self.groups() if group[metric].notna().any()]
        return float(np.ptp(means)) if means else float("nan")

    def within_noise(self, metric: str) -> bool:
        """Return whether the metric differs, and chance alone can make its differences."""
        return 0.0 < self.range(metric) <= self.noise(metric)

    def verdict(self) -> str:
        """Return which metrics differ by no more than chance, how that is known, and how to learn more."""
        if sum((group["status"] == "done").any() for _, group in self.groups()) < 2:
            return ""
        sources = list(dict.fromkeys(filter(None, (self.noise_and_source(name)[1] for name in METRICS))))
        within = [
            f"{METRICS[name]} (range {self.range(name):.{DIGITS[name]}f}, noise {self.noise(name):.{DIGITS[name]}f})"
            for name in METRICS
            if self.within_noise(name)
        ]
        text = f"Within the noise: {', '.join(within)}. " if within else ""
        text += f"The noise is Tukey's range at 5 %, from {' and '.join(sources)}. " if sources else ""
        if self._repeats not in sources:
            why = "no two settings have two finished seeds in common" if self.seeds else "add seed=1,2,3"
            return f"{text}What another seed changes is not known: {why}."
        return text + ("More seeds show smaller differences." if within else "")

    def table(self) -> pd.DataFrame:
        """Return one row of texts for each group: settings, the mean and deviation of each metric, runs, errors."""
        metrics = [name for name in METRICS if self.runs[name].notna().any()] or ["balanced_accuracy"]
        rows = []
        for values, group in self.groups():
            bad = group[group["status"] != "done"]
            row = dict(zip(self.keys, map(short, values), strict=True))
            row |= {METRICS[name]: mean_std(group[name].dropna(), DIGITS[name]) for name in metrics}
            if len(bad) == len(group):
                row[METRICS[metrics[0]]] = bad["status"].iloc[0]
            row["runs"] = f"{len(group) - len(bad)} of {len(group)}" if len(bad) else str(len(group))
            if len(self.bad):
                notes = (textwrap.shorten(f"{r.status}: {r.error}", _NOTE_WIDTH, placeholder="…") for r in rows_of(bad))
                row["note"] = "; ".join(dict.fromkeys(notes))
            rows.append(row)
        return pd.DataFrame(rows)

    def best(self) -> str | None:
        """Return a sentence on the group with the highest mean balanced accuracy, by validation if every run has one.

        It names the groups that are level with it: within the noise, or, if that is not known, in the digits shown.
        None if nothing was swept, or nothing finished.
        """
        metric = self.chosen_by
        scored = [(values, group) for values, group in self.groups() if group[metric].notna().any()]
        if not scored or not self.keys:
            return None
        scored.sort(key=lambda pair: -float(pair[1][metric].mean()))
        (values, best), others = scored[0], scored[1:]
        noise = np.nanmax([self.noise(metric), 0.5 * 10.0 ** -DIGITS[metric]])
        level = [self._named(other) for other, group in others if best[metric].mean() - group[metric].mean() <= noise]
        by, test = (mean_std(best[name].dropna()) for name in (metric, "balanced_accuracy"))
        text = f"Best by {METRICS[metric]}: {self._named(values)}, {by}; on the test set {test}"
        if metric == "balanced_accuracy":
            text = f"Best by {METRICS[metric]}, chosen on the test set, so the result is too good: "
            text += f"{self._named(values)}, {by}"
        if len(level) == len(others) > 1:
            return f"{text}. All others are level with it"
        return text + (f". Level with it: {'; '.join(level)}" if level else "")

    def _named(self, values: tuple[str, ...]) -> str:
        return " ".join(f"{key}={short(value)}" for key, value in zip(self.keys, values, strict=True))


@functools.cache  # it takes a good part of a second
def _tukey(number: int, freedom: float) -> float:
    return float(studentized_range.ppf(_LEVEL, number, freedom))


def run_folders(folder: Path) -> list[Path]:
    """Return the folders of the runs in a folder, in the order of their numbers."""
    runs = [path.parent.parent for path in folder.rglob(str(OVERRIDES))]
    return sorted(runs, key=lambda path: [(not part.isdigit(), part.zfill(9)) for part in path.parts])


def read_sweep(folder: Path) -> Sweep:
    """Read the runs in the folder of a sweep.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
        ValueError: If it is the folder of a single run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Name one of `python examples/train.py -m ...`.")
    if (folder / OVERRIDES).is_file():
        raise ValueError(f"{folder} is a single run, not a sweep. Name the folder that holds the runs.")
    runs = [(path.relative_to(folder).as_posix(), _settings(path), _result(path)) for path in run_folders(folder)]
    if not runs:
        raise FileNotFoundError(
            f"{folder} is no sweep: no folder in it has {OVERRIDES.as_posix()}. Name one of "
            "`python examples/train.py -m ...`, for example outputs/sweeps/<date>."
        )
    settings = list(dict.fromkeys(key for _, run, _ in runs for key in run))
    recalls = list(dict.fromkeys(key for _, _, result in runs for key in result if key.startswith("recall/")))
    errors = list(dict.fromkeys(key for _, _, result in runs for key in result if key.startswith("error/")))
    columns = ["run", *settings, "status", *METRICS, *errors, *recalls, "seconds", "error"]
    frame = pd.DataFrame([{"run": name, **run, **result} for name, run, result in runs], columns=columns)
    frame = frame.astype(dict.fromkeys([*METRICS, *errors, *recalls, "seconds"], float))
    swept = [key for key in settings if frame[key].nunique(dropna=False) > 1]
    for key in swept:
        values = frame[key].fillna("default")
        order = list(dict.fromkeys(values))
        frame[key] = pd.Categorical(values, sorted(order, key=float) if all(map(is_number, order)) else order, True)
    seeds = [key for key in swept if key.rpartition(".")[2] == "seed"]
    command = read_json(folder / COMMAND) or {}
    return Sweep(folder, frame, [key for key in swept if key not in seeds], seeds, bool(command.get("search")))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a mapping from a JSON file; None if there is no such file, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _settings(folder: Path) -> dict[str, str]:
    """Return the settings on the command line of a run, as text; none if the file is damaged."""
    try:
        overrides: Any = OmegaConf.to_container(OmegaConf.load(folder / OVERRIDES))
    except Exception:  # any error of the YAML parser
        return {}
    pairs = (str(override).partition("=") for override in overrides or [])
    return {key.lstrip("+~"): value for key, _, value in pairs}


def _result(folder: Path) -> dict[str, Any]:
    """Return the status, numbers and error of a run."""
    try:
        result = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        if result["status"] == "failed":
            return {"status": "failed", "error": str(result["error"]), "seconds": float(result["seconds"])}
        recalls = {f"recall/{name}": value for name, value in result["recall"].items()}
        errors = {f"error/{name}": value for name, value in result.get("errors", {}).items()}
        return {"status": "done", "error": "", "seconds": result["seconds"], **result["metrics"], **errors, **recalls}
    except FileNotFoundError:
        return {"status": "unfinished", "error": f"no {REPORT}: the run was interrupted, or is still running"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {"status": "unreadable", "error": f"{REPORT} is not a whole report ({type(error).__name__})"}


def rows_of(frame: pd.DataFrame) -> list[Any]:
    """Return the rows as named tuples."""
    return list(frame[["run", "status", "error"]].itertuples(index=False))


def is_number(value: str) -> bool:
    """Return whether the text is a finite number."""
    try:
        return bool(np.isfinite(float(value)))
    except ValueError:
        return False


def short(value: str) -> str:
    """Return a setting as the table shows it: numbers of more than 8 characters with four digits.

    Example:
        >>> short("0.00042731881923"), short("1e-3"), short("sqrt")
        ('0.0004273', '1e-3', 'sqrt')
    """
    return f"{float(value):.4g}" if len(value) > 8 and is_number(value) else value


def markdown(table: pd.DataFrame) -> str:
    """Return a data frame of texts as a Markdown table."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def rich_table(sweep: Sweep, console: Console) -> Table:
    """Return the table for a terminal, without the last metrics if they do not fit, and without errors."""
    table = sweep.table().drop(columns="note", errors="ignore")
    metrics = [name for name in METRICS.values() if name in table]
    widths = {name: max(map(len, [*name.split(), *table[name]])) for name in table}  # names break between words
    while sum(widths[name] + 3 for name in table) >= console.width and len(metrics) > 1:
        table = table.drop(columns=metrics.pop())
    title = f"Sweep of {len(sweep.runs)} runs"
    if sweep.seeds:
        title += f", mean ± standard deviation over {' and '.join(sweep.seeds)}"
    if sweep.search:
        on_test = ", chosen on the test set" if sweep.chosen_by == "balanced_accuracy" else ""
        title += f", best first by {METRICS[sweep.chosen_by]}{on_test}"
    rich = Table(title=title, title_justify="left")
    for name in table.columns:
        rich.add_column(name, justify="left" if name in sweep.keys else "right", width=widths[name])
    for row in table.to_numpy().tolist():
        rich.add_row(*map(Text, row))  # Text, because rich would read a setting such as [/c] as markup
    return rich
