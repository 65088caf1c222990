"""Random distortions of small images, and their standardisation, a whole batch at a time."""

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


class CropFlip(nn.Module):
    """Shifts each image of a batch by whole pixels at random, and mirrors half of them: CIFAR's usual distortion.

    The same as padding with black (zeros), cropping at random to the old size, and a horizontal flip, with a draw
    of its own for every image, from torch's global generator.

    Args:
        padding: Largest shift along each axis in pixels, at least 0.
        flip: Probability that an image is mirrored left to right, in [0, 1].

    Raises:
        ValueError: If a number is out of range.

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
        self.padding = padding
        self.flip = flip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the distorted images, shape ``(batch, channels, H, W)`` as given."""
        n, channels, height, width = x.shape
        start = torch.randint(2 * self.padding + 1, (2, n, 1), device=x.device)
        mirrored = torch.rand(n, 1, device=x.device) < self.flip
        rows = start[0] + torch.arange(height, device=x.device)
        columns = start[1] + torch.arange(width, device=x.device)
        columns = torch.where(mirrored, columns.flip(1), columns)
        image = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[:, None, None]
        padded = F.pad(x, [self.padding] * 4)
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Standardize(nn.Module):
    """Brings each channel to mean 0 and standard deviation 1 over the training data.

    ``(x - mean) / deviation``. Mean and deviation are part of the checkpoint.

    Args:
        channels: Channels of the images.

    Example:
        >>> standardize = Standardize(channels=1)
        >>> standardize.measure(torch.tensor([0.5]), torch.tensor([0.25]))
        >>> standardize(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def measure(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Take over mean and deviation of the data, shape ``(channels,)``; a channel that never varies keeps 1.

        Raises:
            ValueError: If the data have another number of channels.
        """
        if mean.numel() != self.mean.numel():
            raise ValueError(
                f"The images have {mean.numel()} channels, but the model is for {self.mean.numel()}. Set "
                f"model.standardize.channels={mean.numel()} and model.net.in_channels={mean.numel()}."
            )
        self.mean.copy_(mean.view(-1, 1, 1))
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0).view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the standardised images, shape ``(batch, channels, H, W)`` as given."""
        return (x - self.mean) / self.deviation
