"""The benchmark of the label check."""

import pytest
import torch


@pytest.mark.slow
def test_table_of_the_check_is_printed(load, capsys, monkeypatch):
    script = load("benchmarks.label_check")
    monkeypatch.setattr(script, "quiet", lambda: None)  # settings of the process
    threads = torch.get_num_threads()
    try:
        script.main(["--rounds", "1", "--batches", "6"])
    finally:
        torch.set_num_threads(threads)
    table = capsys.readouterr().out
    assert "as drawn, 4 of 6 batches compared" in table
    assert "sorted, 6 of 6 batches compared" in table
    assert "nan" not in table
