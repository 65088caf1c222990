"""What holds for the package as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lightning_fair

PACKAGE = Path(lightning_fair.__file__).parent


@pytest.mark.slow
def test_import_stays_light():
    heavy = ("lightning", "hydra", "gradio", "torchvision", "matplotlib")
    code = f"import sys, lightning_fair; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_public_name_has_a_docstring():
    for name in lightning_fair.__all__:
        assert getattr(lightning_fair, name).__doc__


def test_only_one_file_uses_torch_distributed():
    knowing = [path.name for path in PACKAGE.rglob("*.py") if "torch.distributed" in path.read_text()]
    assert knowing == ["distributed.py"]
