"""Does it help? Train with many methods on many data sets, over seeds: `python examples/benchmarks/accuracy.py --root DIR`.

Each finished run is a line of `accuracy.jsonl`, beside this file, and is not repeated. The tables and the picture are
made from these lines; `--check` trains nothing, and compares the tables with those of the README of the benchmarks.
DIR holds `MNIST/raw/`, and `cifar-10-batches-py/` or a file `cifar10.npz` of arrays (see `conf/data/arrays.yaml`).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import torch
from benchmarks.trials import images
from tqdm import tqdm

FILE = Path(__file__).with_name("accuracy.jsonl")
Key = tuple[str, str, int]  # data, method, seed


@dataclass(frozen=True)
class Trial:
    """Runs on one kind of data.

    Attributes:
        methods: Names of the methods.
        seeds: Number of seeds, from 1.
    """

    methods: Sequence[str]
    seeds: int


class Results:
    """Numbers of finished runs, in a file of JSON lines.

    Args:
        path: The file; it need not exist. Begin a new file after a change of the code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[Key, dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                run = json.loads(line)
            except json.JSONDecodeError:
                continue  # empty, or half written
            self.runs[run["data"], run["method"], run["seed"]] = run["numbers"]

    def add(self, key: Key, numbers: dict[str, Any], seconds: float) -> None:
        """Store the numbers of a run, and append them to the file."""
        self.runs[key] = numbers
        run = dict(zip(("data", "method", "seed"), key, strict=True)) | {"seconds": round(seconds), "numbers": numbers}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # A newline first if an interrupted run has left half a line.
            file.write("\n" * _ends_within_line(self.path) + json.dumps(_rounded(run)) + "\n")


def _ends_within_line(path: Path) -> bool:
    content = path.read_bytes()
    return bool(content) and not content.endswith(b"\n")


def _rounded(value: Any) -> Any:
    """Return nested numbers with five digits after the point."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def train_once(key: Key, root: Path) -> tuple[dict[str, Any], float]:
    """Return the numbers of a run and its seconds, in a process of its own with one thread."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    data, method, seed = key
    return images.run(data, method, seed, root), time.perf_counter() - begin


def run_all(keys: Iterable[Key], results: Results, root: Path, processes: int) -> None:
    """Run what the results do not have yet, side by side."""
    keys = [key for key in keys if key not in results.runs]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        futures = {pool.submit(train_once, key, root): key for key in keys}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
                results.add(futures[future], *future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: data)")
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs side by side (default: one a core)")
    parser.add_argument("--results", type=Path, default=FILE, help="file of the finished runs")
    args = parser.parse_args(argv)
    results = Results(args.results)
    keys = [(data, method, seed) for seed in args.seeds for data in args.data for method in args.methods]
    run_all(keys, results, args.root.resolve(), args.processes)


if __name__ == "__main__":
    main()
