"""Compare ways to train on long-tailed MNIST, over seeds: `python examples/benchmarks/mnist.py --root DIR`.

Each run is `examples/train.py experiment=mnist` with a seed and a choice of `fair` or `baseline`; nothing else differs.
`--keep FILE` appends each result to a file, and does not repeat a run whose result is in the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import numpy as np
from benchmarks.digits import CONF, QUIET
from benchmarks.systems import machine, markdown
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from recipes import configs
from recipes.checks import check_config
from recipes.report import SHOTS, Best, Report, make_report, mean_std
from recipes.training import train
from tqdm import tqdm

METHODS = ("off", "weighted_sampler", "balanced", "deferred", "long_tail", "worst_class", "balanced_softmax")
SAMPLING = ("off", "weighted_sampler")  # the baselines that change only the draws


def choice(method: str) -> str:
    """Return the config choice of a method: a file of `conf/baseline` or of `conf/fair`.

    Raises:
        ValueError: If there is no such file.
    """
    for group in ("baseline", "fair"):
        if (CONF / group / f"{method}.yaml").is_file():
            return f"{group}={method}"
    known = sorted(path.stem for group in ("baseline", "fair") for path in (CONF / group).glob("*.yaml"))
    raise ValueError(f"There is no method {method!r}. Methods: {', '.join(known)}.")


class Results:
    """Results of finished runs, in a file of JSON lines if a path is given.

    Args:
        path: The file, or None. Begin a new file after a change of the code.
        settings: The settings that all runs share. Results with other settings in the file are ignored.
    """

    def __init__(self, path: Path | None, settings: Sequence[str]) -> None:
        self.path, self.settings = path, list(settings)
        self._reports: dict[tuple[str, int], Report] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
            try:
                run = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or half written
            if run["settings"] == self.settings:
                best = run["report"].pop("best")
                report = make_report(**run["report"], best=Best(**best) if best else None)
                self._reports[run["method"], run["seed"]] = report

    def get(self, method: str, seed: int) -> Report | None:
        """Return the result of a run, or None if it has not run yet."""
        return self._reports.get((method, seed))

    def add(self, method: str, seed: int, report: Report) -> None:
        """Store the result of a run, and append it to the file."""
        self._reports[method, seed] = report
        if self.path:
            run = {"method": method, "seed": seed, "settings": self.settings, "report": asdict(report)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # A newline first, because an interrupted run may have left half a line.
                file.write("\n" + json.dumps(run, default=lambda array: array.tolist()) + "\n")


def run_all(methods: Sequence[str], seeds: Sequence[int], results: Results) -> dict[str, list[Report]]:
    """Return the reports: for each method one a seed."""
    configs.register()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        # All configs first, so that a wrong name is an error before the first run. Seed by seed, so that an
        # interrupted benchmark has results of every method.
        settings = [*results.settings, *QUIET, f"output_dir={folder}"]
        runs = {
            (method, seed): compose("train", [choice(method), f"seed={seed}", *settings])
            for seed in seeds
            for method in methods
        }
        for cfg in runs.values():
            check_config(cfg)
        for (method, seed), cfg in _progress(runs):
            if results.get(method, seed) is None:
                results.add(method, seed, train(cfg))
    return {method: [results.get(method, seed) for seed in seeds] for method in methods}  # type: ignore[misc]


def _progress(runs: dict[tuple[str, int], DictConfig]) -> Iterator[tuple[tuple[str, int], DictConfig]]:
    bar = tqdm(runs.items(), desc="runs")
    for run, cfg in bar:
        bar.set_postfix_str(f"{run[0]}, seed {run[1]}")
        yield run, cfg


def paired(values: Sequence[float], others: Sequence[float]) -> str:
    """Return the differences of runs with the same seed: mean ± sample deviation, and how often the first is higher."""
    differences = np.asarray(values) - np.asarray(others)
    mean, _, deviation = mean_std(differences).partition(" ")
    return f"{float(mean):+.3f} {deviation}".rstrip() + f", {int((differences > 0).sum())} of {differences.size} higher"


def best_sampling(reports: dict[str, list[Report]]) -> str | None:
    """Return the sampling baseline with the highest mean balanced accuracy; None if none was run."""
    run = [method for method in SAMPLING if method in reports]
    return max(run, key=lambda m: np.mean([report.balanced_accuracy for report in reports[m]]), default=None)


def table(reports: dict[str, list[Report]]) -> str:
    """Return the Markdown table, a row for each method."""
    first = next(iter(reports.values()))[0]
    images = first.images  # the same in every run
    shots = [name for name, recall in first.shots.items() if not np.isnan(recall)]
    best = best_sampling(reports)
    header = ["test after the last epoch", "balanced accuracy"]
    header += [f"against `{choice(best)}`, seed by seed"] if best else []
    for name in shots:
        low, high = SHOTS[name]
        group = images[(images >= low) & (images <= (images.max() if high is None else high))]
        sizes = " to ".join(str(size) for size in sorted({group.max(), group.min()}, reverse=True))
        header.append(f"{name}-shot (images: {sizes})")
    header.append("accuracy at the training mix")
    rows = []
    for method, runs in reports.items():
        balanced = [run.balanced_accuracy for run in runs]
        row = [f"`{choice(method)}`", mean_std(balanced)]
        if best:
            row.append("-" if method == best else paired(balanced, [run.balanced_accuracy for run in reports[best]]))
        row += [mean_std([run.shots[name] for run in runs]) for name in shots]
        rows.append([*row, mean_std([run.prior_accuracy for run in runs])])
    return markdown(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder with MNIST/raw/ (default: data, downloaded there)")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help=f"of conf/fair, conf/baseline ({' '.join(METHODS)})"
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 (default: 5)")
    parser.add_argument("--epochs", type=int, help="of each run (default: the experiment's)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="file of finished runs, to resume from")
    parser.add_argument("--overrides", nargs="+", default=[], help="for every run, for example data.imbalance_ratio=50")
    args = parser.parse_args(argv)
    for name in ("seeds", "epochs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    try:
        [choice(method) for method in args.methods]
    except ValueError as error:
        parser.error(str(error))
    epochs = [f"epochs={args.epochs}"] if args.epochs else []
    results = Results(args.keep, ["experiment=mnist", f"data.root={args.root}", *epochs, *args.overrides])
    reports = run_all(args.methods, range(1, args.seeds + 1), results)
    print(f"\nSeeds 1 to {args.seeds}, mean ± sample standard deviation")
    print(f"{machine()}\n")
    print(table(reports))
    for method, runs in reports.items():
        print(f"{method}: balanced accuracy seed by seed " + ", ".join(f"{run.balanced_accuracy:.4f}" for run in runs))


if __name__ == "__main__":
    main()
