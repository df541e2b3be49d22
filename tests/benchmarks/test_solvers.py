"""Every library solves the same problem: outputs and gradients agree, evaluations are counted."""

import importlib.util
import math
import time

import pytest
import torch

from benchmarks import solvers
from benchmarks.measure import alternating, checked
from benchmarks.problems import build

INSTALLED = {name: importlib.util.find_spec(name) for name in ("torchdiffeq", "TorchDiffEqPack", "torchode", "diffrax")}


@pytest.fixture(scope="module", params=["three_body_outputs", pytest.param("mlp_heun", marks=pytest.mark.slow)])
def case(request):
    problem = build(request.param)
    return problem, problem.reference_solution()


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_states_and_gradients_are_right_to_within_the_tolerance(case, name):
    problem, reference = case
    prepared, row = checked(name, problem, reference)
    if prepared is None:
        assert solvers.missing(name, problem) == row["status"], row["status"]  # absent, and says so: not failed
        pytest.skip(row["status"])
    # the local tolerance, amplified along the way; a wrong gradient (of other outputs, of fewer parameters, through a
    # wrong interpolant) is off by more
    assert row["state_error"] < 300 * problem.rtol / (30 if problem.rtol > 1e-3 else 1)
    assert row["gradient_error"] < 300 * problem.rtol / (30 if problem.rtol > 1e-3 else 1)


def test_evaluations_agree_with_what_the_methods_promise():
    problem = build("three_body_end")
    n_accepted = problem.n_accepted()
    reference = problem.reference_solution()
    rows = {name: checked(name, problem, reference)[1] for name in ("aca, memory=states", "aca", "adjoint")}
    # the first evaluation of a small state is kept, and by default all graphs of so small a problem
    assert rows["aca, memory=states"]["nfe_backward"] == 6 * n_accepted - 1
    assert rows["aca"]["nfe_backward"] == 0
    assert rows["adjoint"]["nfe_backward"] > 0


@pytest.mark.skipif(not INSTALLED["torchdiffeq"], reason="torchdiffeq is not installed")
def test_a_peer_s_evaluations_are_counted_in_both_directions():
    problem = build("three_body_end")
    check = solvers.SOLVERS["torchdiffeq odeint_adjoint"].prepare(problem).check()
    calls = []
    hook = problem.func.register_forward_hook(lambda *_: calls.append(1))
    solvers.SOLVERS["torchdiffeq odeint_adjoint"].prepare(problem)()
    hook.remove()
    assert check.nfe_forward + check.nfe_backward == len(calls) and check.nfe_backward > 0


def test_a_feature_that_is_not_there_leaves_a_blank_row_with_the_reason(monkeypatch):
    monkeypatch.setitem(solvers.SOLVERS, "from the future", solvers._ours(teleport=True))
    prepared, row = checked("from the future", build("mlp_heun"), None)
    assert prepared is None and "no teleport=" in row["status"]


@pytest.mark.parametrize("module, name", [("torchode", "torchode"), ("TorchDiffEqPack", "TorchDiffEqPack ACA")])
def test_a_library_that_is_not_there_leaves_a_blank_row(module, name):
    absent = solvers._peer(module, None, lambda *_: None)
    assert absent.missing(build("mlp_heun")) == f"{module} is not installed"
    assert solvers.SOLVERS[name].library == module


def test_a_solve_that_fails_is_a_row_that_says_why(monkeypatch):
    def fails(func, y0, problem):
        raise AssertionError("underflow in dt\nmore")

    monkeypatch.setitem(solvers.SOLVERS, "failing", solvers._peer("peer", math, fails))
    prepared, row = checked("failing", build("mlp_heun"), None)
    assert prepared is None and row["status"] == "failed: AssertionError: underflow in dt"


def test_endless_solves_are_stopped(monkeypatch):
    monkeypatch.setattr(solvers, "MAX_EVALS", 5)
    counted = solvers.Counted(torch.nn.Identity())
    counted.func.forward = lambda t, y: y
    with pytest.raises(solvers.TooManyEvaluations):
        for _ in range(11):
            counted(0.0, torch.zeros(1))


def test_rounds_alternate_and_begin_with_another_one_each_time():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    rounds = list(alternating(calls, seconds=0.0, rounds=(3, 9), clock="cpu", device="cpu"))
    assert "".join(order) == "abcbcacab"  # no time: the least number of rounds
    assert [list(row) for row in rounds] == [list("abc")] * 3 and all(s >= 0 for row in rounds for s in row.values())
    assert len(list(alternating(calls, seconds=60.0, rounds=(1, 2), clock="wall", device="cpu"))) == 2


def test_a_slow_contestant_runs_in_the_first_round_alone():
    calls = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    rounds = alternating(calls, seconds=0.0, rounds=(3, 9), clock="wall", device="cpu", slow=0.01)
    assert list(map(list, rounds)) == [["slow", "fast"], ["fast"], ["fast"]]
