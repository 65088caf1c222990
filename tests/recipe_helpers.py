"""Small data sets on disk, and scripts that run as a user runs them, for the tests of the examples."""

import gzip
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]


def write_idx(path, array, packed):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def fake_mnist(root, packed):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, each in (("train", 30), ("t10k", 4)):
        labels = rng.permutation(np.repeat(np.arange(10), each))
        images = np.broadcast_to(labels[:, None, None] * 25, (labels.size, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", images, packed)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels, packed)
    return raw


def run_script(name, folder, *arguments, columns=200):
    """Run a script of examples/ in ``folder``, as a user would."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )


@contextmanager
def process_settings_restored():
    """Restore the settings of the process that a training changes."""
    logger = logging.getLogger("lightning.pytorch")
    threads, level = torch.get_num_threads(), logger.level
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")  # so that the end of the test removes the values of seed_everything
        yield
    torch.set_num_threads(threads)
    logger.setLevel(level)
