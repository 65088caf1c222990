"""Compare ways to train on long-tailed MNIST, over seeds: `python examples/benchmarks/mnist.py --root DIR`.

Each run is `examples/train.py experiment=mnist` with a seed and a choice of `fair` or `baseline`, nothing else changed.
`--keep FILE` writes every result to a file as soon as it is there, and takes from it what it holds already.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from digits import CONF, QUIET, spread
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from recipes import configs
from recipes.report import SHOTS, Best, Report, make_report
from recipes.run import check, train
from systems import machine, markdown
from tqdm import tqdm

METHODS = ("off", "weighted_sampler", "default", "deferred", "hard_classes", "balanced_softmax")
SAMPLING = ("off", "weighted_sampler")  # what changes nothing but the draws; the better one is compared with


def choice(method: str) -> str:
    """Return the choice of config that a method is: a file of `conf/baseline` or of `conf/fair`.

    Raises:
        ValueError: If neither has it.
    """
    for group in ("baseline", "fair"):
        if (CONF / group / f"{method}.yaml").is_file():
            return f"{group}={method}"
    known = sorted(path.stem for group in ("baseline", "fair") for path in (CONF / group).glob("*.yaml"))
    raise ValueError(f"There is no method {method!r}. Methods: {', '.join(known)}.")


class Kept:
    """The results of a file, one a line; without a file they are not kept.

    Args:
        path: The file, or None. It is made where it is absent. It knows nothing of the code: begin a new one after
            a change.
        settings: What all runs share. A result counts only for the settings it was made with.
    """

    def __init__(self, path: Path | None, settings: Sequence[str]) -> None:
        self.path, self.settings = path, list(settings)
        self._found: dict[tuple[str, int], Report] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
            try:
                run = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or half written
            if run["settings"] == self.settings:
                self._found[run["method"], run["seed"]] = _report(run["report"])

    def get(self, method: str, seed: int) -> Report | None:
        """Return the result of a run, or None if there is none yet."""
        return self._found.get((method, seed))

    def add(self, method: str, seed: int, report: Report) -> None:
        """Keep the result of a run, at once."""
        self._found[method, seed] = report
        if self.path:
            run = {"method": method, "seed": seed, "settings": self.settings, "report": asdict(report)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                # The line before may have no end, if it was being written when the run was ended.
                file.write("\n" + json.dumps(run, default=lambda array: array.tolist()) + "\n")


def _report(fields: dict[str, Any]) -> Report:
    best = fields.pop("best")
    return make_report(**fields, best=Best(**best) if best else None)


def run_all(methods: Sequence[str], seeds: Sequence[int], kept: Kept) -> dict[str, list[Report]]:
    """Return the reports of the runs: for each method one a seed."""
    configs.register()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        # All of them first, so that a wrong name ends it before the first run; by seed, so that every method has
        # as many results when it is ended.
        runs = {(method, seed): _composed(method, seed, folder, kept.settings) for seed in seeds for method in methods}
        for (method, seed), cfg in _progress(runs):
            if kept.get(method, seed) is None:
                kept.add(method, seed, train(cfg))
    return {method: [kept.get(method, seed) for seed in seeds] for method in methods}  # type: ignore[misc]


def _composed(method: str, seed: int, folder: str, settings: Sequence[str]) -> DictConfig:
    cfg = compose("train", overrides=[choice(method), f"seed={seed}", *settings, *QUIET])
    cfg.output_dir = folder
    check(cfg)
    return cfg


def _progress(runs: dict[tuple[str, int], DictConfig]) -> Iterator[tuple[tuple[str, int], DictConfig]]:
    bar = tqdm(runs.items(), desc="runs")
    for run, cfg in bar:
        bar.set_postfix_str(f"{run[0]}, seed {run[1]}")
        yield run, cfg


def paired(values: Sequence[float], others: Sequence[float]) -> str:
    """Return the differences of runs with the same seed: mean ± sample deviation, and in how many the first wins."""
    differences = np.asarray(values) - np.asarray(others)
    mean, _, deviation = spread(differences.tolist(), 3).partition(" ")
    return f"{float(mean):+.3f} {deviation}".rstrip() + f", {int((differences > 0).sum())} of {differences.size} higher"


def best_sampling(reports: dict[str, list[Report]]) -> str | None:
    """Return the sampling baseline with the highest mean balanced accuracy; None where none was run."""
    found = {
        method: np.mean([run.balanced_accuracy for run in reports[method]]) for method in SAMPLING if method in reports
    }
    return max(found, key=lambda method: found[method]) if found else None


def table(reports: dict[str, list[Report]]) -> str:
    """Return the Markdown table, a row for each method."""
    images = next(iter(reports.values()))[0].images  # those of every run
    shots = [name for name, recall in next(iter(reports.values()))[0].shots.items() if not np.isnan(recall)]
    best = best_sampling(reports)
    header = ["test after the last epoch", "balanced accuracy"]
    header += [f"against `{choice(best)}`, seed by seed"] if best else []
    for name in shots:
        low, high = SHOTS[name]
        group = (images >= low) & (images <= (images.max() if high is None else high))
        sizes = " to ".join(str(size) for size in sorted({images[group].max(), images[group].min()}, reverse=True))
        header.append(f"{name}-shot (images: {sizes})")
    header.append("accuracy at the training mix")
    rows = []
    for method, runs in reports.items():
        balanced = [run.balanced_accuracy for run in runs]
        row = [f"`{choice(method)}`", spread(balanced, 3)]
        if best:
            row.append("-" if method == best else paired(balanced, [run.balanced_accuracy for run in reports[best]]))
        row += [spread([run.shots[name] for run in runs], 3) for name in shots]
        rows.append([*row, spread([run.prior_accuracy for run in runs], 3)])
    return markdown(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder with MNIST/raw/ (default: data, downloaded there)")
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, help=f"of conf/fair, conf/baseline ({' '.join(METHODS)})"
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 (default: 5)")
    parser.add_argument("--epochs", type=int, help="of each run (default: the experiment's)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="results of finished runs, to go on from")
    parser.add_argument("--overrides", nargs="+", default=[], help="for every run, such as data.imbalance_ratio=50")
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
    kept = Kept(args.keep, ["experiment=mnist", f"data.root={args.root}", *epochs, *args.overrides])
    reports = run_all(args.methods, range(1, args.seeds + 1), kept)
    print(f"\nSeeds 1 to {args.seeds}, mean ± sample standard deviation over them")
    print(f"{machine()}\n")
    print(table(reports))
    for method, runs in reports.items():
        print(f"{method}: balanced accuracy seed by seed " + ", ".join(f"{run.balanced_accuracy:.4f}" for run in runs))


if __name__ == "__main__":
    main()
