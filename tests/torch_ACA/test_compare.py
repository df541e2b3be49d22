"""The comparison of gradient methods."""

import torch

from torch_ACA import GRADIENTS, compare_gradients


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
