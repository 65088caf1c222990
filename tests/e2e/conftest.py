import pytest
from rank_runs import Ranks


@pytest.fixture(scope="session")
def two():
    """Two processes for the tests of all modules, since a start takes seconds."""
    ranks = Ranks(2)
    yield ranks
    ranks.end()
