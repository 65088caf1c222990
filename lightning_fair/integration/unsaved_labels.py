"""Labels that settings from a checkpoint or another process do not have."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UnsavedLabels:
    """Stands for label values or a function in settings that come from a checkpoint or another process.

    Attributes:
        kind: What the labels were.
    """

    kind: str

    @classmethod
    def of(cls, labels: Any) -> UnsavedLabels:
        """Return the stand-in for ``labels``, which are values, a function, or a stand-in already."""
        if isinstance(labels, cls):
            return labels
        return cls("a function of the data set" if callable(labels) else f"{len(labels)} values")

    def __call__(self, dataset: object) -> Any:  # noqa: ARG002
        """Raise a ``ValueError``, at the place where a function would return the labels."""
        raise ValueError(
            f"The labels of this FairSampling were {self.kind}. A checkpoint does not hold them, and another process "
            "does not get a function that cannot be pickled, such as a lambda. Train with a new "
            "FairSampling(labels=...)."
        )


def is_picklable(value: Any) -> bool:
    """Return whether another process can get the value."""
    try:
        pickle.dumps(value)
    except Exception:  # of several kinds
        return False
    return True
