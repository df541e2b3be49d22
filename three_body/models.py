"""The paper's models of a trajectory. Layer sizes are not in the paper; those here are chosen, and named below.

Positions are [..., 3 bodies, 3] and states [..., 6, 3], for any number of systems at once; all numbers are float64.
"""

import torch
from torch import nn

from three_body.physics import K1, K2, distances, separations, slope

LSTM_WIDTH = 64
NODE_WIDTH = 16  # wider networks overshoot at the paper's learning rate of 0.1
GIVEN_POINTS = 10  # that the recurrent networks are given to infer from
RECURRENT = ("lstm", "lstm-aug")
MODELS = (*RECURRENT, "node", "ode")
AUGMENTED = 9 + 4 * 9


def augment(positions):
    """Positions, the differences of each pair, and these over its distance, distance^2 and distance^3: [..., 45]."""
    difference, distance = separations(positions), distances(positions)[..., None]
    parts = [positions, difference, difference / distance, difference / distance**2, difference / distance**3]
    return torch.cat([part.flatten(-2) for part in parts], dim=-1)


class Recurrent(nn.Module):
    """An LSTM and a linear layer that turn the positions so far into the next ones."""

    def __init__(self, augmented):
        super().__init__()
        self.augmented = augmented
        self.lstm = nn.LSTM(AUGMENTED if augmented else 9, LSTM_WIDTH, dtype=torch.float64)
        self.head = nn.Linear(LSTM_WIDTH, 9, dtype=torch.float64)

    def forward(self, positions, memory=None):
        """Positions at successive times [T, B, 3, 3] -> those one point later [T, B, 3, 3], and the LSTM's memory."""
        inputs = augment(positions) if self.augmented else positions.flatten(-2)
        hidden, memory = self.lstm(inputs, memory)
        return self.head(hidden).unflatten(-1, (3, 3)), memory

    def infer(self, given, count):
        """The ``given`` positions [T, B, 3, 3] and what follows from them, ``count`` in all [count, B, 3, 3]."""
        predicted, memory = self(given)
        positions = [given, predicted[-1:]]
        for _ in range(count - len(given) - 1):
            predicted, memory = self(positions[-1], memory)
            positions.append(predicted)
        return torch.cat(positions)[:count]


class NeuralODE(nn.Module):
    """Vector field that knows r' = v; the acceleration, in units of K1, is a network of the augmented positions."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(AUGMENTED, NODE_WIDTH, dtype=torch.float64),
            nn.Tanh(),
            nn.Linear(NODE_WIDTH, 9, dtype=torch.float64),
        )

    def forward(self, t, state):
        positions, velocities = state.split(3, dim=-2)
        acceleration = K1 * self.network(augment(positions)).unflatten(-1, (3, 3))
        return torch.cat([K2 * velocities, acceleration], dim=-2)


class NewtonODE(nn.Module):
    """Vector field of Newton's law with unknown masses, which start uniform in [0.9, 1.1] as in the authors' script.

    Args:
        systems: shape of the batch of systems that have masses of their own; () where all share the same.
    """

    def __init__(self, systems=()):
        super().__init__()
        self.masses = nn.Parameter(torch.empty(*systems, 3, dtype=torch.float64).uniform_(0.9, 1.1))

    def forward(self, t, state):
        return slope(self.masses, state)


def build(model):
    """The model of that name, initialised from torch's global random stream.

    Raises:
        ValueError: an unknown name.
    """
    if model in RECURRENT:
        return Recurrent(augmented=model == "lstm-aug")
    if model == "node":
        return NeuralODE()
    if model == "ode":
        return NewtonODE()
    raise ValueError(f"unknown model {model!r}; accepted: {', '.join(MODELS)}")
