"""The models of the spirals. Shapes: N spirals, n points seen of each, T times.

State, latent state and hidden layers have the paper's sizes. It does not name the activations: ELU in the field and
ReLU in the decoder are those of torchdiffeq's public example. Nor does it say whether the encoder is told the gaps
between irregular times: here it is.
"""

import torch
from torch import nn

from torch_ACA import solve

STATE, LATENT, UNITS = 25, 4, 20
SOLVED = ("latent-ode",)
MODELS = ("rnn", "rnn-gaps", *SOLVED)


class Field(nn.Module):
    """dz/dt = network(z)."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(LATENT, UNITS), nn.ELU(), nn.Linear(UNITS, LATENT))

    def forward(self, t, z):
        return self.network(z)


class LatentODE(nn.Module):
    """A recurrent encoder that runs backwards gives the latent state at time 0; its solution is decoded."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.RNN(3, STATE, batch_first=True)
        self.head = nn.Linear(STATE, 2 * LATENT)
        self.field = Field()
        self.decoder = nn.Sequential(nn.Linear(LATENT, UNITS), nn.ReLU(), nn.Linear(UNITS, 2))

    def encode(self, times, values):
        """Mean and logarithm of the standard deviation [N, LATENT] of the latent state at time 0, from values
        [N, n, 2] at times [N, n]."""
        gaps = torch.diff(times, dim=1, prepend=torch.zeros_like(times[:, :1]))
        _, last = self.encoder(torch.cat([values, gaps[..., None]], dim=2).flip(1))
        return self.head(last[0]).chunk(2, dim=1)

    def decode(self, z, times, solver):
        """Positions [N, T, 2] at times [T], of which the first is 0, from the latent state z [N, LATENT] there, and the
        `Stats` of the solve."""
        solution = solve(self.field, z, times, **solver)
        return self.decoder(solution.ys).transpose(0, 1), solution.stats


class Recurrent(nn.Module):
    """A recurrent network that predicts the next point from those so far.

    Args:
        gaps: whether it is told the time to the next point; else it takes all points to be equally far apart.
    """

    def __init__(self, gaps):
        super().__init__()
        self.gaps = gaps
        self.cell = nn.RNN(2 + gaps, STATE, batch_first=True)
        self.head = nn.Linear(STATE, 2)

    def forward(self, values, gaps, state=None):
        """Next points [N, n, 2] from points [N, n, 2] and the times to the next ones [N, n], and the last state."""
        inputs = torch.cat([values, gaps[..., None]], dim=2) if self.gaps else values
        hidden, state = self.cell(inputs, state)
        return self.head(hidden), state

    def continued(self, values, times, ahead):
        """Points at the times ``ahead`` [T] that follow from values [N, n, 2] at times [N, n]: [N, T, 2]. Each is fed
        the prediction before."""
        all_times = torch.cat([times, ahead.to(times).expand(len(times), -1)], dim=1)
        gaps, seen = all_times.diff(dim=1), times.shape[1]
        predicted, state = self(values, gaps[:, :seen])
        points = [predicted[:, -1:]]
        for i in range(seen, gaps.shape[1]):
            predicted, state = self(points[-1], gaps[:, i : i + 1], state)
            points.append(predicted)
        return torch.cat(points, dim=1)


def build(model):
    """The model of that name, initialised from torch's global random stream."""
    return LatentODE() if model in SOLVED else Recurrent(model == "rnn-gaps")
