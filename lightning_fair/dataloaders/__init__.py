"""A ``DataLoader`` whose batches carry the record of their draw."""
