"""Batches of integers from a range, least used first."""
