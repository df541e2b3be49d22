"""ResNet-18 for 32x32 images and NODE-18, in which the second block of every stage is an ODE.

Source: Zhuang et al., ICML 2020 (NODE-18); He et al., CVPR 2016 (ResNet). Both have 11,173,962 parameters at width 64
with 10 classes. The field of NODE-18 ends in a ReLU, so a state only ever grows, while the residual block applies its
last ReLU after the addition: "one Euler step of NODE-18 is ResNet-18" holds up to that ReLU's place.
"""

from torch import nn

from cifar_classification.models.stages import Stages


def conv3x3(channels_in, channels_out, stride=1):
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Discrete: relu(conv-BN-ReLU-conv-BN (x) + shortcut(x)); the shortcut is conv1x1-BN where x changes shape."""

    def __init__(self, channels_in, channels_out, stride=1):
        super().__init__()
        self.residual = nn.Sequential(
            conv3x3(channels_in, channels_out, stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            conv3x3(channels_out, channels_out),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x):
        return (self.residual(x) + self.shortcut(x)).relu()


class VectorField(nn.Sequential):
    """f(t, z) of NODE-18: conv-BN-ReLU-conv-BN-ReLU. Autonomous: t is not used."""

    def __init__(self, channels):
        super().__init__(
            conv3x3(channels, channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv3x3(channels, channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )

    def forward(self, t, z):
        return super().forward(z)


class ResNet(Stages):
    """Images [B, 3, 32, 32] to logits [B, classes].

    Args:
        width: channels of the first stage; the following ones have 2, 4 and 8 times as many (PAPER_WIDTH in the paper).
        classes: number of classes.
        solver: keywords of `make_block` for NODE-18, or None for ResNet-18.
    """

    TITLES = {"ode": "NODE-18", "discrete": "ResNet-18"}
    PAPER_WIDTH = 64

    def __init__(self, width=PAPER_WIDTH, classes=10, solver=None):
        channels = [width, 2 * width, 4 * width, 8 * width]
        super().__init__(
            stem=nn.Sequential(conv3x3(3, width), nn.BatchNorm2d(width), nn.ReLU()),
            first=[BasicBlock(i, o, stride) for i, o, stride in zip([width, *channels], channels, (1, 2, 2, 2))],
            second=[BasicBlock(c, c) if solver is None else VectorField(c) for c in channels],
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes)),
            solver=solver,
        )
