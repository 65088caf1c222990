"""What the runs of `accuracy.py` are."""
