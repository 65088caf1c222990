"""Programs that are run by a test, or by processes that train together, and records of their draws."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from lightning_fair import FeedbackController
from lightning_fair.sampling.batch_draw import BatchDraw


@dataclass
class Draws:
    """The records of one rank, one entry for each draw, and the warnings of lightning-fair about ranks."""

    probs: list[np.ndarray] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)
    indices: list[list[int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run_program(code: str, values: Mapping[str, Any] = MappingProxyType({})) -> tuple[dict[str, Any], Draws]:
    """Run a program that knows these values, and return its variables and draws."""
    draws = Draws()
    record_draw = FeedbackController.record_draw

    def recorded(controller: FeedbackController, draw: BatchDraw, **settings: Any) -> None:
        draws.probs.append(draw.probs)
        draws.counts.append(draw.counts)
        draws.indices.append(draw.indices)
        record_draw(controller, draw, **settings)

    variables = {"__name__": "__main__", **values}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedbackController, "record_draw", recorded)
        exec(compile(code, "program", "exec"), variables)
    return variables, draws


def run_on_rank(world_size: int, code: str, folder: Path) -> Draws:
    """Run a program in one of several processes, as a launcher starts it."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.chdir(folder)
        patch.setenv("RANK", os.environ["LOCAL_RANK"])
        patch.setenv("WORLD_SIZE", str(world_size))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        try:
            draws = run_program(code)[1]
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
    messages = [str(warning.message) for warning in caught]
    draws.warnings = [message for message in messages if "rank" in message and "draw" in message]
    return draws
