"""Train on the long-tailed digits with the plugin and without, over seeds: `python examples/benchmarks/digits.py`.

Each run is `examples/train.py` with a seed and a choice of `fair`; nothing else differs. The printed table depends only
on the seeds and the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import numpy as np
from benchmarks.systems import machine, markdown
from hydra import compose, initialize_config_dir
from recipes import configs
from recipes.report import Report, mean_std
from recipes.training import train
from tqdm import tqdm

CONF = Path(__file__).resolve().parents[2] / "conf"
QUIET = ("logger=none", "trainer.enable_progress_bar=false")


def run_all(fair: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> list[list[Report]]:
    """Return the reports: for each choice of ``fair`` one a seed."""
    configs.register()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        settings = [f"output_dir={folder}", *QUIET, *overrides]
        # All configs first, so that a wrong name is an error before the first run.
        runs = [compose("train", [f"fair={name}", f"seed={seed}", *settings]) for name in fair for seed in seeds]
        reports = [train(cfg) for cfg in tqdm(runs, desc="runs")]
    return [reports[start : start + len(seeds)] for start in range(0, len(reports), len(seeds))]


def table(fair: Sequence[str], reports: Sequence[Sequence[Report]]) -> str:
    """Return the Markdown table, a column for each choice of ``fair``."""
    images = reports[0][0].images  # the same in every run
    by_size = np.argsort(-images, kind="stable")
    rows = []

    def add_row(name: str, value: Callable[[Report], float], digits: int = 3, unit: str = "") -> None:
        rows.append([name, *(mean_std([value(run) for run in runs], digits, unit) for runs in reports)])

    add_row("balanced accuracy", lambda run: run.balanced_accuracy)
    add_row("plain accuracy", lambda run: run.accuracy)
    add_row("accuracy at the long tail's own mix", lambda run: run.prior_accuracy)
    for name, group in (
        ("the three largest classes", by_size[:3]),
        ("the four smallest classes", by_size[-4:]),
        ("the classes with a single image", np.flatnonzero(images == 1)),
    ):
        if group.size:
            sizes = ", ".join(map(str, images[group]))
            add_row(f"recall of {name} (images: {sizes})", lambda run, group=group: run.recall[group].mean())
    for name, c in (("largest", by_size[0]), ("smallest", by_size[-1])):
        add_row(f"share of the draws, {name} class", lambda run, c=c: 100 * run.share_of_draws[c], 1, " %")
    add_row("largest weight", lambda run: run.largest_weight, 2)
    add_row("effective sample size of the run, part of its samples", lambda run: run.effective_sample_size, 2)
    return markdown(["test after training", *(f"`fair={name}`" for name in fair)], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 1 (default: 5)")
    parser.add_argument("--fair", nargs="+", default=["off", "balanced"], help="names in conf/fair (off balanced)")
    parser.add_argument("--overrides", nargs="+", default=[], help="for every run, for example trainer.max_epochs=1")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    reports = run_all(args.fair, range(1, args.seeds + 1), args.overrides)
    print(f"\nSeeds 1 to {args.seeds}, mean ± sample standard deviation")
    print(f"{machine()}\n")
    print(table(args.fair, reports))
    by_seed = (
        f"{name} " + ", ".join(f"{run.balanced_accuracy:.3f}" for run in runs)
        for name, runs in zip(args.fair, reports, strict=True)
    )
    print(f"\nBalanced accuracy seed by seed: {'; '.join(by_seed)}")


if __name__ == "__main__":
    main()
