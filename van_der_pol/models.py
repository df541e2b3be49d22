"""The vector fields of this experiment. All take f(t, y) with any leading dimensions of y unless said otherwise."""

import torch
from torch import nn

MU = 0.15  # of the paper's equation


class VanDerPol(nn.Module):
    """y1' = y2, y2' = (mu - y1^2) y2 - y1: the paper's form (appendix D.1), not the textbook's. y [..., 2]."""

    def __init__(self, mu=MU):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=torch.float64))

    def forward(self, t, y):
        y1, y2 = y.unbind(-1)
        return torch.stack([y2, (self.mu - y1**2) * y2 - y1], -1)


class NeuralField(nn.Module):
    """y1' = y2 and a perceptron for y2' (float64), so that it moves like some oscillator before it is trained.

    y2' = -y1 + net(y1, y2), the last layer starting small. y [..., 2].
    """

    def __init__(self, width=16):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()
        with torch.no_grad():
            self.net[-1].weight.mul_(0.1)
            self.net[-1].bias.zero_()

    def forward(self, t, y):
        return torch.stack([y[..., 1], self.net(y)[..., 0] - y[..., 0]], -1)


class Linear(nn.Module):
    """z' = k z, whose gradients are known: z(T) = z0 exp(k T)."""

    def __init__(self, k):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, t, z):
        return self.k * z


class Convolution(nn.Module):
    """z' = tanh(K * z): one random 3 x 3 convolution between the channels of an image, z [channels, height, width].

    :param seed: of the Gaussian kernel, whose entries have standard deviation ``scale`` / sqrt(9 channels)
    """

    def __init__(self, seed, channels=3, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kernel = torch.randn(channels, channels, 3, 3, generator=generator, dtype=torch.float64)
        self.kernel = nn.Parameter(kernel * scale / (9 * channels) ** 0.5)

    def forward(self, t, z):
        return torch.tanh(nn.functional.conv2d(z[None], self.kernel, padding=1)[0])


class Pulses(nn.Module):
    """A rotation y' = w(t) (-y2, y1) whose speed w jumps, smoothly but suddenly, from 1 to ``speed`` for a tenth of
    every unit of time: each pulse sends an adaptive solver searching for a much smaller step. y [..., 2].
    """

    def __init__(self, speed):
        super().__init__()
        self.speed = nn.Parameter(torch.tensor(speed, dtype=torch.float64))

    def forward(self, t, y):
        w = 1 + (self.speed - 1) * self.pulse(t)
        return w * torch.stack([-y[..., 1], y[..., 0]], -1)

    @staticmethod
    def pulse(t):
        """0 between the pulses, 1 inside; t a tensor."""
        return torch.sigmoid(200 * (torch.cos(2 * torch.pi * (t - 0.5)) - 0.95))
