"""The same programs through torchdiffeq's `odeint` and ours, with the import swapped: what both accept, agrees."""

import pytest
import torch

import torch_ACA
from tests.torch_ACA.programs import EXACT, PROGRAMS, assert_close, gradients

torchdiffeq = pytest.importorskip("torchdiffeq")

# `late ...` programs differ by the holder alone, and one of each kind is enough here
NAMES = [name for name in PROGRAMS if not name.startswith("late") or name.endswith(("in_list", "in_lru_cache"))]
ADAPTIVE = [
    "negated_leaf_beside_the_leaf", "chain_of_three", "antisymmetric weight", "conditional", "three_solves_in_a_row",
    "captured_tensor_is_the_initial_state", "encoder_and_func_share_a_weight", "context_in_the_state",
    "inside_torchscript", "weight_cached_at_the_first_call", "behind_a_checkpoint",
]  # fmt: skip


def fixed(library, **more):
    """Steps of a quarter of the 3/8 rule, the same operations in both up to their order."""

    def integrate(f, y0, t=(0.0, 1.0)):
        t = t if isinstance(t, torch.Tensor) else torch.tensor(t)
        return library.odeint(f, y0, t, method="rk4", options={"step_size": 0.25}, **more)

    return integrate


def adaptive(library, **more):
    def integrate(f, y0, t=(0.0, 1.0)):
        return library.odeint(f, y0, torch.as_tensor(t), rtol=1e-9, atol=1e-9, **more)

    return integrate


@pytest.mark.parametrize("kind", ["aca", "direct", "naive", "two states"])
@pytest.mark.parametrize("name", NAMES)
def test_fixed_steps(name, kind):
    expected = gradients(PROGRAMS[name], fixed(torchdiffeq))
    # rounding: the sums are in another order, and the times too where torchdiffeq makes a grid
    assert_close(gradients(PROGRAMS[name], fixed(torch_ACA, **EXACT[kind])), expected, 1e-11)


@pytest.mark.parametrize("kind", ["aca", "direct"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_second_derivatives(name, kind):
    if name == "inside_torchscript":
        pytest.skip("typed error, see test_capture")
    expected = gradients(PROGRAMS[name], fixed(torchdiffeq), order=2)
    assert_close(gradients(PROGRAMS[name], fixed(torch_ACA, **EXACT[kind]), order=2), expected, 1e-10)


@pytest.mark.parametrize("kind", ["aca", "direct", "naive", "adjoint"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_chosen_steps(name, kind):
    keywords = EXACT.get(kind, {"gradient": "adjoint"})
    expected = gradients(PROGRAMS[name], adaptive(torchdiffeq))
    assert_close(gradients(PROGRAMS[name], adaptive(torch_ACA, **keywords)), expected, 1e-6)  # two sets of steps


def test_both_adjoints():
    """torchdiffeq's needs a module, and finds its parameters alone."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 3)

    class F(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return torch.tanh(self.net(y))

    y0 = torch.ones(2, 3, requires_grad=True)
    t = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    found = []
    for library in (torch_ACA, torchdiffeq):
        ys = library.odeint_adjoint(F(), y0, t, rtol=1e-9, atol=1e-9)
        found.append(torch.autograd.grad((ys**2).sum(), [y0, t, *net.parameters()]))
    assert_close(found[0], found[1], 1e-6)
