"""Small networks for small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def small_cnn(
    image_size: int = 8,
    in_channels: int = 1,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    num_classes: int = 10,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a network of two (or more) convolutions and two linear layers.

    Each convolution is 3x3 with a ReLU; all but the first end in a 2x2 maximum. Without batch normalisation:
    its statistics would follow the class mix of the batches, and the comparison of two mixes with it.

    Args:
        image_size: Height and width of the images in pixels, divisible by ``2 ** (len(channels) - 1)``.
        in_channels: Channels of the images.
        channels: Channels of each convolution, at least one.
        hidden: Units of the hidden linear layer.
        num_classes: Number of classes ``K``.
        dropout: Dropout before each linear layer, in ``[0, 1)``.

    Returns:
        A module from images ``(batch, in_channels, image_size, image_size)`` to logits ``(batch, K)``.

    Raises:
        ValueError: If the image cannot be halved often enough.

    Example:
        >>> import torch
        >>> small_cnn(image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    halvings = len(channels) - 1
    if halvings < 0 or image_size % 2**halvings:
        raise ValueError(
            f"channels={list(channels)} halves the image {max(halvings, 0)} times, so image_size must be divisible "
            f"by {2 ** max(halvings, 0)} and channels not empty; got image_size={image_size}."
        )
    layers: list[nn.Module] = []
    for depth, (before, after) in enumerate(pairwise([in_channels, *channels])):
        layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.ReLU()]
        if depth:
            layers.append(nn.MaxPool2d(2))
    features = channels[-1] * (image_size // 2**halvings) ** 2
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU()]
    layers += [nn.Dropout(dropout), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*layers)


def mlp(
    image_size: int = 8,
    in_channels: int = 1,
    hidden: Sequence[int] = (128,),
    num_classes: int = 10,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a network of linear layers with ReLUs between them.

    Args:
        image_size: Height and width of the images in pixels.
        in_channels: Channels of the images.
        hidden: Units of each hidden layer; empty for a linear classifier.
        num_classes: Number of classes ``K``.
        dropout: Dropout after each hidden layer, in ``[0, 1)``.

    Returns:
        A module from images ``(batch, in_channels, image_size, image_size)`` to logits ``(batch, K)``.

    Example:
        >>> import torch
        >>> mlp(image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    sizes = [in_channels * image_size**2, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
