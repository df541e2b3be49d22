"""Programs for other packages, moved over as docs/migration.md says: both train to the same loss.

The solves are accurate to 1e-8 or take the same steps, so that losses agree to a relative 1e-6 after some steps of
training, each of which makes a difference a little larger.
"""

import pytest
import torch
from torch import nn

import torch_ACA

CLOSE = {"rtol": 1e-6, "atol": 0.0}
DOUBLE = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trained(module, loss, steps=8, lr=2e-2):
    """The losses of every step [steps]."""
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        found = loss()
        found.backward()
        optimizer.step()
        losses.append(found.detach())
    return torch.stack(losses)


def assert_same_losses(here, there):
    assert here[-1] < 0.9 * here[0]  # both train
    torch.testing.assert_close(here, there, **CLOSE)


# torchdiffeq: an encoder, a latent ODE and a decoder; only the import changes


class LatentODE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(2, 8, batch_first=True, **DOUBLE)
        self.to_latent, self.decoder = nn.Linear(8, 6, **DOUBLE), nn.Linear(3, 2, **DOUBLE)
        self.net = nn.Sequential(nn.Linear(3, 16, **DOUBLE), nn.ELU(inplace=True), nn.Linear(16, 3, **DOUBLE))

    def forward(self, t, z):
        return self.net(z)

    def loss(self, odeint, t, paths):
        _, hidden = self.encoder(paths.flip(1))
        mean, log_variance = self.to_latent(hidden[0]).chunk(2, dim=-1)
        torch.manual_seed(1)
        z0 = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        z = odeint(self, z0, t, rtol=1e-8, atol=1e-9, method="dopri5").permute(1, 0, 2)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean()
        return (self.decoder(z) - paths).square().mean() + 1e-3 * divergence


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_program_for_torchdiffeq(adjoint):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    name = "odeint_adjoint" if adjoint else "odeint"
    t = torch.linspace(0, 1, 6, **DOUBLE)
    angles = t + 6 * torch.rand(10, 1, **DOUBLE)
    paths, losses = torch.stack([angles.cos(), angles.sin()], -1), []
    for package in (torch_ACA, torchdiffeq):
        torch.manual_seed(2)
        model = LatentODE()
        losses.append(trained(model, lambda: model.loss(getattr(package, name), t, paths)))
    assert_same_losses(*losses)


# torchode: driven pendulums, each with its own drive and its own times


class Pendulum(nn.Module):
    def __init__(self):
        super().__init__()
        self.damping = nn.Parameter(torch.tensor(0.3, **DOUBLE))
        self.net = nn.Sequential(nn.Linear(3, 12, **DOUBLE), nn.Tanh(), nn.Linear(12, 1, **DOUBLE))

    def forward(self, t, y, args):
        amplitude, frequency = args
        features = torch.stack([y[:, 0], y[:, 1], amplitude * torch.cos(frequency * t)], dim=1)
        return torch.stack([y[:, 1], self.net(features)[:, 0] - self.damping * y[:, 1]], dim=1)


def test_a_program_for_torchode():
    torchode = pytest.importorskip("torchode")
    rows = 6
    y0, args = torch.randn(rows, 2, **DOUBLE), (torch.rand(rows, **DOUBLE), 1 + torch.rand(rows, **DOUBLE))
    t_eval = torch.linspace(0, 1, 7, **DOUBLE) * (1 + torch.rand(rows, 1, **DOUBLE))
    paths = y0[:, None] * torch.cos(t_eval)[..., None]

    def there(model):
        term = torchode.ODETerm(model, with_args=True)
        controller = torchode.PIDController(atol=1e-9, rtol=1e-9, pcoeff=0.2, icoeff=0.5, dcoeff=0.0, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
        problem = torchode.InitialValueProblem(y0=y0, t_eval=t_eval)
        return lambda: (solver.solve(problem, args=args).ys - paths).square().mean()

    def here(model):
        def func(t, y):
            return model(t.flatten(), y, args)

        settings = {"method": "dopri5", "atol": 1e-9, "rtol": 1e-9, "options": {"beta": 0.2 / 5}, "per_sample": True}
        return lambda: (torch_ACA.solve(func, y0, t_eval, **settings).ys.transpose(0, 1) - paths).square().mean()

    losses = []
    for written in (here, there):
        torch.manual_seed(3)
        model = Pendulum()
        losses.append(trained(model, written(model)))
    assert_same_losses(*losses)


# the authors' package: nothing changes


Y0 = torch.ones(2, **DOUBLE)
DATA = torch.tensor([[1.4, 0.4], [2.6, 0.4], [4.3, 0.9], [4.2, 4.2]], **DOUBLE)


class PredatorsAndPrey(nn.Module):
    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.2, 0.8, 2.7, 1.2], **DOUBLE))

    def forward(self, t, y):
        prey, predators = y[0], y[1]
        a, b, c, d = self.rates
        return torch.stack([a * prey - b * prey * predators, d * prey * predators - c * predators])


# what their package printed for the program below: commit 9cdd163 of github.com/juntang-zhuang/torch_ACA, torch 2.14.1
LOSSES_OF_THE_AUTHORS = [
    1.2684073640171110, 1.0495195627564911, 0.8298903227613701, 0.6216537359960420,
    0.4352979106665142, 0.2842756231911482, 0.1821825146691673, 0.1350811712649266,
]  # fmt: skip


def authors_program(odesolve):
    options = {}
    options.update({"method": "RK4"})
    options.update({"h": 0.125})
    options.update({"t0": 0.0})
    options.update({"t1": 2.0})
    options.update({"t_eval": [0.5, 1.0, 1.5, 2.0]})
    options.update({"print_neval": False})
    options.update({"neval_max": 500000})
    model = PredatorsAndPrey()
    return trained(model, lambda: torch.mean((odesolve(model, Y0, options, regenerate_graph=False) - DATA) ** 2))


@pytest.mark.filterwarnings("ignore:option 'regenerate_graph'")
def test_a_program_for_the_authors_package():
    expected = torch.tensor(LOSSES_OF_THE_AUTHORS, **DOUBLE)
    # the same steps: rounding alone, which 8 steps of training let grow
    torch.testing.assert_close(authors_program(torch_ACA.odesolve), expected, rtol=1e-12, atol=0.0)
    model, t = PredatorsAndPrey(), torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], **DOUBLE)

    def loss():
        ys = torch_ACA.solve(model, Y0, t, method="RK4", h=0.125).ys
        return torch.mean((ys[1:] - DATA) ** 2)

    torch.testing.assert_close(trained(model, loss), expected, rtol=1e-12, atol=0.0)
