"""Programs in the style of torchdiffeq's clients, run with its import and with ours: the same values and gradients.

Both libraries solve to tolerances of 1e-9, so that values and gradients, sums of some hundred terms near 1, agree to
1e-6.
"""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import torch_ACA
from benchmarks.clients import PROGRAMS, TIGHT, Falling, build

torchdiffeq = pytest.importorskip("torchdiffeq")
# their adjoint looks for parameters of func alone, and has none of what these programs train besides; in the flow it
# takes the noise of the last solve for the backward pass of every one
NOT_BY_THEIR_ADJOINT = {"conditional", "controlled", "hypernetwork", "bayesian", "flow"}


def library(**keywords):
    odeint = partial(torch_ACA.odeint, **keywords)
    return SimpleNamespace(odeint=odeint, odeint_event=torch_ACA.odeint_event)


def assert_agree(ours, theirs):
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", ["aca", "direct", "adjoint"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_values_and_gradients_are_those_of_odeint(name, gradient):
    if name == "ode_rnn" and gradient == "adjoint":
        pytest.skip("single steps of Euler: the continuous adjoint is another gradient")
    client = build(name)
    assert_agree(client(library(gradient=gradient)), client(torchdiffeq))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in NOT_BY_THEIR_ADJOINT])
def test_values_and_gradients_are_those_of_odeint_adjoint(name):
    client = build(name)
    ours, theirs = (
        client(SimpleNamespace(odeint=package.odeint_adjoint, odeint_event=package.odeint_event))
        for package in (torch_ACA, torchdiffeq)
    )
    assert_agree(ours, theirs)


@pytest.mark.parametrize("keywords", [{"gradient": "direct"}, {"memory": "unlimited"}])
@pytest.mark.parametrize("name", ["flow", "bayesian"])
def test_draws_of_several_solves_before_one_backward_pass(name, keywords):
    """With the graphs of the forward pass kept: a draw takes the place of the one before on the module."""
    client = build(name)

    def outcome(library):
        torch.manual_seed(1)
        losses = list(client.losses(library))
        return [*losses, *torch.autograd.grad(sum(losses), client.wanted, materialize_grads=True)]

    assert_agree(outcome(library(**keywords)), outcome(torchdiffeq))


def test_the_fall_without_drag_is_the_formula():
    """The time of the event and its derivatives by sqrt(2 h / g), to a hundred times the tolerance."""
    model = Falling({"dtype": torch.float64})
    with torch.no_grad():
        model.drag.zero_()
    height = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    start = (height, height.new_zeros(1))
    t, _ = torch_ACA.odeint_event(model, start, height.new_zeros(()), event_fn=lambda t, state: state[0], **TIGHT)
    found = torch.autograd.grad(t, [height, model.gravity])
    fall = math.sqrt(10 / 9.8)
    assert [t.item(), *(g.item() for g in found)] == pytest.approx([fall, fall / 10, -fall / 19.6], abs=1e-7)
