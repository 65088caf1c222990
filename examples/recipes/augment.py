"""Random augmentation of small images, and standardization, for a whole batch at once.

torchvision's transforms draw one crop or warp for all images of a batch. Applied image by image, on one CPU thread, an
affine transform takes 60 times as long as :class:`RandomWarp` on a batch of digits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class RandomWarp(nn.Module):
    """Applies a random affine map to each image: a shift, and a small rotation, scaling and shear.

    Args:
        shift: Largest shift along each axis as a fraction of the image, in [0, 1]; 1/8 is one pixel of 8.
        distort: Largest change of each entry of the 2 x 2 identity matrix, in [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> RandomWarp()(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(self, shift: float = 0.125, distort: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= shift <= 1.0:
            raise ValueError(f"shift must lie in [0, 1], a fraction of the image, got {shift}.")
        if not 0.0 <= distort < 1.0:
            raise ValueError(f"distort must lie in [0, 1), got {distort}.")
        self.shift, self.distort = shift, distort

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the warped images, shape ``(batch, channels, H, W)``."""
        noise = 2.0 * torch.rand(len(x), 2, 3, device=x.device, dtype=x.dtype) - 1.0
        # affine_grid measures the image from -1 to 1, so a fraction of the image counts double.
        scale = torch.tensor([self.distort, self.distort, 2.0 * self.shift], device=x.device, dtype=x.dtype)
        maps = torch.eye(2, 3, device=x.device, dtype=x.dtype) + noise * scale
        return F.grid_sample(x, F.affine_grid(maps, list(x.shape), align_corners=False), align_corners=False)


class CropFlip(nn.Module):
    """Pads each image with zeros, crops it at random to its old size, and flips it left to right at random.

    Args:
        padding: Padding on each side in pixels, at least 0.
        flip: Probability of a flip, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> CropFlip()(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])
    """

    def __init__(self, padding: int = 4, flip: float = 0.5) -> None:
        super().__init__()
        if padding < 0:
            raise ValueError(f"padding must be at least 0 pixels, got {padding}.")
        if not 0.0 <= flip <= 1.0:
            raise ValueError(f"flip must lie in [0, 1], a probability, got {flip}.")
        self.padding, self.flip = padding, flip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the cropped and flipped images, shape ``(batch, channels, H, W)``."""
        n, _, height, width = x.shape
        top, left = torch.randint(2 * self.padding + 1, (2, n), device=x.device)
        # A view of all crops of each image, of which one is copied.
        crops = F.pad(x, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        cropped = crops[torch.arange(n, device=x.device), :, top, left]
        flipped = torch.rand(n, 1, 1, 1, device=x.device) < self.flip
        return torch.where(flipped, cropped.flip(3), cropped)


class Standardize(nn.Module):
    """Scales each channel to mean 0 and standard deviation 1: ``(x - mean) / std``.

    ``mean`` and ``std`` are buffers, so checkpoints hold them.

    Args:
        channels: Channels of the images.

    Example:
        >>> standardize = Standardize(channels=1)
        >>> standardize.set_statistics(torch.tensor([0.5]), torch.tensor([0.25]))
        >>> standardize(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set mean and standard deviation, shape ``(channels,)``. A constant channel is not scaled.

        Raises:
            ValueError: If the data have another number of channels.
        """
        if mean.numel() != self.mean.numel():
            raise ValueError(
                f"The images have {mean.numel()} channels, but the model is for {self.mean.numel()}. Set "
                f"model.standardize.channels={mean.numel()} and model.net.in_channels={mean.numel()}."
            )
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(torch.where(std > 0, std, 1.0).view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the standardized images, shape ``(batch, channels, H, W)``."""
        return (x - self.mean) / self.std
