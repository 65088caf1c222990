"""The scalars, charts and figures of a run."""
