"""Solves wait for the device once in a try, compiled loops not at all."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.torch_ACA.test_compiled_loop import stiff
from torch_ACA import solve
from torch_ACA.compilation import code, loops
from torch_ACA.compilation.func_graph import Tracer

pytestmark = [pytest.mark.filterwarnings("error:compile=True"), pytest.mark.usefixtures("ungenerated")]


class Syncs(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers taken out of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        self.count += waits and args[0].dtype != torch.uint8  # the state of a random stream: on the CPU anyway
        return func(*args, **(kwargs or {}))


def syncs(tolerance, **keywords):
    y0 = torch.ones(3)
    with torch.no_grad(), Syncs() as mode:
        stats = solve(stiff, y0, [0.0, 1.0], method="RK23", rtol=tolerance, atol=tolerance, **keywords).stats
    return mode.count, stats.n_accepted + stats.n_rejected


def unseen(function):
    """The same without the modes around it: Dynamo compiles nothing inside of one, and generated code passes by them,
    which the graphs that run in its place here do not."""

    def call(*arguments, **keywords):
        with _disable_current_modes():
            return function(*arguments, **keywords)

    return call


@pytest.mark.parametrize(("compile", "a_try"), [
    (False, 1), ("step", 1), pytest.param("loop", 0, marks=pytest.mark.loops),
])  # fmt: skip
def test_how_often_a_solve_waits_for_the_device(compile, a_try, monkeypatch):
    """In a try; by the difference of two solves, as what is done once in a solve does not count."""
    generated = code.generated
    monkeypatch.setattr(code, "generated", lambda *a, **k: unseen(unseen(generated)(*a, **k)))
    monkeypatch.setattr(Tracer, "__call__", unseen(Tracer.__call__))
    (few, n_few), (many, n_many) = syncs(1e-2, compile=compile), syncs(1e-4, compile=compile)
    assert n_few + 20 < n_many < loops.MOST
    assert many - few == a_try * (n_many - n_few)


@pytest.mark.parametrize(("method", "options", "a_step"), [("RK23", {}, 0), ("fehlberg2", {"interp": "cubic"}, 1)])
def test_outputs_inside_steps_wait_where_a_slope_was_evaluated_for_them(method, options, a_step):
    """Once in a step that has some: its slope at the end is looked at, unless the error estimate has seen it."""
    counts = []
    for times in ([0.0, 1.0], [0.0, 0.5, 0.5001, 0.9, 1.0]):
        with torch.no_grad(), Syncs() as mode:
            stats = solve(stiff, torch.ones(3), times, method=method, rtol=1e-2, atol=1e-2, options=options).stats
        counts.append(mode.count)
    assert stats.n_accepted > 5  # two of which have the outputs
    assert counts[1] - counts[0] == 2 * a_step
