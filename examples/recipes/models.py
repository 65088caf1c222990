"""Small networks for small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torchvision.ops import MLP


def small_cnn(
    image_size: int = 8,
    in_channels: int = 1,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    num_classes: int = 10,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a network of convolutions and two linear layers.

    Each convolution is 3x3 with a ReLU; 2x2 max pooling follows all but the first. There is no batch normalization,
    because its statistics follow the class mix of the batches and would blur a comparison of two mixes.

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
    factor = 2 ** max(len(channels) - 1, 0)
    if not channels or image_size % factor:
        raise ValueError(
            f"image_size must be divisible by {factor} for channels={list(channels)}, which must not be empty; got "
            f"image_size={image_size}."
        )
    layers: list[nn.Module] = []
    for depth, (before, after) in enumerate(pairwise([in_channels, *channels])):
        layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.ReLU()]
        if depth:
            layers.append(nn.MaxPool2d(2))
    features = channels[-1] * (image_size // factor) ** 2
    layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, hidden), nn.ReLU()]
    return _channels_last(nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden, num_classes)))


def batch_norm_cnn(
    image_size: int = 32,
    in_channels: int = 3,
    channels: Sequence[int] = (32, 64, 128, 128),
    num_classes: int = 10,
) -> nn.Sequential:
    """Return a network of convolutions with batch normalization, and a linear layer.

    Each convolution is 3x3, without a bias; batch normalization, a ReLU and 2x2 max pooling follow.

    Args:
        image_size: Height and width of the images in pixels, divisible by ``2 ** len(channels)``.
        in_channels: Channels of the images.
        channels: Channels of each convolution, at least one.
        num_classes: Number of classes ``K``.

    Returns:
        A module from images ``(batch, in_channels, image_size, image_size)`` to logits ``(batch, K)``.

    Raises:
        ValueError: If the image cannot be halved often enough.

    Example:
        >>> batch_norm_cnn()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    factor = 2 ** len(channels)
    if not channels or image_size % factor:
        raise ValueError(
            f"image_size must be divisible by {factor} for channels={list(channels)}, which must not be empty; got "
            f"image_size={image_size}."
        )
    layers: list[nn.Module] = []
    for before, after in pairwise([in_channels, *channels]):
        layers += [nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    features = channels[-1] * (image_size // factor) ** 2
    return _channels_last(nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, num_classes)))


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
        hidden: Units of each hidden layer, at least one layer.
        num_classes: Number of classes ``K``.
        dropout: Dropout after each hidden layer, in ``[0, 1)``.

    Returns:
        A module from images ``(batch, in_channels, image_size, image_size)`` to logits ``(batch, K)``.

    Example:
        >>> import torch
        >>> mlp(image_size=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    hidden_layers = MLP(in_channels * image_size**2, list(hidden), dropout=dropout)
    return nn.Sequential(nn.Flatten(), hidden_layers, nn.ReLU(), nn.Linear(hidden[-1], num_classes))


def _channels_last(net: nn.Sequential) -> nn.Sequential:
    """Return the network with the memory layout that is faster on a CPU."""
    return net.to(memory_format=torch.channels_last)
