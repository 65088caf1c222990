"""The example of groups."""

import pytest
from lightning_helpers import warnings_about
from recipe_helpers import process_settings_restored


@pytest.mark.slow
def test_table_of_groups_is_printed(load, capsys):
    """Balancing the groups helps the two that contradict the background, and the plugin warns of nothing."""
    with process_settings_restored(), warnings_about("FairSampling") as warned:
        load("groups").main(["--seeds", "1", "--epochs", "8"])
    assert warned == []
    rows = capsys.readouterr().out.splitlines()[-6:]
    accuracy = {row[:12]: [float(cell) for cell in row[13:].split()[::3]] for row in rows}
    for group in ("0-4 on gray ", "5-9 on black"):
        without, balanced = accuracy[group]
        assert balanced > without + 0.1
