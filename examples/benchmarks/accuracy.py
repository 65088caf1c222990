"""Compare methods on many kinds of data, over seeds: `python examples/benchmarks/accuracy.py --root DIR`.

Each finished run is a line of `accuracy.jsonl`, beside this file, and is not repeated. The tables and the picture are
made from these lines. `--check` trains nothing, and compares the tables with those in README.md, beside this file.
DIR holds `MNIST/raw/`, and `cifar-10-batches-py/` or a file `cifar10.npz` of arrays (see `conf/data/arrays.yaml`).
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import torch
from benchmarks.systems import machine
from benchmarks.trials import drift, groups, images, labels, tabular
from benchmarks.trials.figure import cannot_plot, plot
from benchmarks.trials.results import Key, Results, Trial, to_markdown
from tqdm import tqdm

FILE, README = (Path(__file__).with_name(name) for name in ("accuracy.jsonl", "README.md"))
LOSSES = ("class_weights", "drw", "focal", "balanced_softmax", "logit_adjustment")
PRESETS = ("balanced", "deferred", "long_tail", "worst_class", "worst_class_train")
CALIBRATION = ("calibrated", "prior_weights")
TRAIN_ADDED = f"worst_class_train{images.ADDED}"
MAIN = ("plain", "weighted_sampler", "balanced_softmax", "long_tail", "worst_class")
ADDED = tuple(f"{name}{images.ADDED}" for name in ("weighted_sampler", "balanced_softmax", "long_tail"))
STEP = (*MAIN, "class_weights", "drw", "focal")
GAIN, REPEATS, SQRT = "worst_class_gain_10", "long_tail_64_repeats", "sqrt_to_prior"
ALL = ("plain", "weighted_sampler", *LOSSES, *PRESETS, REPEATS, GAIN, *CALIBRATION, *ADDED, TRAIN_ADDED)
FRESH = ("plain", "weighted_sampler", "balanced", REPEATS, "long_tail", "worst_class")
ON_CIFAR = (*MAIN, "balanced", "calibrated", REPEATS, GAIN, *ADDED)
POWERS = tuple(f"{images.POWER}{t:g}" for t in (0.0, 0.25, 0.5, 0.75, 1.0))


def _images(data: str, title: str, methods: Sequence[str], *, seeds: int | range, minutes: float) -> Trial:
    return Trial(
        title=title,
        methods=methods,
        seeds=range(1, seeds + 1) if isinstance(seeds, int) else seeds,
        run=partial(images.run, data),
        rows=images.rows,
        baselines=("weighted_sampler",),
        compared=(images.BALANCED, images.WORST),
        minutes=minutes,
    )


def _repeats(data: str, title: str, *, seeds: int, minutes: float) -> Trial:
    trial = _images(data, f"repeats: {title}", (*POWERS, SQRT), seeds=seeds, minutes=minutes)
    return replace(trial, rows=images.repeat_rows, baselines=(f"{images.POWER}0.5",))


def _tabular(title: str, noise: float, methods: Sequence[str]) -> Trial:
    return Trial(
        title=f"table of two classes at 99.5 to 0.5, {title}",
        methods=methods,
        seeds=range(1, 21),
        run=partial(tabular.run, noise=noise),
        rows=tabular.rows,
        baselines=("plain",),
        compared=("average precision",),
        minutes=0.1,
    )


def _labels(epochs: int, methods: Sequence[str], minutes: float) -> Trial:
    return Trial(
        title=f"digits on canvases, several labels, ratio 100, {epochs} epochs",
        methods=methods,
        seeds=range(1, 6),
        run=partial(labels.run, epochs=epochs),
        rows=labels.rows,
        baselines=(labels.PLAIN, labels.RAREST_LABEL),
        compared=(labels.MEAN, labels.RAREST),
        minutes=minutes,
    )


CIFAR = "CIFAR-10-LT, ratio 100, small network"
TRIALS: dict[str, Trial] = {
    "digits_10": _images("digits_10", "digits, ratio 100, 10 epochs", ALL, seeds=20, minutes=0.05),
    "digits_80": _images("digits_80", "digits, ratio 100, 80 epochs", (*MAIN, GAIN, *ADDED), seeds=20, minutes=0.15),
    "mnist_exp": _images("mnist_exp", "MNIST, ratio 100, 3 epochs", ALL, seeds=5, minutes=0.4),
    "mnist_fresh": _images("mnist_exp", "MNIST, seeds that decided nothing", FRESH, seeds=range(6, 11), minutes=0.4),
    "mnist_step": _images("mnist_step", "MNIST, two sizes, ratio 100, 3 epochs", STEP, seeds=5, minutes=0.8),
    "cifar_12": _images("cifar_12", f"{CIFAR}, 12 epochs", ON_CIFAR, seeds=3, minutes=2.8),
    "cifar_40": _images("cifar_40", f"{CIFAR}, 40 epochs", (*MAIN[1:], REPEATS, SQRT), seeds=2, minutes=9.2),
    "repeats_digits_10": _repeats("digits_10", "digits, 10 epochs, rarest class 1 image", seeds=6, minutes=0.05),
    "repeats_digits_80": _repeats("digits_80", "digits, 80 epochs, rarest class 1 image", seeds=6, minutes=0.15),
    "repeats_mnist_10": _repeats("mnist_5_images", "MNIST, 10 epochs, rarest class 5 images", seeds=3, minutes=0.3),
    "repeats_mnist_40": _repeats("mnist_5_images_long", "MNIST, 40 epochs, rarest class 5", seeds=3, minutes=1.0),
    "tabular": _tabular("1 % of the labels wrong", 0.01, tuple(tabular.METHODS)),
    "tabular_clean": _tabular("no wrong labels", 0.0, tuple(tabular.METHODS)),
    "groups": Trial(
        title="colored MNIST, four groups, 99 to 1 in each class",
        methods=tuple(groups.METHODS),
        seeds=range(1, 6),
        run=groups.run,
        rows=groups.rows,
        baselines=("group_dro_0.01",),
        compared=(groups.WORST,),
        minutes=0.15,
    ),
    "labels_10": _labels(10, tuple(labels.METHODS), minutes=0.15),
    "labels_30": _labels(30, tuple(labels.METHODS)[:4], minutes=0.5),
    "drift": Trial(
        title="a stream of MNIST in twenty turns, each reverses the long tail",
        methods=tuple(drift.METHODS),
        seeds=range(1, 6),
        run=drift.run,
        rows=drift.rows,
        baselines=("plain",),
        compared=("mean after turns",),
        minutes=0.3,
    ),
}


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that was."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def train_once(key: Key, root: Path) -> tuple[dict[str, Any], float]:
    """Return the numbers of a run and its seconds, in a process of its own with one thread."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    data, method, seed = key
    return TRIALS[data].run(method, seed, root), time.perf_counter() - begin


def run_all(keys: Iterable[Key], results: Results, root: Path, processes: int) -> list[str]:
    """Run side by side what the results do not have yet, and return the runs that failed, with their errors."""
    todo = [key for key in keys if key not in results.runs]
    failed: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=end_with_parent) as pool:
        running: dict[Future[Any], Key] = {}
        for done in tqdm(range(len(todo)), desc="runs"):
            # Only as many as there are processes, so that Ctrl-C leaves none that are still to begin.
            for key in todo[done + len(running) :][: processes - len(running)]:
                running[pool.submit(train_once, key, root)] = key
            future = next(as_completed(running))
            key = running.pop(future)
            if error := future.exception():
                failed.append(f"{' '.join(map(str, key))}: {error}")
            else:
                results.add(key, *future.result())
    return failed


def check(texts: dict[str, str], readme: str) -> list[str]:
    """Return the data whose whole table is not in the README word by word."""
    return [name for name, text in texts.items() if f"\n\n{text}\n\n" not in readme]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: data)")
    parser.add_argument(
        "--data", nargs="+", choices=TRIALS, default=list(TRIALS), metavar="DATA", help=" ".join(TRIALS)
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="run only these")
    parser.add_argument("--seeds", type=int, help="run only the first so many seeds")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs side by side (default: one a core)")
    parser.add_argument(
        "--results", type=Path, default=FILE, metavar="FILE", help="finished runs (default: beside this)"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also plot balanced accuracy and worst class")
    parser.add_argument("--check", action="store_true", help="train nothing; compare the tables with README.md")
    args = parser.parse_args(argv)
    for name in ("seeds", "processes"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    known = {method for data in args.data for method in TRIALS[data].methods}
    if unknown := set(args.methods or ()) - known:
        parser.error(f"unknown method: {', '.join(sorted(unknown))}. Methods: {', '.join(sorted(known))}")
    if args.figure and (problem := cannot_plot(args.figure)):  # known before the hours of the runs
        parser.error(f"--figure {args.figure}: {problem}")
    results = Results(args.results)
    failed: list[str] = []
    if not args.check:
        failed = run_all(wanted(args.data, args.methods, args.seeds), results, args.root.resolve(), args.processes)
    tables = {data: results.table(data, TRIALS[data]) for data in args.data}
    texts = {data: to_markdown(table, TRIALS[data]) if table else "Not run yet." for data, table in tables.items()}
    for data, text in texts.items():
        print(f"\n{TRIALS[data].title} (--data {data})\n\n{text}")
    print(f"\nThis machine: {machine()}")
    if args.figure:
        plot(tables, {data: TRIALS[data].title for data in tables}, args.figure)
    if failed:
        parser.exit(1, "Runs that failed:\n" + "\n".join(failed) + "\n")
    if args.check and (stale := check(texts, README.read_text(encoding="utf-8"))):
        parser.exit(1, f"README.md has other tables of: {', '.join(stale)}\n")


def wanted(data: Sequence[str], methods: Sequence[str] | None, seeds: int | None) -> list[Key]:
    """Return the runs, seed by seed, so that an interrupted benchmark has results of every method."""
    keys = [
        (name, method, seed)
        for name in data
        for seed in TRIALS[name].seeds[:seeds]
        for method in TRIALS[name].methods
        if not methods or method in methods
    ]
    # The longest first, so that the cores finish together.
    return sorted(keys, key=lambda key: -TRIALS[key[0]].minutes)


if __name__ == "__main__":
    main()
