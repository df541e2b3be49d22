"""diffrax, with solve and gradient jitted together; importing this needs jax and diffrax."""

import os

import torch

# JAX reads these when it starts: as many threads as PyTorch has
os.environ["NPROC"] = str(torch.get_num_threads())
if torch.get_num_threads() == 1:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import diffrax
import jax
import jax.numpy as jnp

from benchmarks.problems import Check, Oscillators, Perceptron, flat
from benchmarks.stiff import StiffProblem
from three_body.models import NewtonODE
from three_body.physics import K1, K2
from van_der_pol.models import VanDerPol

jax.config.update("jax_enable_x64", True)  # float32 arrays stay what they are

METHODS = {
    "Dopri5": diffrax.Dopri5, "HeunEuler": diffrax.Heun, "RK2": diffrax.Midpoint, "Rodas5P": diffrax.Kvaerno5
}  # fmt: skip
MOST_STEPS = 2**16


def _three_body(t, state, parameters):
    (masses,) = parameters
    positions, velocities = state[:3], state[3:]
    pulls = positions[None, :, :] - positions[:, None, :]
    squares = (pulls**2).sum(-1) + jnp.eye(3)
    return jnp.concatenate([K2 * velocities, K1 * ((masses * squares**-1.5)[..., None] * pulls).sum(1)])


def _perceptron(t, y, parameters):
    first, first_bias, second, second_bias = parameters
    return jnp.tanh(y @ first.T + first_bias) @ second.T + second_bias


def _oscillators(t, y, parameters):
    (weight,) = parameters
    return jnp.tanh(y @ weight)


def _van_der_pol(t, y, parameters):
    (mu,) = parameters
    return jnp.stack([y[1], (mu - y[0] ** 2) * y[1] - y[0]])


# func(t, y, parameters), parameters in the order of the module's
FIELDS = {NewtonODE: _three_body, Perceptron: _perceptron, Oscillators: _oscillators, VanDerPol: _van_der_pol}


def _stiff(func):
    return lambda t, y, parameters: func.slope(jnp, y, *parameters)


def missing(problem, fields=FIELDS):
    """Why diffrax cannot be used on a problem, or None."""
    if type(problem.func) not in fields and not isinstance(problem, StiffProblem):
        return "the vector field was not written in JAX"
    if problem.y0.device.type == "cuda" and jax.default_backend() != "gpu":
        return "jax is installed without CUDA"
    return None


class Prepared:
    """Like `solvers.Prepared`; evaluations inside a jitted loop are not counted."""

    def __init__(self, problem):
        self.problem = problem
        self._inputs = [to_jax(problem.y0), [to_jax(p) for p in problem.func.parameters()]]
        self._times = to_jax(problem.times.to(problem.y0.dtype))
        self._run = jax.jit(jax.value_and_grad(self._loss(problem), has_aux=True))

    def _loss(self, problem):
        """loss((y0, parameters), times) -> the loss, and the outputs behind times[0] with the number of tries."""
        stiff = isinstance(problem, StiffProblem)
        field = _stiff(problem.func) if stiff else FIELDS[type(problem.func)]
        controller = diffrax.PIDController(rtol=problem.rtol, atol=problem.atol)
        if problem.fixed_step:
            controller = diffrax.ConstantStepSize()
        solver, term = METHODS[problem.method](), diffrax.ODETerm(field)

        def solve(y0, parameters, times):
            saveat = diffrax.SaveAt(ts=times[1:]) if len(times) > 2 else diffrax.SaveAt(t1=True)
            solution = diffrax.diffeqsolve(
                term, solver, times[0], times[-1], problem.fixed_step, y0, parameters, saveat=saveat,
                stepsize_controller=controller, max_steps=MOST_STEPS if stiff else 4096,
            )  # fmt: skip
            return solution.ys, solution.stats["num_steps"]

        if stiff and problem.by_rows:
            solve = jax.vmap(solve, in_axes=(0, 0, None), out_axes=(1, 0))

        def loss(inputs, times):
            ys, steps = solve(*inputs, times)
            return problem.loss(ys), (ys, steps.max())

        return loss

    def __call__(self):
        return jax.block_until_ready(self._run(self._inputs, self._times))

    def check(self):
        (_, (ys, steps)), (y0_bar, parameter_bars) = self()
        bars = [*[y0_bar] * self.problem.counts_start, *parameter_bars]
        ys = self.problem.measured(_to_torch(ys))
        return Check(flat([ys]), flat(map(_to_torch, bars)), None, None, None if steps is None else int(steps))

    def warm_up(self):
        """A solve over a hundredth of the interval, with the compilation."""
        jax.block_until_ready(self._run(self._inputs, self._times / 100))


def to_jax(tensor):
    """A tensor as an array of JAX."""
    return jnp.asarray(tensor.detach().cpu().numpy())


def _to_torch(array):
    return torch.tensor(jax.device_get(array))
