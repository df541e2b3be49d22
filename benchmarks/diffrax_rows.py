"""diffrax under vmap, on batches of independent problems: every row has its own steps; importing this needs jax."""

import diffrax
import jax
import jax.numpy as jnp

from benchmarks import diffrax_solver
from benchmarks.diffrax_solver import METHODS, to_jax
from benchmarks.problems import Perceptron
from benchmarks.row_problems import LotkaVolterra, RecurrentODE, RowProblem, StiffOscillators


def _lotka_volterra(t, y, parameters, speed):
    (a, b, c, d), = parameters
    return speed * jnp.stack([y[0] * (a - b * y[1]), y[1] * (d * y[0] - c)])


def _stiff(t, y, parameters, stiffness):
    (damping,) = parameters
    return jnp.stack([y[1], stiffness[0] * (damping - y[0] ** 2) * y[1] - y[0]])


def _perceptron(t, y, parameters, _):
    first, first_bias, second, second_bias = parameters[:4]
    return second @ jnp.tanh(first @ y + first_bias) + second_bias


def _recurrent_unit(y, x, parameters):
    """PyTorch's GRUCell, y [b, width], x [b, observed]."""
    of_x, of_y, x_bias, y_bias = parameters[4:]
    gates = zip(jnp.split(x @ of_x.T + x_bias, 3, 1), jnp.split(y @ of_y.T + y_bias, 3, 1))
    (reset_x, reset_y), (update_x, update_y), (new_x, new_y) = gates
    reset, update = jax.nn.sigmoid(reset_x + reset_y), jax.nn.sigmoid(update_x + update_y)
    return (1 - update) * jnp.tanh(new_x + reset * new_y) + update * y


# func(t, y, parameters, data of the row), parameters in the order of the module's
FIELDS = {LotkaVolterra: _lotka_volterra, StiffOscillators: _stiff, Perceptron: _perceptron, RecurrentODE: _perceptron}
UPDATES = {RecurrentODE: _recurrent_unit}


def missing(problem):
    """Why this cannot be used on a problem, or None."""
    if not isinstance(problem, RowProblem):
        return "for batches of independent rows"
    return diffrax_solver.missing(problem, FIELDS)


class Prepared(diffrax_solver.Prepared):
    """As `diffrax_solver.Prepared`: solves of rows under vmap, one interval behind the other under scan."""

    def _loss(self, problem):
        func, field, update = problem.func, FIELDS[type(problem.func)], UPDATES.get(type(problem.func))
        controller = diffrax.PIDController(rtol=problem.rtol, atol=problem.atol)
        solver, count, n = METHODS[problem.method](), len(problem.y0), problem.times.shape[1] - 1
        of_rows = to_jax(func.of_rows) if hasattr(func, "of_rows") else jnp.zeros((count, 1))
        observations = to_jax(func.observations) if update else jnp.zeros((n, count, 1))

        def end(t0, t1, y, parameters, of_row):
            term = diffrax.ODETerm(lambda t, y, args: field(t, y, *args))
            return diffrax.diffeqsolve(
                term, solver, t0, t1, None, y, (parameters, of_row), saveat=diffrax.SaveAt(t1=True),
                stepsize_controller=controller, max_steps=16384,
            ).ys[0]  # fmt: skip

        def loss(inputs, times):
            y0, parameters = inputs

            def interval(y, given):
                t0, t1, x = given
                y = jax.vmap(end, (0, 0, 0, None, 0))(t0, t1, y, parameters, of_rows)
                y = update(y, x, parameters) if update else y
                return y, y

            _, ys = jax.lax.scan(interval, y0, (times.T[:-1], times.T[1:], observations))
            return problem.loss(ys), (ys, None)

        return loss
