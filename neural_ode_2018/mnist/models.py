"""Networks for MNIST: a stem, two blocks that halve the size, the blocks that differ, and a linear head.

The paper gives two downsamplings, six residual blocks or one ODE block, and the numbers of parameters: 0.60, 0.22 and
0.22 million. Its layers are not known. Those here have 64 channels and group norms, as torchdiffeq's public example;
stem, shortcuts and the way in which time enters are chosen such that the numbers of parameters come out.
"""

import torch
from torch import nn
from torch.nn import functional

from neural_ode_2018.mnist.data import CLASSES
from torch_ACA import ODEBlock

CHANNELS, GROUPS = 64, 32
RESIDUAL_BLOCKS = 6
SOLVED = ("rk-net", "ode-net")
MODELS = ("resnet", *SOLVED)


def convolution(stride=1):
    return nn.Conv2d(CHANNELS, CHANNELS, 3, stride, padding=1)


def norm():
    return nn.GroupNorm(GROUPS, CHANNELS)


class ResidualBlock(nn.Module):
    """x + convolutions of x [B, 64, S, S]; with a stride the size is divided by it, and the shortcut is average
    pooling."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride
        self.layers = nn.Sequential(norm(), nn.ReLU(), convolution(stride), norm(), nn.ReLU(), convolution())

    def forward(self, x):
        shortcut = functional.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        return shortcut + self.layers(x)


class Field(nn.Module):
    """The layers of a residual block; after each convolution, time joins by a weight for each channel."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.conv1, self.conv2 = norm(), norm(), convolution(), convolution()
        self.time1, self.time2 = (nn.Parameter(torch.zeros(CHANNELS, 1, 1)) for _ in range(2))

    def forward(self, t, x):
        x = self.conv1(functional.relu(self.norm1(x))) + t.to(x) * self.time1
        return self.conv2(functional.relu(self.norm2(x))) + t.to(x) * self.time2


class Network(nn.Module):
    """Images [B, 1, 28, 28] to logits [B, 10].

    Args:
        model: of MODELS. ODE-Net and RK-Net are the same network; it is their gradient that differs.
        solver: keywords of `solve`; None for a residual network.
    """

    def __init__(self, model, solver):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 5, padding=2), ResidualBlock(2), ResidualBlock(2))
        if model in SOLVED:
            self.body = ODEBlock(Field(), **solver)
        else:
            self.body = nn.Sequential(*(ResidualBlock() for _ in range(RESIDUAL_BLOCKS)))
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(norm(), nn.ReLU(), *pool, nn.Linear(CHANNELS, CLASSES))

    def forward(self, images):
        return self.head(self.body(self.stem(images)))

    @property
    def stats(self):
        """`Stats` of the last solve; None for a residual network."""
        return getattr(self.body, "stats", None)
