"""The runs of a sweep as a data frame, read from the sweep's folder, and its tables and heat map.

The folder of a run holds Hydra's `.hydra/overrides.yaml` and, once the run has ended, a `report.json`.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.report import METRICS, mean_std

OVERRIDES = Path(".hydra") / "overrides.yaml"
REPORT = "report.json"
_DIGITS = {"largest_weight": 2, "effective_sample_size": 3, "recovery": 1}
_NOTE_WIDTH = 60  # characters of an error in the table; sweep.csv has the whole error
_COLORS = colormaps["cividis"]  # readable for the color-blind


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
    """

    folder: Path
    runs: pd.DataFrame
    keys: list[str]
    seeds: list[str]

    @property
    def bad(self) -> pd.DataFrame:
        """The runs without a result."""
        return self.runs[self.runs["status"] != "done"]

    def groups(self) -> list[tuple[tuple[str, ...], pd.DataFrame]]:
        """Return the runs that differ in nothing but seeds, with their values of the keys, in the values' order."""
        if not self.keys:
            return [((), self.runs)]
        return list(self.runs.groupby(self.keys, observed=True))

    def table(self) -> pd.DataFrame:
        """Return one row of texts for each group: settings, the mean and deviation of each metric, runs, errors."""
        metrics = [name for name in METRICS if self.runs[name].notna().any()] or ["balanced_accuracy"]
        rows = []
        for values, group in self.groups():
            bad = group[group["status"] != "done"]
            row = dict(zip(self.keys, map(short, values), strict=True))
            row |= {METRICS[name]: mean_std(group[name].dropna(), _DIGITS.get(name, 3)) for name in metrics}
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

        None if nothing was swept, or nothing finished.
        """
        groups = [(values, g) for values, g in self.groups() if g["balanced_accuracy"].notna().any()]
        if not groups or not self.keys:
            return None
        validated = all(group["val_balanced_accuracy"].notna().any() for _, group in groups)
        metric = "val_balanced_accuracy" if validated else "balanced_accuracy"
        values, group = max(groups, key=lambda pair: float(pair[1][metric].mean()))
        settings = " ".join(f"{key}={short(value)}" for key, value in zip(self.keys, values, strict=True))
        by, test = (mean_std(group[name].dropna()) for name in (metric, "balanced_accuracy"))
        return f"Best by {METRICS[metric]}: {settings}, {by}; on the test set {test}"


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
    columns = ["run", *settings, "status", *METRICS, *recalls, "seconds", "error"]
    frame = pd.DataFrame([{"run": name, **run, **result} for name, run, result in runs], columns=columns)
    frame = frame.astype(dict.fromkeys([*METRICS, *recalls, "seconds"], float))
    swept = [key for key in settings if frame[key].nunique(dropna=False) > 1]
    for key in swept:
        values = frame[key].fillna("default")
        order = list(dict.fromkeys(values))
        frame[key] = pd.Categorical(values, sorted(order, key=float) if all(map(is_number, order)) else order, True)
    seeds = [key for key in swept if key.rpartition(".")[2] == "seed"]
    return Sweep(folder, frame, [key for key in swept if key not in seeds], seeds)


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
        return {"status": "done", "error": "", "seconds": result["seconds"], **result["metrics"], **recalls}
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
    """Return the table for a terminal, without the last metrics if they do not fit."""
    table = sweep.table()
    metrics = [name for name in METRICS.values() if name in table]
    table = table.drop(columns=[METRICS[name] for name in ("accuracy", "effective_sample_size")], errors="ignore")
    for name in reversed(metrics[1:]):
        if (
            console.measure(_to_rich(sweep, table), options=console.options.update(max_width=10_000)).minimum
            <= console.width
        ):
            break
        table = table.drop(columns=name, errors="ignore")
    return _to_rich(sweep, table)


def _to_rich(sweep: Sweep, table: pd.DataFrame) -> Table:
    repeats = f", mean ± standard deviation over {' and '.join(sweep.seeds)}" if sweep.seeds else ""
    rich = Table(title=f"Sweep of {len(sweep.runs)} runs{repeats}", title_justify="left")
    for name in table.columns:
        is_text = name in sweep.keys or name == "note"
        rich.add_column(name, justify="left" if is_text else "right", no_wrap=name in sweep.keys)
    for row in table.to_numpy().tolist():
        rich.add_row(*map(Text, row))  # Text, because rich would read a setting such as [/c] as markup
    return rich


def chart(sweep: Sweep, metric: str = "balanced_accuracy") -> Figure | None:
    """Return a heat map of a metric over the first two swept settings, averaged over the others; None without results.

    One setting gives a single row, and a sweep over seeds alone a cell for each run. A search that tries each value
    once, and so has no grid, gives a scatter plot.
    """
    runs = sweep.runs
    if runs[metric].isna().all():
        return None
    x, y = ([*sweep.keys, "run", ""] if not sweep.keys else [*sweep.keys, ""])[:2]
    cells = runs.assign(**{"": ""}).groupby([y, x], observed=False)[metric].agg(["mean", "std", "count", "size"])
    mean = cells["mean"].unstack()
    figure = Figure(figsize=(3.0 + 1.3 * mean.shape[1], 2.3 + 0.7 * mean.shape[0]), layout="constrained")
    axes = figure.add_subplot()
    if y and mean.notna().to_numpy().mean() < 0.5 and all(map(is_number, [*mean.index, *mean.columns])):
        figure.set_size_inches(6.4, 4.6)
        colored: ScalarMappable = axes.scatter(
            runs[x].astype(float), runs[y].astype(float), c=runs[metric], s=70, cmap=_COLORS
        )
        for values, set_scale in ((mean.columns, axes.set_xscale), (mean.index, axes.set_yscale)):
            if spans_decades([float(value) for value in values]):
                set_scale("log")
    else:
        colored = axes.imshow(mean, cmap=_COLORS, norm=_norm(mean), origin="lower", aspect="auto")
        _annotate(axes, cells, mean)
    axes.set(xlabel=x, ylabel=y, facecolor="#f0f0f0")
    axes.set_title(_caption(sweep, [x, y], metric, int(figure.get_figwidth() * 12)), loc="left", fontsize=9)
    figure.colorbar(colored, label=METRICS[metric])
    return figure


def _norm(mean: pd.DataFrame) -> Normalize:
    low, high = float(mean.min(axis=None)), float(mean.max(axis=None))
    return Normalize(low, high) if high > low else Normalize(low - 0.01, high + 0.01)


def _annotate(axes: Axes, cells: pd.DataFrame, mean: pd.DataFrame) -> None:
    """Write the value of each cell into it, and `failed` into a cell whose runs have no result."""
    norm = _norm(mean)
    for row, y in enumerate(mean.index):
        for column, x in enumerate(mean.columns):
            cell = cells.loc[(y, x)]
            text = f"{cell['mean']:.3f}" if cell["count"] else "failed" if cell["size"] else ""
            if cell["count"] > 1:
                text += f"\n± {cell['std']:.3f}\nn = {cell['count']:.0f}"
            dark = cell["count"] and np.dot(_COLORS(norm(cell["mean"]))[:3], (0.299, 0.587, 0.114)) < 0.45
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    names = [[_plain(value) for value in values] for values in (mean.columns, mean.index)]
    slant = 30 if max(map(len, names[0])) > 12 else 0  # longer names would overlap
    axes.set_xticks(range(len(names[0])), names[0], rotation=slant, ha="right" if slant else "center")
    axes.set_yticks(range(len(names[1])), names[1])


def _caption(sweep: Sweep, keys: list[str], metric: str, width: int) -> str:
    others = [key for key in [*sweep.keys, *(sweep.seeds if sweep.keys else [])] if key not in keys]
    over = " and ".join(f"{key} ({', '.join(map(_plain, sweep.runs[key].cat.categories))})" for key in others)
    text = f"Mean ± standard deviation over {over}." if over else "One run each."
    if len(sweep.bad):
        text += f" {len(sweep.bad)} of {len(sweep.runs)} runs have no result."
    on_test = "validation" not in METRICS[metric] and metric not in _DIGITS
    title = METRICS[metric][0].upper() + METRICS[metric][1:] + (", test" if on_test else "")
    return title + "\n" + textwrap.fill(textwrap.shorten(text, 4 * width, placeholder="…"), width)


def _plain(value: str) -> str:
    return short(value).replace("$", r"\$")  # matplotlib would read text between two of them as mathematics


def spans_decades(numbers: list[float]) -> bool:
    """Return whether positive numbers are better shown on a logarithmic scale.

    Example:
        >>> spans_decades([1e-6, 1e-3]), spans_decades([2, 8, 24]), spans_decades([0, 1, 1000])
        (True, False, False)
    """
    return min(numbers) > 0.0 and max(numbers) >= 50.0 * min(numbers)
