"""Networks, augmentation and standardization."""

import pytest
import torch
from recipes.augment import CropFlip, RandomWarp, Standardize
from recipes.models import batch_norm_cnn, mlp, small_cnn
from recipes.resnet import Block, resnet32
from torch.nn import functional as F


def test_networks_give_logits():
    assert small_cnn(image_size=28, channels=(4, 8, 8))(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    net = mlp(image_size=8, in_channels=3, hidden=(5, 4), num_classes=7)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert [m.out_features for m in net.modules() if isinstance(m, torch.nn.Linear)] == [5, 4, 7]


@pytest.mark.parametrize("kwargs", [{"image_size": 7}, {"channels": ()}])
def test_cnn_refuses_odd_image(kwargs):
    with pytest.raises(ValueError, match="must be divisible"):
        small_cnn(**kwargs)


def test_resnet32_layers():
    """The layers are those of the paper."""
    net = resnet32()
    convolutions = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 32  # and the linear layer
    assert [conv.out_channels for conv in convolutions] == [16] * 11 + [32] * 10 + [64] * 10
    assert [conv.stride[0] for conv in convolutions].count(2) == 2
    assert sum(p.numel() for p in net.parameters()) == 464_154
    assert resnet32(in_channels=1, width=3, num_classes=7)(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        resnet32(width=0)


def test_resnet32_initialization():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet32()
    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            n, fan_in = module.weight.numel(), module.weight[0].numel()
            # The deviation of n normal draws has a relative standard error of 1 / sqrt(2 n); five of them.
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=5 / (2 * n) ** 0.5)


@pytest.mark.parametrize(("before", "after", "stride", "left"), [(2, 4, 2, 1), (2, 5, 2, 1), (3, 3, 1, 0)])
def test_resnet32_shortcut(before, after, stride, left):
    """The shortcut subsamples and pads with zeros."""
    block = Block(before, after, stride).eval()
    torch.nn.init.zeros_(block.norm2.weight)  # so that only the shortcut is left
    x = torch.rand(2, before, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, after, 4 // stride, 6 // stride)
    for channel in range(before):
        for row in range(4 // stride):
            for column in range(6 // stride):
                expected[:, left + channel, row, column] = x[:, channel, stride * row, stride * column]
    assert torch.equal(block(x), expected)


def test_warp_differs_by_image():
    """A warp of strength 0 changes nothing."""
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    torch.testing.assert_close(RandomWarp(0.0, 0.0)(x), x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        warped = RandomWarp()(x)
    assert not torch.allclose(warped[0], warped[1])
    with pytest.raises(ValueError, match="shift must lie in"):
        RandomWarp(shift=2.0)
    with pytest.raises(ValueError, match="distort must lie in"):
        RandomWarp(distort=1.0)


def test_crop_flip_gives_every_crop():
    """Every crop of the padded image occurs, and nothing else."""
    image = torch.arange(1.0, 19.0).view(2, 3, 3)
    padded = F.pad(image, (1, 1, 1, 1))
    crops = [padded[:, top : top + 3, left : left + 3] for top in range(3) for left in range(3)]
    expected = {tuple(c.flatten().tolist()) for crop in crops for c in (crop, crop.flip(2))}
    assert len(expected) == 18
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # A crop is missed with probability (17 / 18) ** 600 < 2e-15, and there are 18.
        seen = CropFlip(padding=1)(image.repeat(600, 1, 1, 1))
    assert {tuple(crop.flatten().tolist()) for crop in seen} == expected
    assert torch.equal(CropFlip(0, 0.0)(image[None]), image[None])
    assert torch.equal(CropFlip(0, 1.0)(image[None]), image[None].flip(3))


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"padding": -1}, "padding must be"), ({"flip": 1.5}, "flip must lie in")]
)
def test_crop_flip_refuses_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CropFlip(**kwargs)


def test_standardize_constant_channel():
    """A constant channel stays finite; another number of channels is refused."""
    standardize = Standardize(channels=2)
    standardize.set_statistics(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.5]))
    assert standardize(torch.ones(1, 2, 1, 1)).flatten().tolist() == [0.5, 1.0]
    with pytest.raises(
        ValueError, match=r"have 1 channels, but the model is for 2\. Set model\.standardize\.channels=1"
    ):
        standardize.set_statistics(torch.zeros(1), torch.ones(1))


def test_batch_norm_cnn():
    net = batch_norm_cnn(image_size=8, in_channels=1, channels=(4, 6), num_classes=3)
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert sum(p.numel() for p in batch_norm_cnn().parameters()) == 246_314
    with pytest.raises(ValueError, match=r"image_size must be divisible by 16 for .* got image_size=28"):
        batch_norm_cnn(image_size=28)
