"""The benchmark on the digits."""

import pytest
from recipe_helpers import process_settings_restored


@pytest.mark.slow
def test_table_of_digits_is_printed(load, capsys):
    short = ["trainer.max_epochs=1", "trainer.accelerator=cpu"]
    with process_settings_restored():
        load("benchmarks.digits").main(["--seeds", "1", "--overrides", *short])
    table = capsys.readouterr().out
    assert "| `fair=off` | `fair=balanced` |" in table
    assert "four smallest classes (images: 4, 2, 1, 1)" in table
    assert "| share of the draws, largest class | 41.3 % |" in table
    assert "| largest weight | 1.00 |" in table
    assert "seed by seed: off 0." in table
