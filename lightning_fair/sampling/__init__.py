"""Batches of indices with the class mix that the controller asks for."""
