"""The pages for readers: their code runs, their links lead somewhere, their commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README, INSIDE = ROOT / "README.md", ROOT / "lightning_fair/README.md"
PATTERNS = ("README.md", "[a-z]*/README.md", "examples/*/README.md", ".github/*.md")
PAGES = [page for pattern in PATTERNS for page in sorted(ROOT.glob(pattern))]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
MAX_LINES, MAX_WORDS = 250, 1500

pytestmark = pytest.mark.skipif(not README.exists(), reason="The pages are not part of an installed package.")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return the commands of all pages: indented lines and inline code, each once."""
    unique: dict[str, None] = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
        code = [*re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE), *re.findall(r"`([^`\n]+)`", text)]
        unique |= dict.fromkeys(part.strip() for line in code for part in line.split("&&"))
    return [command for command in unique if re.match(r"([A-Z]+=\S+ )*(python|pytest|bash) ", command)]


def scripts(command: str) -> list[str]:
    """Return the files and folders of this repository that a command names."""
    folders = r"(?:examples|tests|conf|\.ci|lightning_fair)/"
    return [word for word in shlex.split(command) if re.match(folders, word)]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_python_blocks(tmp_path, monkeypatch):
    """The Python blocks of the README, then those of lightning_fair/README.md, run as one program."""
    code = [*blocks(README), *blocks(INSIDE)]
    assert len(code) >= 5
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(code), str(README), "exec"), {"__name__": "readme"})


def test_readme_size():
    """The README stays short: what a later issue adds to it, it takes from elsewhere in it."""
    text = README.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.split()) <= MAX_WORDS


@pytest.mark.parametrize(
    "command",
    [
        'pip install -e ".[examples]" && python examples/compare.py',
        'pip install -e ".[dev]" && pytest',
        'pytest -m "" -n 2',
    ],
)
def test_set_up_commands(command):
    """Set-up and test commands stand in the README word for word, first on a line of their own: `.ci/run` runs them."""
    first = next(line for line in README.read_text().splitlines() if command in line)
    assert first.startswith("    ")
    assert first.split("  #")[0].strip() == command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page):
    """Pictures and relative links lead to files of the repository, and to headings that exist."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_commands_name_files():
    """Every script, test file and folder that a command names exists."""
    named = {path for command in commands() for path in scripts(command)}
    assert {"examples/train.py", "examples/benchmarks/draws.py", ".ci/run"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("form", FORMS, ids=name)
def test_issue_forms(form):
    """Each issue form has the keys that GitHub wants: a name, a description, and fields with unique identifiers."""
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert content.keys() <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= content.keys() <= {"name", "description", "title", "labels", "body"}
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in fields:
        assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert field.keys() <= {"type", "id", "attributes", "validations"}
        assert isinstance(field["attributes"]["label"], str)


# -- commands ------------------------------------------------------------------------------------------------

TRAIN = [command for command in commands() if re.match(r"python examples/(train|compare)\.py", command)]
SCRIPTS = sorted({path for command in commands() for path in scripts(command) if re.match(r"examples/.*\.py$", path)})


def test_train_commands(load):
    """The settings in every training command of the pages exist and have the right types; in a sweep, the first."""
    hydra = pytest.importorskip("hydra")
    load("train")
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for command in TRAIN:
            words = [word for word in shlex.split(command)[2:] if not re.match(r"-|[A-Z]|\S+=(interval|tag)\(", word)]
            assert hydra.compose("train", [re.sub(r",.*", "", word) for word in words]), command


# Each in a process of its own, as a command starts it; what all of them import is imported once.
START = """
import os, runpy, sys
import lightning.pytorch, torchmetrics
for script in sys.argv[1:]:
    if not os.fork():
        sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    assert os.wait()[1] == 0, script
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_scripts_start():
    """Every script that a page names starts from the root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", START, *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
