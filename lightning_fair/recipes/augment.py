"""Random distortions of small images, a whole batch at a time."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class RandomWarp(nn.Module):
    """Shifts each image of a batch at random, and turns, scales and slants it a little.

    A random affine map of its own for every image, from torch's global generator. On tensors that are on the
    device already it costs far less than a transform of each sample in the data set.

    Args:
        shift: Largest shift along each axis, as a share of the image, in [0, 1]; 1/8 is one pixel of 8.
        distort: Largest change of each of the four entries of the identity matrix, in [0, 1).

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> RandomWarp()(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(self, shift: float = 0.125, distort: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= shift <= 1.0:
            raise ValueError(f"shift must lie in [0, 1], a share of the image, got {shift}.")
        if not 0.0 <= distort < 1.0:
            raise ValueError(f"distort must lie in [0, 1), got {distort}.")
        self.shift = shift
        self.distort = distort

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the warped images, shape ``(batch, channels, H, W)`` as given."""
        noise = 2.0 * torch.rand(len(x), 2, 3, device=x.device, dtype=x.dtype) - 1.0
        # affine_grid measures the image from -1 to 1, so a share of it counts double.
        scale = torch.tensor([self.distort, self.distort, 2.0 * self.shift], device=x.device, dtype=x.dtype)
        maps = torch.eye(2, 3, device=x.device, dtype=x.dtype) + noise * scale
        grid = F.affine_grid(maps, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
