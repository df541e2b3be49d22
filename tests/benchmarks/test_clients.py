"""The programs that libraries are timed on."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import solvers
from benchmarks.clients import PROGRAMS, SHORT, build
from benchmarks.measure import checked_client
from torch_ACA import odeint, odeint_event


@pytest.mark.parametrize("name", [*PROGRAMS, *SHORT])
def test_a_call_can_be_repeated_and_another_seed_is_another_program(name):
    client = build(name, quick=True)
    (loss, gradient), again = client(solvers.DROP_INS["aca"]), client(solvers.DROP_INS["aca"])
    assert loss.ndim == 0 and gradient.shape == (sum(w.numel() for w in client.wanted),)
    assert torch.equal(loss, again[0]) and torch.equal(gradient, again[1])
    if name not in ("terminal_time", "diffusion"):  # a few given numbers
        assert not torch.equal(loss, build(name, seed=1, quick=True)(solvers.DROP_INS["aca"])[0])


@pytest.mark.parametrize("name, steps", [("one_step", 1), ("three_steps", 3)])
def test_short_solves_are_so_many_steps_of_euler(name, steps):
    solves = []

    def counted(func, y0, t, *, method):
        assert method == "euler" and y0.shape == (32, 16)
        solves.append(len(t) - 1)
        return odeint(func, y0, t, method=method)

    build(name, quick=True)(SimpleNamespace(odeint=counted, odeint_event=odeint_event))
    assert solves == [steps] * 100


def test_a_program_that_fails_or_has_no_library_is_a_row_that_says_why(monkeypatch):
    def fails(*_, **__):
        raise AssertionError("underflow in dt")

    monkeypatch.setitem(solvers.DROP_INS, "aca", SimpleNamespace(odeint=fails))
    monkeypatch.setitem(solvers.DROP_INS, "torchdiffeq odeint", None)
    client = build("hypernetwork")
    call, row = checked_client("aca", client, None)
    assert call is None and row["status"] == "failed: AssertionError: underflow in dt"
    call, row = checked_client("torchdiffeq odeint", client, None)
    assert call is None and row["status"] == "torchdiffeq is not installed"
