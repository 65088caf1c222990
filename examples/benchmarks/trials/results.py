"""The file of finished runs, and the tables that are made from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.systems import markdown
from recipes.report import mean_std
from scipy import stats

from lightning_fair.common.arrays import Floats

Key = tuple[str, str, int]  # data, method, seed
Numbers = dict[str, Any]  # what a run returns
Metrics = dict[str, float]
Table = dict[str, dict[int, Metrics]]  # row, seed


@dataclass(frozen=True)
class Trial:
    """Methods that are compared on one kind of data.

    Attributes:
        title: The data in words.
        methods: Names of the methods.
        seeds: The seeds.
        run: Trains with a method, a seed and the folder of the data.
        rows: Metrics of a run, by what is added to the name of its method in the table.
        baselines: Methods that the others are compared with, seed by seed.
        compared: Metrics that are compared.
        minutes: Minutes of a run on one core.
    """

    title: str
    methods: Sequence[str]
    seeds: Sequence[int]
    run: Callable[[str, int, Path], Numbers]
    rows: Callable[[str, Numbers], dict[str, Metrics]]
    baselines: Sequence[str]
    compared: Sequence[str]
    minutes: float


class Results:
    """Numbers of finished runs, in a file of JSON lines.

    Args:
        path: The file; it need not exist. Begin a new file after a change of the code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[Key, Numbers] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                run = json.loads(line)
                self.runs[run["data"], run["method"], run["seed"]] = run["numbers"]
            except (json.JSONDecodeError, TypeError, KeyError):
                continue  # empty, half written, or no run

    def add(self, key: Key, numbers: Numbers, seconds: float) -> None:
        """Store the numbers of a run, and append them to the file."""
        self.runs[key] = numbers
        run = dict(zip(("data", "method", "seed"), key, strict=True)) | {"seconds": round(seconds), "numbers": numbers}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A newline first if an interrupted run has left half a line.
        cut = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut + json.dumps(_rounded(run)) + "\n")

    def table(self, data: str, trial: Trial) -> Table:
        """Return the metrics of the finished runs of a trial, in the order of its methods."""
        table: Table = {}
        for method in trial.methods:
            for (name, other, seed), numbers in sorted(self.runs.items()):
                if (name, other) == (data, method):
                    for suffix, metrics in trial.rows(method, numbers).items():
                        table.setdefault(method + suffix, {})[seed] = metrics
        return table


def _rounded(value: Any) -> Any:
    """Return nested numbers with five digits after the point."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def to_markdown(table: Table, trial: Trial) -> str:
    """Return the Markdown table, a row for each method, with the differences from the baselines."""
    metrics = [run for runs in table.values() for run in runs.values()]
    names = [name for name in metrics[0] if not all(np.isnan(run[name]) for run in metrics)]
    seeds = sorted(set().union(*table.values()))
    header = [f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"]
    for name in names:
        header += [name, *(f"against `{baseline}`" for baseline in trial.baselines if name in trial.compared)]
    lines = []
    for row, runs in table.items():
        method, plus, rest = row.partition(" ")
        number = f" ({len(runs)} seed{'s' * (len(runs) > 1)})" if len(runs) < len(seeds) else ""
        cells = [f"`{method}`{plus}{rest}{number}"]
        for name in names:
            values = [run[name] for run in runs.values()]
            cells.append("" if np.isnan(values).any() else mean_std(values))
            for baseline in trial.baselines if name in trial.compared else ():
                cells.append(_against(runs, table.get(baseline, {}), name) if row != baseline else "")
        lines.append(cells)
    return markdown(header, lines)


def _against(runs: Mapping[int, Metrics], baseline: Mapping[int, Metrics], name: str) -> str:
    """Return the mean difference of runs with the same seed, its interval, and how often the first is higher."""
    seeds = sorted(runs.keys() & baseline.keys())
    differences = np.array([runs[seed][name] - baseline[seed][name] for seed in seeds])
    if not seeds:
        return ""
    low, high = interval(differences)
    bounds = f" [{low:+.3f}, {high:+.3f}]" if len(seeds) > 1 else ""
    return f"{differences.mean():+.3f}{bounds}, {int((differences > 0).sum())} of {len(seeds)}"


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the mean by Student's t; NaN for fewer than two values.

    Example:
        >>> low, high = interval(np.array([0.01, 0.02, 0.03]))
        >>> round(low, 4), round(high, 4)
        (-0.0048, 0.0448)
    """
    if values.size < 2:
        return float("nan"), float("nan")
    error = float(values.std(ddof=1)) / np.sqrt(values.size)
    width = float(stats.t.ppf(0.5 + level / 2, values.size - 1)) * error
    return float(values.mean()) - width, float(values.mean()) + width
