import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path

# Before torch is imported: the networks here are so small that threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Tests do not write to the user's cache of scanned labels.
CACHE = tempfile.TemporaryDirectory(prefix="lightning_fair_")
os.environ["LIGHTNING_FAIR_CACHE"] = CACHE.name

settings.register_profile("local", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def sigint_counts():
    """A shell lets what it starts in the background ignore SIGINT: pytest, and what that starts."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def load():
    """Import a script again, as a new module."""
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")) or name == "benchmarks":
            del sys.modules[name]
