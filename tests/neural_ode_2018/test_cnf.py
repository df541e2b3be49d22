"""Flows: their divergence, densities and inverses, against what autograd and quadrature say."""

import math

import pytest
import torch

from harness.cli import UsageError
from neural_ode_2018.cnf.data import SAMPLED, SCATTER, grid, log_constant, log_density, samples
from neural_ode_2018.cnf.experiment import CNF
from neural_ode_2018.cnf.models import ContinuousFlow, PlanarFlow, log_normal
from neural_ode_2018.cnf.models import log_density as flow_log_density
from torch_ACA import GRADIENTS

SOLVER = {"rtol": 1e-7, "atol": 1e-7}
FLOWS = ("cnf", "nf forwards", "nf backwards")


def make(name, size=5):
    """A flow of double precision that bends the plane visibly."""
    torch.manual_seed(1)
    flow = ContinuousFlow(size) if name == "cnf" else PlanarFlow(size, name == "nf backwards")
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5 if name == "cnf" else 8)
    return flow.double()


def points(count):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_exact_divergence_is_the_trace_of_the_jacobian():
    field, t = make("cnf").field, torch.tensor(3.0)
    z = points(7)
    jacobian = torch.stack([torch.func.jacrev(lambda z: field(t, z[None])[0][0])(row) for row in z])
    torch.testing.assert_close(field(t, z)[1], jacobian.diagonal(dim1=1, dim2=2).sum(1))
    noise = points(7).flip(0)
    estimate = torch.einsum("bi,bij,bj->b", noise, jacobian, noise)
    torch.testing.assert_close(field(t, z, noise)[1], estimate)


def test_the_estimated_divergence_is_exact_in_expectation():
    field, t, count = make("cnf").field, torch.tensor(3.0), 100_000
    z = points(1).expand(count, 2)
    with torch.no_grad():
        exact, estimates = field(t, z[:1])[1], field(t, z, points(count))[1]
    assert estimates.std() > 0
    assert abs(estimates.mean() - exact) < 5 * estimates.std() / math.sqrt(count)  # five standard errors


def test_the_estimated_density_is_exact_in_expectation_over_the_noise_of_solves():
    flow, count = make("cnf"), 4000
    z = points(1).expand(count, 2)
    with torch.no_grad():
        _, exact, _ = flow.push(z[:1], SOLVER)
        _, estimates, _ = flow.push(z, SOLVER, points(count))
    # with one noise a solve the estimate is linear in the outer product of the noise, so its mean is exact
    assert abs(estimates.mean() - exact) < 5 * estimates.std() / math.sqrt(count)


@pytest.mark.parametrize("name", FLOWS)
def test_the_change_of_density_is_the_determinant_of_the_jacobian(name):
    flow, z = make(name), points(3)

    def pushed(z):
        return flow.push(z, SOLVER)[0].sum(0)

    if name == "nf backwards":  # bisection has no derivative: it is the other direction's that counts
        x, change, _ = flow.push(z, SOLVER)
        jacobian = torch.autograd.functional.jacobian(lambda x: flow.pull(x, SOLVER)[0].sum(0), x).transpose(0, 1)
        expected = torch.linalg.det(jacobian).abs().log()
    else:
        _, change, _ = flow.push(z, SOLVER)
        jacobian = torch.autograd.functional.jacobian(pushed, z).transpose(0, 1)
        expected = -torch.linalg.det(jacobian).abs().log()
    assert change.abs().max() > 0.05
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=0)  # far above the solver's tolerance


@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_the_inverse_returns_the_sample_and_its_density(name):
    flow, z = make(name), points(200)
    x, change, _ = flow.push(z, SOLVER)
    back, change_back, _ = flow.pull(x, SOLVER)
    assert (x - z).abs().max() > 0.1
    torch.testing.assert_close(back, z, atol=1e-5, rtol=0)  # a hundred times the tolerance of a step
    torch.testing.assert_close(change_back, -change, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_the_density_integrates_to_one(name):
    flow = make(name)
    centres, area = grid(200)
    density, _ = flow_log_density(flow, 2 * centres.double(), {"rtol": 1e-5, "atol": 1e-5})
    assert abs(float(density.exp().sum()) * 4 * area - 1) < 1e-3


@pytest.mark.parametrize("density", SAMPLED)
def test_samples(density):
    x = samples(density, 4000, 0)
    assert x.shape == (4000, 2) and torch.equal(x, samples(density, 4000, 0))
    assert x.mean(0).abs().max() < 0.1
    if density == "circles":
        off = torch.minimum((x.norm(dim=1) - 1).abs(), (x.norm(dim=1) - 2).abs())
    else:
        centre = torch.tensor([0.75, 0.375])
        sides = torch.stack([(x + centre).norm(dim=1), (x - centre).norm(dim=1)])
        off = (sides - 1.5).abs().min(0).values
    assert off.max() < 5 * SCATTER[density]


def test_the_known_density():
    x = points(50)
    ring = ((x.norm(dim=1) - 2) / 0.4).square() / 2
    crescents = sum((-((x[:, 0] + side) / 0.6).square() / 2).exp() for side in (-2, 2))
    torch.testing.assert_close(log_density(x), crescents.log() - ring)
    assert abs(log_constant(600) - log_constant(300)) < 1e-6  # the midpoint rule has converged


@pytest.mark.parametrize("gradient", [name for name in GRADIENTS if name != "aca"])
def test_gradient_methods_agree(gradient):
    flow, x, found = make("cnf"), points(10), []
    for solver in ({"gradient": "aca"}, {"gradient": gradient}):
        method = {"method": "ALF"} if solver["gradient"] == "mali" else {}
        loose = 1e-5 if method else 1e-8  # a method of order 2 takes thousands of steps
        flow.zero_grad()
        (-flow_log_density(flow, x, solver | method | {"rtol": loose, "atol": loose})[0].mean()).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in flow.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()


def test_the_normal_density():
    torch.testing.assert_close(log_normal(torch.zeros(1, 2)), torch.tensor([-math.log(2 * math.pi)]))


def test_what_planar_flows_have_no_use_for():
    for flags, said in ((("--trace", "hutchinson"), "is for cnf"), (("--gradient", "aca"), "solves no ODE")):
        with pytest.raises(UsageError, match=said):
            CNF.new_settings("--model", "nf", *flags)
