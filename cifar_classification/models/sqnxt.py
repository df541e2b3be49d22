"""SqueezeNext for 32x32 images with the second block of every stage an ODE, or discrete.

Source: Gholami et al., CVPR Workshops 2018 (SqueezeNext 23, 1x); with ODE blocks as in Zhuang et al., ICML 2020, and
Gholami et al., IJCAI 2019. 461,466 parameters at width 32 (1x) with 10 classes and ODE blocks, [2, 2, 2, 2] blocks.
"""

import math

from torch import nn

from cifar_classification.models.stages import Stages


def conv_bn_relu(channels_in, channels_out, kernel=1, stride=1):
    """Convolution with bias that keeps the image size up to the stride, batch normalisation, ReLU."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(size // 2 for size in kernel)
    return [nn.Conv2d(channels_in, channels_out, kernel, stride, padding), nn.BatchNorm2d(channels_out), nn.ReLU()]


def bottleneck(channels_in, channels_out, stride=1):
    """Five conv-BN-ReLU: two 1x1 that reduce the channels, a 3x3 split in 1x3 and 3x1, and a 1x1 that expands them."""
    middle = channels_in if stride == 2 else channels_in // 4 if channels_in > channels_out else channels_in // 2
    return [
        *conv_bn_relu(channels_in, middle, stride=stride),
        *conv_bn_relu(middle, middle // 2),
        *conv_bn_relu(middle // 2, middle, (1, 3)),
        *conv_bn_relu(middle, middle, (3, 1)),
        *conv_bn_relu(middle, channels_out),
    ]


class Block(nn.Module):
    """Discrete: relu(bottleneck(x) + shortcut(x)); the shortcut is conv-BN-ReLU where x changes shape."""

    def __init__(self, channels_in, channels_out, stride=1):
        super().__init__()
        self.residual = nn.Sequential(*bottleneck(channels_in, channels_out, stride))
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(*conv_bn_relu(channels_in, channels_out, stride=stride))

    def forward(self, x):
        return (self.residual(x) + self.shortcut(x)).relu()


class VectorField(nn.Sequential):
    """f(t, z): the five conv-BN-ReLU of a bottleneck. Autonomous: t is not used."""

    def __init__(self, channels):
        super().__init__(*bottleneck(channels, channels))

    def forward(self, t, z):
        return super().forward(z)


class SqueezeNext(Stages):
    """Images [B, 3, 32, 32] to logits [B, classes].

    Args:
        width: channels of the first stage; the following ones have 2, 4 and 8 times as many, the stem 2, the head 4.
        classes: number of classes.
        solver: keywords of `make_block`, or None for the discrete network.

    Raises:
        ValueError: the width is too small.
    """

    TITLES = {"ode": "SqueezeNext with ODEs", "discrete": "SqueezeNext"}
    PAPER_WIDTH = 32

    def __init__(self, width=PAPER_WIDTH, classes=10, solver=None):
        if width < 4:
            raise ValueError(f"width must be at least 4, so that a quarter of it is a channel; got {width}")
        channels = [width, 2 * width, 4 * width, 8 * width]
        super().__init__(
            stem=nn.Sequential(*conv_bn_relu(3, 2 * width, 3)),
            first=[Block(i, o, stride) for i, o, stride in zip([2 * width, *channels], channels, (1, 2, 2, 2))],
            second=[Block(c, c) if solver is None else VectorField(c) for c in channels],
            head=nn.Sequential(
                *conv_bn_relu(channels[-1], 4 * width),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4 * width, classes),
            ),
            solver=solver,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2))
                nn.init.zeros_(module.bias)
