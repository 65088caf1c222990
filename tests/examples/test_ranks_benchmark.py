"""The benchmark of many ranks."""

import torch


def test_table_of_ranks_is_printed(load, capsys):
    """Every rank costs the same memory and bytes, and the shares together are the batches of one process."""
    threads = torch.get_num_threads()
    try:
        load("benchmarks.ranks").main(["--samples", "4000", "--classes", "4", "--ranks", "1", "8", "--checked", "4000"])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| 4")]
    assert [row[1:3] for row in rows] == [["1", "64"], ["8", "512"]]
    assert {row[6] for row in rows} == {"60"}
    assert "8 ranks: 0 of 5 draws differ from the batch of one process." in printed
