"""The benchmark of overhead."""

import pytest
import torch


@pytest.mark.slow
def test_table_of_overhead_is_printed(load, capsys, monkeypatch):
    overhead = load("benchmarks.overhead")
    # Process-wide settings of the script: not those of the tests that follow.
    monkeypatch.setattr(overhead, "quiet", lambda: None)
    monkeypatch.setattr(overhead, "BATCH", 8)
    monkeypatch.setattr(overhead, "ITEMS", 6000)
    threads = torch.get_num_threads()
    try:
        overhead.main(["--rounds", "1", "--steps", "1"])
    finally:
        torch.set_num_threads(threads)
    assert "callback and mixin, K = 10, processor" in (printed := capsys.readouterr().out)
    assert "TensorBoard" in printed
    assert "nan" not in printed
