"""Learning rates over the epochs."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR


def warm_up_and_drop(
    optimizer: Optimizer, warm_up: int = 5, drops: Sequence[int] = (160, 180), factor: float = 0.01
) -> ChainedScheduler:
    """Return a scheduler that raises the learning rate linearly at first and multiplies it by a factor at some epochs.

    In epoch ``e``, from 0, the optimizer's rate is multiplied by ``min((e + 1) / warm_up, 1)`` and by ``factor`` for
    each drop at or before ``e``. The defaults are those of the long-tailed CIFAR protocols, for 200 epochs.

    Args:
        optimizer: Optimizer with the full learning rate.
        warm_up: Epochs until the full rate, at least 1; 1 starts with the full rate.
        drops: Epochs at which the rate drops, each at least 1.
        factor: Factor of a drop, positive.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        K. Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss" (2019), their code.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> scheduler = warm_up_and_drop(optimizer, warm_up=4)
        >>> scheduler.get_last_lr()
        [0.025]
    """
    if warm_up < 1:
        raise ValueError(f"warm_up must be at least 1 epoch, got {warm_up}. For no warm-up, pass 1.")
    if min(drops, default=1) < 1:
        raise ValueError(f"drops must be epochs of at least 1, got {list(drops)}. To start lower, set a lower lr.")
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}.")
    schedulers: list[LRScheduler] = [LinearLR(optimizer, start_factor=1 / warm_up, total_iters=warm_up - 1)]
    return ChainedScheduler([*schedulers, MultiStepLR(optimizer, list(drops), factor)])


def cosine(optimizer: Optimizer, epochs: int = 10) -> CosineAnnealingLR:
    """Return a schedule that takes the learning rate to 0 in half a cosine wave over the epochs.

    Args:
        optimizer: The optimizer.
        epochs: Epochs of the training, at least 1.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = cosine(optimizer, epochs=2)
        >>> optimizer.step()
        >>> schedule.step()
        >>> schedule.get_last_lr()
        [0.5]
    """
    return CosineAnnealingLR(optimizer, T_max=epochs)
