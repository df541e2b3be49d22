"""The solvers compared: each library's gradient methods behind one interface.

A prepared solver is called for one solve with its backward pass; ``check()`` does the same once and looks at it.
"""

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import torch

from benchmarks import row_solvers
from benchmarks.problems import Check, flat
from benchmarks.row_problems import RowProblem
from benchmarks.stiff import Radau, StiffProblem
from torch_ACA import solve, solve_endtime
from torch_ACA.compat import torchdiffeq as drop_in

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None
try:
    import TorchDiffEqPack
except ImportError:
    TorchDiffEqPack = None
try:
    import torchode
except ImportError:
    torchode = None

MAX_EVALS = 100_000  # of func in one direction; a solve that takes more has failed
LIBRARIES = ("torch-ACA", "torchdiffeq", "TorchDiffEqPack", "torchode", "diffrax", "jax", "scipy")


class TooManyEvaluations(Exception):
    """A peer was stopped at MAX_EVALS."""


class Counted(torch.nn.Module):
    """A field that counts its calls."""

    def __init__(self, func):
        super().__init__()
        self.func, self.calls = func, 0

    def forward(self, t, y):
        self.calls += 1
        if self.calls > 2 * MAX_EVALS:
            raise TooManyEvaluations(f"more than {2 * MAX_EVALS} evaluations")
        return self.func(t, y)


class Prepared:
    """A PyTorch solver on a problem.

    :param integrate: integrate(func, y0, problem) -> outputs behind times[0] [m - 1, *shape], differentiable
    """

    def __init__(self, integrate, problem):
        self.integrate, self.problem = integrate, problem

    def __call__(self):
        return self._gradients(self._outputs(self.problem.func))

    def check(self):
        counted = Counted(self.problem.func)
        ys = self._outputs(counted)
        forward = counted.calls
        gradients = self._gradients(ys)
        return Check(flat([self.problem.measured(ys)]), flat(gradients), forward, counted.calls - forward)

    def warm_up(self):
        """A solve over a hundredth of the interval: everything is loaded then, and compiled."""
        type(self)(self.integrate, replace(self.problem, times=self.problem.times / 100))()

    def _outputs(self, func):
        self._y0 = self.problem.y0.detach().requires_grad_()
        return self.integrate(func, self._y0, self.problem)

    def _gradients(self, ys):
        start = [self._y0] * self.problem.counts_start
        return torch.autograd.grad(self.problem.loss(ys), [*start, *self.problem.func.parameters()])


class Uncounted(Prepared):
    """One whose func must be what it is: a func that counts its calls cannot be compiled."""

    def check(self):
        ys = self._outputs(self.problem.func)
        return Check(flat([self.problem.measured(ys)]), flat(self._gradients(ys)), None, None)


class Ours(Prepared):
    """`torch_ACA.solve`, for one output `solve_endtime`. They count evaluations themselves: a counting func could not
    be compiled.

    :param integrate: keywords of `solve`
    """

    def check(self):
        ys = self._outputs(self.problem.func)
        gradients = self._gradients(ys)
        stats, ys = self._stats, self.problem.measured(ys)
        tries = int(torch.as_tensor(stats.n_accepted + stats.n_rejected).max())  # of the row with most
        return Check(flat([ys]), flat(gradients), stats.n_f_evals, stats.n_backward_f_evals, tries)

    def _outputs(self, func):
        self._y0 = self.problem.y0.detach().requires_grad_()
        keywords = self.problem.solver | {"max_evals": MAX_EVALS} | self.integrate
        times = self.problem.times
        if len(times) == 2:
            y, self._stats = solve_endtime(func, self._y0, *times.tolist(), **keywords)
            return y[None]
        solution = solve(func, self._y0, times, **keywords)
        self._stats = solution.stats
        return solution.ys[1:]


def _torchdiffeq(name):
    methods = {"Dopri5": "dopri5", "HeunEuler": "adaptive_heun", "RK2": "midpoint"}

    def integrate(func, y0, problem):
        times = problem.times.to(y0.device)
        keywords = {"method": methods[problem.method], "rtol": problem.rtol, "atol": problem.atol}
        if problem.fixed_step:
            keywords["options"] = {"step_size": problem.fixed_step}
        return getattr(torchdiffeq, name)(func, y0, times, **keywords)[1:]

    return integrate


def _torchdiffeqpack(func, y0, problem):
    """One solve per output: this library's ACA gives the end point alone."""
    options = {
        "method": {"Dopri5": "dopri5", "HeunEuler": "rk12"}[problem.method], "h": None, "rtol": problem.rtol,
        "atol": problem.atol, "print_neval": False, "neval_max": MAX_EVALS,
    }  # fmt: skip
    times, ys = problem.times.tolist(), [y0]
    for t0, t1 in zip(times, times[1:]):
        ys.append(TorchDiffEqPack.odesolve_adjoint(func, ys[-1], options | {"t0": t0, "t1": t1}))
    return torch.stack(ys[1:])


def _torchode(func, y0, problem):
    """The state as one row, so that all of it shares its steps as in the other libraries; without gradients through
    the step sizes, which are its default and wrong by orders of magnitude."""
    methods = {"Dopri5": torchode.Dopri5, "HeunEuler": torchode.Heun}
    term = torchode.ODETerm(lambda t, y: func(t[0], y.view(y0.shape)).reshape(1, -1), with_stats=False)
    controller = torchode.IntegralController(atol=problem.atol, rtol=problem.rtol, term=term)
    solver = torchode.AutoDiffAdjoint(
        methods[problem.method](term=term), controller, backprop_through_step_size_control=False
    )
    times = problem.times.to(y0)[None]
    span = times[:, 0], times[:, -1]
    outputs = times[:, 1:] if times.shape[1] > 2 else None
    solution = solver.solve(torchode.InitialValueProblem(y0.reshape(1, -1), *span, outputs))
    if bool((solution.status != 0).any()):
        raise RuntimeError(f"torchode ended with status {solution.status.tolist()}")
    return solution.ys[0].unflatten(-1, y0.shape)


@dataclass(frozen=True)
class Solver:
    """``prepare(problem)`` gives a prepared solver; ``missing(problem)`` says why it cannot be used (None: it can)."""

    library: str
    prepare: Callable
    missing: Callable


def _ours(*, gpu=False, **keywords):
    def missing(problem):
        if gpu and problem.y0.device.type != "cuda":
            return "needs a GPU"
        unknown = [name for name in keywords if name not in inspect.signature(solve).parameters]
        return f"this version of torch_ACA.solve has no {unknown[0]}=" if unknown else None

    return Solver("torch_ACA", lambda problem: Ours(keywords, problem), missing)


def _stiff(solver, *, of_rows=False):
    """The solver, for stiff problems alone: the others would be too large for it."""

    def missing(problem):
        if not isinstance(problem, StiffProblem):
            return "for stiff problems"
        return "for batches of independent rows" if of_rows and not problem.by_rows else solver.missing(problem)

    return replace(solver, missing=missing)


def _peer(library, module, integrate, *, of_rows=False, fixed=False, kind=Prepared):
    def missing(problem):
        if of_rows and not isinstance(problem, RowProblem):
            return "for batches of independent rows"
        if module is None:
            return f"{library} is not installed"
        return "fixed steps were not set up for it" if problem.fixed_step and not fixed else None

    return Solver(library, lambda problem: kind(integrate, problem), missing)


def _diffrax(name="diffrax_solver"):
    """JAX takes seconds to import and fixes its threads then, so that is done only where it is used."""

    def module():
        return importlib.import_module(f"benchmarks.{name}")

    def missing(problem):
        if importlib.util.find_spec("diffrax") is None:
            return "diffrax is not installed"
        return module().missing(problem)

    return Solver("diffrax", lambda problem: module().Prepared(problem), missing)


_OWN_STEPS = {"per_sample": True, "jac_structure": "dense"}  # a Jacobian for each row comes with it
SOLVERS = {
    "aca": _ours(gradient="aca"),
    "aca, memory=states": _ours(gradient="aca", memory="states"),
    "aca, memory=unlimited": _ours(gradient="aca", memory=math.inf),
    "aca, memory=50": _ours(gradient="aca", memory=50),
    "aca, compile": _ours(gradient="aca", compile=True),
    "aca, compile steps": _ours(gradient="aca", compile="step"),
    "aca, CUDA graphs": _ours(gradient="aca", compile="reduce-overhead", gpu=True),
    "naive": _ours(gradient="naive"),
    "adjoint": _ours(gradient="adjoint"),
    "torchdiffeq odeint": _peer("torchdiffeq", torchdiffeq, _torchdiffeq("odeint"), fixed=True),
    "torchdiffeq odeint_adjoint": _peer("torchdiffeq", torchdiffeq, _torchdiffeq("odeint_adjoint"), fixed=True),
    "TorchDiffEqPack ACA": _peer("TorchDiffEqPack", TorchDiffEqPack, _torchdiffeqpack),
    "torchode": _peer("torchode", torchode, _torchode),
    "diffrax, jitted": _diffrax(),
    "Rodas5P": _stiff(_ours()),
    "Rodas5P, compile": _stiff(_ours(compile=True)),
    "Rodas5P, per_sample": _stiff(_ours(**_OWN_STEPS), of_rows=True),
    "Rodas5P, per_sample, compile": _stiff(_ours(compile=True, **_OWN_STEPS), of_rows=True),
    "auto": _stiff(_ours(method="auto")),
    "Dopri5": _stiff(_ours(method="Dopri5", jac_structure="dense", max_evals=MAX_EVALS // 2)),
    "diffrax Kvaerno5, jitted": _stiff(_diffrax()),
    "scipy Radau, forward": _stiff(Solver("scipy", Radau, lambda problem: None)),
    "aca, per_sample": _peer("torch_ACA", solve, row_solvers.per_sample, of_rows=True),
    "aca, per_sample, compile": _peer("torch_ACA", solve, row_solvers.compiled, of_rows=True, kind=Uncounted),
    "aca, rows jointly": _peer("torch_ACA", solve, row_solvers.joint, of_rows=True),
    "torchode, per row": _peer("torchode", torchode, row_solvers.by_torchode, of_rows=True),
    "torchode, per row, as it comes": _peer(
        "torchode", torchode, partial(row_solvers.by_torchode, through_sizes=True), of_rows=True
    ),
    "diffrax, vmap": _diffrax("diffrax_rows"),
}


# what a client program imports, by solver (None: not installed)
DROP_INS = {
    "aca": drop_in,
    "aca, memory=unlimited": SimpleNamespace(
        odeint=partial(drop_in.odeint, memory="unlimited"), odeint_event=drop_in.odeint_event
    ),
    "torchdiffeq odeint": torchdiffeq,
}


def missing(solver, problem):
    """Why a solver cannot be used on a problem, or None."""
    return SOLVERS[solver].missing(problem)
