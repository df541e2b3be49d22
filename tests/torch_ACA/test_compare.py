"""The comparison of gradient methods."""

import pytest
import torch

from benchmarks.stiff_fields import ROBERTSON_SCALE, ROBERTSON_START, robertson
from torch_ACA import GRADIENTS, compare_gradients
from torch_ACA.rosenbrock_tableaus import RODAS5P


def test_table_of_methods(field, capsys):
    rows = compare_gradients(
        field, torch.randn(2, 3), [0.0, 1.0], lambda ys: (ys[-1] ** 2).sum(), rtol=1e-6, atol=1e-6
    )
    assert [row.gradient for row in rows] == list(GRADIENTS) and all(row.failure is None for row in rows)
    by_name = {row.gradient: row for row in rows}
    assert all(row.error < 1e-4 for row in rows)
    assert by_name["aca"].error == by_name["direct"].error or by_name["aca"].error < 1e-5
    assert by_name["aca"].saved_bytes < by_name["direct"].saved_bytes < by_name["naive"].saved_bytes
    assert by_name["direct"].n_backward_f_evals == 0 < by_name["aca"].n_backward_f_evals
    printed = capsys.readouterr().out
    assert all(name in printed for name in GRADIENTS) and "NFE" in printed


def test_a_failing_method_says_why(capsys):
    def contracting(t, y):
        return torch.stack([y[1], (0.15 - y[0] ** 2) * y[1] - y[0]])

    rows = compare_gradients(
        contracting, torch.tensor([2.0, 0.0]), [0.0, 10.0], lambda ys: (ys[-1] ** 2).sum(), max_evals=3000, rtol=1e-5
    )
    assert rows[-1].gradient == "mali" and "max_evals = 3000" in rows[-1].failure
    assert "failed" in capsys.readouterr().out


def robertson_loss(ys):
    return (ys[-1] / torch.tensor(ROBERTSON_SCALE)).pow(2).sum()


@pytest.mark.slow
@pytest.mark.parametrize("keywords", [{"method": "Rodas5P"}, {"method": "auto"}, {"method": RODAS5P}])
def test_stiff_problem(keywords, capsys):
    """The reference is a stiff solve too, whose gradient the exact ones meet to their tolerance; naive's is that of
    the step-size search as well."""
    p = torch.ones(3, requires_grad=True)
    rows = compare_gradients(
        lambda t, y: robertson(torch, y, p), torch.tensor(ROBERTSON_START), [0.0, 1.0], robertson_loss, rtol=1e-5,
        atol=1e-9, **keywords,
    )  # fmt: skip
    assert [row.gradient for row in rows] == ["aca", "direct", "naive"]
    assert all(row.failure is None and row.error < 1e-5 for row in rows[:2]) and rows[2].error < 0.1


@pytest.mark.slow
def test_stiff_problem_by_rows():
    p, seen = torch.ones(3, requires_grad=True), []

    def func(t, y):
        return robertson(torch, y.T, p).T

    def jac(t, y):
        seen.append(y.shape)
        return torch.func.vmap(torch.func.jacrev(lambda y: robertson(torch, y, p)))(y)

    (row,) = compare_gradients(
        func, torch.tensor(ROBERTSON_START).expand(4, 3), [0.0, 1.0], robertson_loss, rtol=1e-4, atol=1e-8, jac=jac,
        method="Rodas5P", jac_structure="rows", gradients=["aca"],
    )  # fmt: skip
    assert row.failure is None and row.error < 1e-3 and set(seen) == {(4, 3)}


def test_adjoint_of_a_stiff_solve_is_compared_where_it_is_asked_for():
    keywords = {"method": "Rodas5P", "gradients": ["aca", "adjoint"], "show": False}
    arguments = lambda t, y: -20 * y, torch.ones(2), [0.0, 0.1], lambda ys: ys[-1].sum()
    rows = compare_gradients(*arguments, adjoint={"method": "Dopri5"}, **keywords | {"gradients": ["adjoint"]})
    assert rows[0].error < 1e-3
    aca, adjoint = compare_gradients(*arguments, **keywords)
    assert aca.failure is None and "cannot solve backwards" in adjoint.failure
    with pytest.raises(ValueError, match="cannot solve backwards"):
        compare_gradients(*arguments, **keywords | {"gradients": "adjoint"})


@pytest.mark.parametrize("option", [{"memory": 2}, {"compile": "step"}, {"adjoint": {"rtol": 1e-8}}])
def test_what_one_method_alone_takes_goes_to_it(option):
    arguments = lambda t, y: -y, torch.ones(2, dtype=torch.float64), [0.0, 1.0], lambda ys: ys[-1].sum()
    rows = compare_gradients(*arguments, gradients=["aca", "adjoint"], show=False, **option)
    assert not any(row.failure for row in rows)
    with pytest.raises(ValueError, match="which is not among those compared"):
        compare_gradients(*arguments, gradients=["naive"], show=False, **option)


def test_jumps_parameters_and_functions_with_transforms_inside(capsys):
    """The reference stops at the jumps too, and knows of no other parameters; ALF cannot; PyTorch cannot tell what is
    saved."""
    a, b = torch.tensor([0.3, 0.9], requires_grad=True), torch.tensor(0.4, requires_grad=True)

    def func(t, y):
        return torch.func.grad(lambda y: -0.5 * (a * b * y * y).sum())(y) + (1.0 if t < 0.5 else 3.0)

    rows = compare_gradients(
        func, torch.ones(2, dtype=torch.float64), [0.0, 1.0], lambda ys: ys[-1].sum(), params=iter([a]),
        options={"jump_t": [0.5]}, rtol=1e-7, atol=1e-7,
    )  # fmt: skip
    assert all(row.error < 1e-5 and row.saved_bytes is None for row in rows[:-1])
    assert rows[-1].gradient == "mali" and "jumps are not available" in rows[-1].failure
    assert "None" not in capsys.readouterr().out


def test_losses_and_states_without_sense_are_named():
    y0 = torch.ones(2)
    for loss, message in ((None, "loss must be callable"), (lambda ys: ys, "loss must return a tensor of one number")):
        with pytest.raises(TypeError, match=message):
            compare_gradients(lambda t, y: -y, y0, [0.0, 1.0], loss)
    with pytest.raises(TypeError, match="y0 must be floating point or complex"):
        compare_gradients(lambda t, y: -y, y0.long(), [0.0, 1.0], torch.sum)
