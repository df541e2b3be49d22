"""The models of the table: latent ODEs, and the recurrent networks beside them, after Rubanova et al. (2019).

Shapes: B trajectories, m observations of each, T target times, S samples of the latent state, D = FEATURES. A model
maps a `tasks.Batch` to a `Prediction`; what it may look at is ``batch.values`` and the times, never the targets.

The recipe runs through the union of all observation times of a batch, with masks. Here each trajectory runs through
its own m observations (all have equally many), with its own gaps: nothing is masked, because nothing unobserved is
there; the encoding of a trajectory does not depend on its batch mates; and at 10 % it takes a tenth of the updates.
"""

from dataclasses import dataclass

import torch
from torch import nn

from latent_ode_mujoco.data import FEATURES, POINTS
from torch_ACA import Stats, solve

ONE_STEP_AHEAD = ("rnn", "rnn-decay")
LATENT_ODES = ("latent-ode-rnn", "latent-ode")
MODELS = (*ONE_STEP_AHEAD, "rnn-vae", *LATENT_ODES)
INITIAL_STD = 0.1  # of all weights but those of the recurrent cells
LEAST_STD = 1e-6  # of the latent state: keeps its logarithm finite


@dataclass
class Prediction:
    """Means of the observations [T, S, B, D]; divergence of the latent state's distribution from the prior N(0, 1),
    averaged over trajectories and dimensions (0-d; None without a latent state); `Stats` of the solve (None: none)."""

    mean: torch.Tensor
    divergence: torch.Tensor | None = None
    stats: Stats | None = None


def mlp(inputs, outputs, units, more_layers=0):
    """Linear layers with tanh between them; ``more_layers`` of units x units besides the first and the last."""
    sizes = [inputs, *[units] * (more_layers + 1), outputs]
    layers = [layer for size, next_size in zip(sizes, sizes[1:]) for layer in (nn.Tanh(), _linear(size, next_size))]
    return nn.Sequential(*layers[1:])


def _linear(inputs, outputs, bias=True):
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.normal_(layer.weight, std=INITIAL_STD)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class LatentField(nn.Module):
    """dz/dt = network(z): autonomous."""

    def __init__(self, size, units, layers):
        super().__init__()
        self.network = mlp(size, size, units, layers)

    def forward(self, t, z):
        return self.network(z)


class GatedUpdate(nn.Module):
    """The GRU of the recipe, on a state of means and standard deviations [B, 2, size]; each gate has a hidden layer.

    What depends on the observations alone is computed for all of them at once (`prepare`), both gates together.
    """

    def __init__(self, size, units):
        super().__init__()
        self.gates_input, self.gates_state = _linear(FEATURES, 2 * units), _linear(2 * size, 2 * units, bias=False)
        self.update, self.reset = _linear(units, size), _linear(units, size)
        self.new_input, self.new_state = _linear(FEATURES, units), _linear(2 * size, units, bias=False)
        self.new = _linear(units, 2 * size)

    def prepare(self, values):
        """Observations [m, B, D] -> what `forward` needs of each: m pairs of [B, 2 units] and [B, units]."""
        return list(zip(self.gates_input(values).unbind(), self.new_input(values).unbind()))

    def forward(self, state, prepared):
        for_gates, for_new = prepared
        hidden = torch.tanh(torch.addmm(for_gates, state.flatten(1), self.gates_state.weight.T))
        update, reset = hidden.chunk(2, dim=1)
        update, reset = torch.sigmoid(self.update(update)), torch.sigmoid(self.reset(reset))
        kept = (state * reset[:, None]).flatten(1)
        mean, std = self.new(torch.tanh(torch.addmm(for_new, kept, self.new_state.weight.T))).chunk(2, dim=1)
        return torch.lerp(torch.stack([mean, std.abs()], dim=1), state, update[:, None])


class ODERNNEncoder(nn.Module):
    """Backwards through the observations: a GRU update at each, and on the gap before it, up to time 0, Euler steps of
    an ODE in the means.

    The steps are written out: a whole `solve` for each of the m gaps would double the time of the encoder (`speed.py`
    measures it), and all exact gradient methods agree on fixed steps.

    Args:
        steps: Euler steps on each gap.
    """

    def __init__(self, latent, recognition, units, layers, gru_units, steps):
        super().__init__()
        self.size, self.steps = recognition, steps
        self.field = LatentField(recognition, units, layers)
        self.update = GatedUpdate(recognition, gru_units)
        self.head = mlp(2 * recognition, 2 * latent, 100)

    def forward(self, batch):
        """Mean and standard deviation of the latent state [B, latent] each."""
        values, gaps = batch.values.flip(1).transpose(0, 1), gaps_before(batch).flip(1).T[..., None]
        state = values.new_zeros(values.shape[1], 2, self.size)
        for i, prepared in enumerate(self.update.prepare(values)):
            mean, std = self.update(state, prepared).unbind(1)
            state = torch.stack([self.flow(mean, gaps[i]), std], dim=1)
        return split_head(self.head(state.flatten(1)))

    def flow(self, mean, gap):
        """The means [B, size] at the other end of a ``gap`` [B, 1], backwards in time."""
        for _ in range(self.steps):
            mean = mean - gap / self.steps * self.field(0.0, mean)
        return mean


class RNNEncoder(nn.Module):
    """Backwards through the observations: a GRU that is also given the gap to the observation before."""

    def __init__(self, latent, recognition, head_units):
        super().__init__()
        self.gru = nn.GRU(FEATURES + 1, recognition)
        self.head = mlp(recognition, 2 * latent, head_units)

    def forward(self, batch):
        inputs = torch.cat([batch.values, gaps_before(batch)[..., None]], dim=2).flip(1).transpose(0, 1)
        _, last = self.gru(inputs)
        return split_head(self.head(last[0]))


def gaps_before(batch):
    """Times between each observation and the one before, or time 0 for the first: [B, m]."""
    return torch.diff(batch.times, dim=1, prepend=batch.times.new_zeros(len(batch.times), 1))


def split_head(outputs):
    """Mean and standard deviation from the two halves of [B, 2 latent]."""
    mean, std = outputs.chunk(2, dim=1)
    return mean, std.abs().clamp(min=LEAST_STD)


def sampled(mean, std, samples, draw):
    """Samples of N(mean, std^2) [S, B, latent], and the divergence from N(0, 1) as in `Prediction`."""
    noise = torch.randn(samples, *mean.shape, generator=draw).to(mean)  # drawn on the CPU: the same on every device
    divergence = ((mean**2 + std**2 - 1) / 2 - std.log()).mean()
    return mean + std * noise, divergence


def solved(field, z, times, solver):
    """The `Solution` from z [S, B, latent], by keywords of `solve`; with per_sample each of the S x B states has steps
    of its own, and counts of steps are [S B]."""
    if not solver.get("per_sample"):
        return solve(field, z, times, **solver)
    solution = solve(field, z.flatten(0, 1), times, **solver)
    solution.ys = solution.ys.unflatten(1, z.shape[:2])
    return solution


class LatentODE(nn.Module):
    """The latent state at the first target time from an encoder; from there one solve gives all target times.

    ``integrate(field, z [S, B, latent], times [T']) -> Solution`` may be replaced, for instance to test a trained model
    with another solver.

    Args:
        solver: keywords of `solve`.
    """

    def __init__(self, encoder, latent, units, layers, samples, solver):
        super().__init__()
        self.encoder, self.samples = encoder, samples
        self.field = LatentField(latent, units, layers)
        self.decoder = _linear(latent, FEATURES)
        self.integrate = lambda field, z, times: solved(field, z, times, solver)

    def forward(self, batch, draw):
        z, divergence = sampled(*self.encoder(batch), self.samples, draw)
        index = batch.target_index
        skipped = int(index[0] != batch.start)  # the solve begins at the start, wanted or not
        times = (torch.cat([index.new_tensor([batch.start]), index]) if skipped else index).double() / POINTS
        solution = self.integrate(self.field, z, times)
        return Prediction(self.decoder(solution.ys[skipped:]), divergence, solution.stats)


class OneStepAhead(nn.Module):
    """A GRU that predicts every grid point from the observations before it; between them its prediction stands still.

    As in the recipe, each input but the first is with probability ``own_inputs`` the network's own prediction instead
    of the observation, in training and in the test; the gap that is an input is that to the next point of the common
    grid, which says nothing; and the first grid point is not predicted but copied: zero where it is not observed.

    Args:
        decay: the state decays exponentially over each trajectory's own gaps (GRU-D), and no gap is an input. GRU-D's
            decay of the inputs has no effect here: a point is observed with all its features or not at all.
        repaired: without the three oddities above. Every observation is an input, with the trajectory's own gap to the
            next, and the first point is predicted, from the initial state.
    """

    def __init__(self, size, units, own_inputs, decay, repaired):
        super().__init__()
        self.size, self.own_inputs, self.repaired = size, own_inputs, repaired
        self.cell = nn.GRUCell(FEATURES + (not decay), size)
        self.rate = _linear(1, 1) if decay else None
        if decay:
            with torch.no_grad():
                self.rate.weight.abs_()  # a rate that starts below 0 is cut off there, and would never learn
        self.decoder = mlp(size, FEATURES, units)

    def forward(self, batch, draw):
        count, times = batch.values.shape[1], batch.times
        own = (torch.rand(count, generator=draw) < self.own_inputs).tolist()
        before, after = gaps_before(batch)[..., None], torch.diff(times, dim=1, append=times[:, -1:])[..., None]
        if not self.repaired:
            after = torch.full_like(after, 1 / POINTS)
        state = batch.values.new_zeros(len(times), self.size)
        states = [state]
        for i, value in enumerate(batch.values.unbind(1)):
            if own[i] and i > 0 and not self.repaired:
                value = self.decoder(state)
            if self.rate is None:
                state = self.cell(torch.cat([value, after[:, i]], dim=1), state)
            else:
                state = self.cell(value, state * torch.exp(-torch.relu(self.rate(before[:, i]))))
            states.append(state)
        targets = batch.target_index.to(batch.index.device).expand(len(times), -1)
        seen = torch.searchsorted(batch.index, targets.contiguous())  # observations before each target [B, T]
        means = self.decoder(torch.stack(states)).gather(0, seen.T[..., None].expand(-1, -1, FEATURES))
        if not self.repaired and batch.target_index[0] == 0:
            copied = torch.where(batch.index[:, :1] == 0, batch.values[:, 0], 0.0)
            means = torch.cat([copied[None], means[1:]])
        return Prediction(means[:, None])


class RNNVAE(nn.Module):
    """A latent state as in the latent ODE, unrolled by a GRU that is fed its own predictions; one sample."""

    def __init__(self, latent, recognition, units):
        super().__init__()
        self.encoder = RNNEncoder(latent, recognition, units)
        self.cell = nn.GRUCell(FEATURES + 1, latent)
        self.decoder = mlp(latent, FEATURES, units)

    def forward(self, batch, draw):
        z, divergence = sampled(*self.encoder(batch), 1, draw)
        state, gap = z[0], batch.values.new_full((len(batch.values), 1), 1 / POINTS)
        means = [self.decoder(state)]
        for _ in range(int(batch.target_index[-1]) - batch.start):
            state = self.cell(torch.cat([means[-1], gap], dim=1), state)
            means.append(self.decoder(state))
        chosen = (batch.target_index - batch.start).tolist()
        return Prediction(torch.stack([means[i] for i in chosen])[:, None], divergence)


def build(settings, solver=None):
    """The model of ``settings["model"]``, initialised from torch's global random stream.

    Args:
        solver: keywords of `solve`, for latent ODEs.

    Raises:
        ValueError: an unknown name.
    """
    model, latent, recognition = settings["model"], settings["latent"], settings["recognition"]
    units, layers = settings["units"], settings["layers"]
    if model in ONE_STEP_AHEAD:
        return OneStepAhead(latent, units, settings["own_inputs"], model == "rnn-decay", settings["repaired"])
    if model == "rnn-vae":
        return RNNVAE(latent, recognition, units)
    if model == "latent-ode-rnn":
        encoder = RNNEncoder(latent, recognition, head_units=50)
    elif model == "latent-ode":
        encoder = ODERNNEncoder(latent, recognition, units, layers, settings["gru_units"], settings["encoder_steps"])
    else:
        raise ValueError(f"unknown model {model!r}; accepted: {', '.join(MODELS)}")
    return LatentODE(encoder, latent, units, layers, settings["samples"], solver)
