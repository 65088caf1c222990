"""The residual network that the long-tailed CIFAR protocols train."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A).

    If the block halves the image or has more channels than its input, the shortcut skips every other row and column
    and pads the channels with zeros, half of them on each side.

    Args:
        before: Channels of the input.
        after: Channels of the output, at least as many.
        stride: 1, or 2 to halve the image.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.padding = after - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features, shape ``(batch, after, H / stride, W / stride)``."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1 or self.padding:
            left = self.padding // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, left, self.padding - left))
        return F.relu(out + x)


def resnet32(in_channels: int = 3, width: int = 16, num_classes: int = 10) -> nn.Sequential:
    """Return a residual network of 32 layers for small images: three stages of five blocks.

    The stages have ``width``, ``2 * width`` and ``4 * width`` channels, and the second and the third halve the
    image. With ``width=16`` the network has 0.46 million parameters. Weights have Kaiming initialization (normal).
    Batch normalization follows the class mix of the batches, which matters for a comparison of two mixes.

    Args:
        in_channels: Channels of the images.
        width: Channels of the first stage, at least 1; small values are for quick trials.
        num_classes: Number of classes ``K``.

    Returns:
        A module from images ``(batch, in_channels, H, W)``, of any size, to logits ``(batch, K)``.

    Raises:
        ValueError: If the width is below 1.

    Reference:
        K. He et al., "Deep residual learning for image recognition" (2015), section 4.2.

    Example:
        >>> net = resnet32()
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in net.parameters())
        464154
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}.")
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    before = width
    for stage in range(3):
        after = width * 2**stage
        layers.append(Block(before, after, stride=2 if stage else 1))
        layers += [Block(after, after) for _ in range(4)]
        before = after
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return net
