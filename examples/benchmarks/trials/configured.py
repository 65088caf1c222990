"""A run of `examples/train.py`, without its output."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
from hydra import compose, initialize_config_dir
from recipes import configs
from recipes.report import Report
from recipes.training import train

CONF = Path(__file__).resolve().parents[3] / "conf"
QUIET = ("logger=none", "trainer=cpu", "trainer.enable_progress_bar=false", "threads=1")


def train_quietly(overrides: Sequence[str], *callbacks: L.Callback) -> Report:
    """Train and test as `python examples/train.py OVERRIDES` does, with further callbacks."""
    configs.register()
    with (
        tempfile.TemporaryDirectory() as folder,
        initialize_config_dir(str(CONF), version_base="1.3"),
        _silence(),
    ):
        quiet = [*QUIET, f"output_dir={folder}"]
        return train(compose("train", [*overrides, *quiet]), *callbacks)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Show neither advice nor summaries, nor that a class of a stream is missing."""
    log = logging.getLogger("lightning_fair")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
