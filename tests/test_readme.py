"""The README's code runs, from top to bottom, as one program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run_as_one_program(tmp_path, monkeypatch):
    if not README.exists():
        pytest.skip("the README is not part of an installed package")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), str(README), "exec"), {"__name__": "readme"})


def test_pictures_that_are_shown_are_there():
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text())
    assert shown
    for path in shown:
        assert (README.parent / path).is_file(), path
