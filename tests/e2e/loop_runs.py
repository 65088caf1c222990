"""Runs a program, and writes the draws of its rank into a folder if it is started as a process."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_fair import FeedbackController
from lightning_fair.sampling.batch_draw import BatchDraw


def run_program(code: str, values: Mapping[str, Any] = {}) -> tuple[dict[str, Any], list[BatchDraw]]:
    """Run a program, and return its variables and draws."""
    draws: list[BatchDraw] = []
    record_draw = FeedbackController.record_draw

    def recorded(controller: FeedbackController, draw: BatchDraw, **settings: Any) -> None:
        draws.append(draw)
        record_draw(controller, draw, **settings)

    variables = {"__name__": "__main__", **values}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedbackController, "record_draw", recorded)
        exec(compile(code, "program", "exec"), variables)
    return variables, draws


if __name__ == "__main__":
    program, folder = map(Path, sys.argv[1:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draws = run_program(program.read_text())[1]
    record = {
        "probs": [draw.probs for draw in draws],
        "indices": [draw.indices for draw in draws],
        "counts": [draw.counts for draw in draws],
        "warnings": [str(warning.message) for warning in caught],
    }
    (folder / f"rank{os.environ.get('LOCAL_RANK', 0)}").write_bytes(pickle.dumps(record))
