"""A hundred and twenty random combinations of loader, workers, ranks, schedules, feedback, correction and cut.

Each has its own test, whose number reproduces it: ``PYTHONPATH=tests python tests/e2e/fuzz_runs.py 17``. More of them:
``PYTHONPATH=tests python tests/e2e/fuzz_runs.py 120-999``.
"""

import pytest
from fuzz_runs import combination, faults

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", range(120))
def test_random_combination(number):
    """Weights belong to their draws, counts and uses are right, and neither workers nor a cut change a batch."""
    plan = combination(number)
    assert faults(plan) == [], plan
