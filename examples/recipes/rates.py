"""Learning rates over the epochs."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_up_and_drop(
    optimizer: Optimizer, warm_up: int = 5, drops: Sequence[int] = (160, 180), factor: float = 0.01
) -> LambdaLR:
    """Return a scheduler that raises the learning rate at first, and lowers it at stated epochs.

    Epoch ``e``, from 0, has the optimiser's rate times ``(e + 1) / warm_up`` up to 1, and times ``factor`` for each
    drop that is at or before ``e``. The defaults are the recipe of the long-tailed CIFAR protocols, for 200 epochs.

    Args:
        optimizer: With the rate to reach.
        warm_up: Epochs until the full rate, at least 0.
        drops: Epochs from which on the rate is lowered, each at least 1.
        factor: What a drop multiplies the rate by, positive.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        K. Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019), their code.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> scheduler = warm_up_and_drop(optimizer)
        >>> [round(0.1 * scheduler.lr_lambdas[0](epoch), 5) for epoch in (0, 4, 159, 160, 180)]
        [0.02, 0.1, 0.1, 0.001, 1e-05]
    """
    if warm_up < 0:
        raise ValueError(f"warm_up must be at least 0 epochs, got {warm_up}.")
    if min(drops, default=1) < 1:
        raise ValueError(f"drops must be epochs of at least 1, got {list(drops)}. A lower rate from the start is lr.")
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}.")

    def share(epoch: int) -> float:
        rising = min((epoch + 1) / warm_up, 1.0) if warm_up else 1.0
        return float(rising * factor ** sum(epoch >= drop for drop in drops))

    return LambdaLR(optimizer, share)
