"""Arrays, labels and class mixes, used by every other folder."""
