"""The keywords of a solve stand in one place, and every function that solves takes them from there."""

import inspect
from dataclasses import fields

import pytest
import torch

from torch_ACA import ODEBlock, SolverOptions, compare_gradients, odeint, solve, solve_endtime, solve_event

OPTIONS = {option.name: option.default for option in fields(SolverOptions)}
TAKING = {  # what each does not take, and the defaults that differ
    solve: ((), {}),
    solve_endtime: (("dense", "on_failure", "record"), {}),
    solve_event: (("dense", "on_failure", "record"), {}),
    odeint: (("dense", "on_failure", "record"), {"rtol": 1e-7, "atol": 1e-9}),
    ODEBlock: (
        ("dense", "on_failure", "record", "args"), {"method": "RK12", "rtol": 1e-2, "atol": 1e-2, "max_evals": 50_000}
    ),
    compare_gradients: (("gradient", "dense", "on_failure", "record", "per_sample", "args"), {}),
}


@pytest.mark.parametrize("function", TAKING, ids=lambda function: function.__name__)
def test_signatures_agree(function):
    without, defaults = TAKING[function]
    taken = {
        name: parameter.default for name, parameter in inspect.signature(function).parameters.items() if name in OPTIONS
    }
    assert taken == {name: value for name, value in (OPTIONS | defaults).items() if name not in without}


@pytest.mark.parametrize("function", TAKING, ids=lambda function: function.__name__)
def test_every_keyword_is_documented_and_no_other_is_taken(function):
    if function is not ODEBlock:  # its settings are those of solve
        for name in inspect.signature(function).parameters:
            assert name in function.__doc__
    with pytest.raises(TypeError, match="takes no keyword tolerance; accepted: "):
        function(*[lambda t, y: -y, torch.ones(1), 0.0, 1.0][: 1 if function is ODEBlock else 4], tolerance=1e-3)


def test_a_block_has_the_settings_of_a_solve():
    block = ODEBlock(lambda t, y: -y, params=[], max_evals=7)
    assert block.settings == {
        name: value
        for name, value in (OPTIONS | TAKING[ODEBlock][1] | {"params": [], "max_evals": 7}).items()
        if name not in TAKING[ODEBlock][0]
    }
