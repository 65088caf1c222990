"""Folders of sweeps, for the tests of the examples."""

import json

from omegaconf import OmegaConf


def result(value, **more):
    """The content of a report.json."""
    metrics = {"balanced_accuracy": value, "worst_class_recall": value / 2, "accuracy": value, "largest_weight": 1.5}
    return {"status": "done", "metrics": {**metrics, **more}, "recall": {"cat": value, "dog": value}, "seconds": 1.0}


def save_sweep(folder, runs):
    """Save the folder of a sweep: for each run its overrides, and its result, a text, or nothing."""
    for index, (overrides, outcome) in enumerate(runs):
        hydra = folder / str(index) / ".hydra"
        hydra.mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(overrides.split()), hydra / "overrides.yaml")
        if outcome is not None:
            text = outcome if isinstance(outcome, str) else json.dumps(outcome)
            (folder / str(index) / "report.json").write_text(text)
    return folder


def grid(folder, seeds=(1,)):
    """A sweep of 2 x 3 settings: 0.50 and 0.60 by alpha, 0.00 to 0.02 by min_prob, and a hundredth more a seed."""
    runs = [
        (f"experiment=digits fair.alpha={a} fair.min_prob={m} seed={s}", result(0.5 + 0.1 * i + 0.01 * j + 0.01 * s))
        for i, a in enumerate((8, 24))
        for j, m in enumerate(("1e-6", "1e-3", "1e-2"))
        for s in seeds
    ]
    return save_sweep(folder, runs)
