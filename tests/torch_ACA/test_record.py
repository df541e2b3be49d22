"""What a solve did, as it says itself."""

import pytest
import torch

from torch_ACA import Callbacks, SolverError, solve


def swing(t, y):
    return torch.stack([y[1], 2 * (1 - y[0] ** 2) * y[1] - y[0]])


Y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("gradient", ["aca", "direct", "naive", "adjoint", "mali"])
@pytest.mark.parametrize("t", [[0.0, 1.0], [0.0, 0.4, 1.0], [1.0, 0.2]])
def test_steps_and_rejected_tries(gradient, t):
    seen = {"accept": [], "reject": []}
    callbacks = Callbacks(
        accept=lambda t, y, h: seen["accept"].append((t, h)), reject=lambda t, y, h: seen["reject"].append((t, h))
    )
    solution = solve(swing, Y0, t, gradient=gradient, rtol=1e-3, atol=1e-3, record=True, callbacks=callbacks)
    record = solution.record
    assert len(record.sizes) == solution.stats.n_accepted and len(record.rejected) == solution.stats.n_rejected
    assert [tuple(row) for row in record.rejected.tolist()] == seen["reject"]
    assert record.times[:-1].tolist() == [t for t, _ in seen["accept"]] and record.times[-1] == t[-1]
    assert torch.equal(record.states[0], Y0) and torch.equal(record.states[-1], solution.ys[-1])
    assert solve(swing, Y0, t).record is None


@pytest.mark.parametrize("gradient", ["aca", "direct"])
@pytest.mark.parametrize("method", ["RK4", "RK12", "RK23", "RK45"])
def test_every_replayed_step_is_the_stored_next_state_bit_for_bit(method, gradient):
    y0 = (Y0.clone().requires_grad_(), torch.ones(1, dtype=torch.float64))

    def func(t, y):
        return swing(t, y[0]), -y[1]

    solution = solve(func, y0, [0.0, 3.0], method=method, h=0.05, rtol=1e-3, gradient=gradient, record=True)
    for stored, replayed in zip(solution.record.states, solution.record.replayed()):
        assert torch.equal(stored, replayed)


def test_a_field_that_changed_since_is_not_replayed_bit_for_bit():
    shift = torch.zeros((), dtype=torch.float64)
    y0 = Y0.clone().requires_grad_()
    solution = solve(lambda t, y: swing(t, y) + shift, y0, [0.0, 3.0], record=True)
    shift.data.fill_(1e-12)
    assert not torch.equal(solution.record.replayed(), solution.record.states)


def test_mali_inverts_its_own_steps():
    solution = solve(swing, Y0.clone().requires_grad_(), [0.0, 1.0], gradient="mali", record=True)
    rebuilt = solution.record.replayed()
    # rounding, which grows by less than exp(integral of 2 y^2 - 2) < 1e3 on the way back
    assert rebuilt.shape == solution.record.states.shape and (rebuilt - solution.record.states).abs().max() < 1e-12
    assert not torch.equal(rebuilt[0], Y0)


def test_the_graph_of_the_accepted_steps_has_the_gradient_of_aca():
    y0, t = Y0.clone().requires_grad_(), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)
    solution = solve(swing, y0, t, record=True)
    graph = solution.record.graph(y0, t)
    torch.testing.assert_close(graph, solution.ys[1:], rtol=1e-13, atol=1e-13)
    found, expected = (torch.autograd.grad(ys.sum(), (y0, t)) for ys in (solution.ys[1:], graph))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keywords", [{}, {"method": "RK4", "h": 0.1}, {"method": "Rodas5P"}], ids=str)
def test_the_graph_moves_with_its_times(keywords):
    """Differences see the steps between the times move, as derivatives do."""
    y0, t = Y0.clone().requires_grad_(), torch.tensor([0.0, 0.31, 1.0], dtype=torch.float64, requires_grad=True)
    solution = solve(lambda t, y: torch.cos(5 * t) * swing(t, y), y0, t, record=True, rtol=1e-3, **keywords)
    assert torch.autograd.gradcheck(solution.record.graph, (y0, t))


@pytest.mark.parametrize("gradient", ["naive", "adjoint"])
def test_what_is_not_kept_is_refused(gradient):
    solution = solve(swing, Y0.clone().requires_grad_(), [0.0, 0.1], gradient=gradient, record=True)
    with pytest.raises(ValueError, match="keeps no states to replay"):
        solution.record.replayed()
    with pytest.raises(ValueError, match="keeps no graph"):
        solution.record.graph(Y0, torch.tensor([0.0, 0.1]))


def test_a_failed_solve_has_the_record_of_what_was_solved():
    solution = solve(swing, Y0, [0.0, 0.1, 90.0], max_evals=200, record=True, on_failure="return")
    assert isinstance(solution.error, SolverError)
    assert len(solution.record.times) == solution.stats.n_accepted == len(solution.record.states)
