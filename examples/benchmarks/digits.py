"""Train on the long-tailed digits with the plugin and without, over seeds: `python examples/benchmarks/digits.py`.

Each run is `examples/train.py` with a seed and a choice of `fair`, nothing else changed. It prints the table of the
README, and is a function of the seeds on one machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from recipes import configs
from recipes.report import Report
from recipes.run import train
from systems import machine, markdown
from tqdm import tqdm

CONF = Path(__file__).resolve().parents[2] / "conf"
QUIET = ("logger=none", "trainer.enable_progress_bar=false")


def composed(fair: str, seed: int, folder: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config of one run, which writes to ``folder``."""
    cfg = compose("train", overrides=[f"fair={fair}", f"seed={seed}", *QUIET, *overrides])
    cfg.output_dir = folder
    return cfg


def run_all(fair: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> list[list[Report]]:
    """Return the reports of the runs: for each choice of ``fair`` one a seed."""
    configs.register()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        # All of them first, so that a wrong name ends it before the first run.
        runs = [composed(name, seed, folder, overrides) for name in fair for seed in seeds]
        reports = [train(cfg) for cfg in tqdm(runs, desc="runs")]
    return [reports[at : at + len(seeds)] for at in range(0, len(reports), len(seeds))]


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Return ``mean ± sample standard deviation``, or the mean alone where there is no spread to show."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {deviation:.{digits}f}" if deviation >= 0.5 * 10.0**-digits else "") + unit


def table(fair: Sequence[str], reports: Sequence[Sequence[Report]]) -> str:
    """Return the Markdown table, a column for each choice of ``fair``."""
    images = reports[0][0].images  # the tail's sizes are those of every run
    by_size = np.argsort(-images, kind="stable")
    groups = {
        "the three largest classes": by_size[:3],
        "the four smallest classes": by_size[-4:],
        "the classes with a single image": np.flatnonzero(images == 1),
    }
    rows = [
        ["balanced accuracy", *(spread([run.balanced_accuracy for run in runs], 3) for runs in reports)],
        ["plain accuracy", *(spread([run.accuracy for run in runs], 3) for runs in reports)],
        ["accuracy at the long tail's own mix", *(spread([run.prior_accuracy for run in runs], 3) for runs in reports)],
    ]
    for name, group in groups.items():
        if group.size:
            sizes = ", ".join(map(str, images[group]))
            cells = (spread([float(run.recall[group].mean()) for run in runs], 3) for runs in reports)
            rows.append([f"recall of {name} (images: {sizes})", *cells])
    for name, place in (("largest", by_size[0]), ("smallest", by_size[-1])):
        cells = (spread([100 * float(run.share_of_draws[place]) for run in runs], 1, " %") for runs in reports)
        rows.append([f"share of the draws, {name} class", *cells])
    rows += [
        ["largest weight", *(spread([run.largest_weight for run in runs], 2) for runs in reports)],
        [
            "effective sample size of a batch",
            *(spread([run.effective_sample_size for run in runs], 1) for runs in reports),
        ],
    ]
    return markdown(["test after training", *(f"`fair={name}`" for name in fair)], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 (default: 5)")
    parser.add_argument("--fair", nargs="+", default=["off", "default"], help="names in conf/fair (off default)")
    parser.add_argument("--overrides", nargs="+", default=[], help="for every run, such as trainer.max_epochs=1")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    reports = run_all(args.fair, range(1, args.seeds + 1), args.overrides)
    print(f"\nSeeds 1 to {args.seeds}, mean ± sample standard deviation over them")
    print(f"{machine()}\n")
    print(table(args.fair, reports))
    by_seed = (
        f"{name} " + ", ".join(f"{run.balanced_accuracy:.3f}" for run in runs)
        for name, runs in zip(args.fair, reports, strict=True)
    )
    print(f"\nBalanced accuracy seed by seed: {'; '.join(by_seed)}")


if __name__ == "__main__":
    main()
