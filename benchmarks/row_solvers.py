"""Batches of independent problems by each library: what `solvers.Prepared` integrates with."""

from benchmarks.row_problems import joint_end
from torch_ACA import solve_endtime

try:
    import torchode
except ImportError:
    torchode = None


def per_sample(func, y0, problem, **keywords):
    """A row like another takes its own steps."""

    def end(y, t0, t1):
        return solve_endtime(func, y, t0, t1, per_sample=True, **problem.solver, **keywords)[0]

    return problem.through(end, y0)


def compiled(func, y0, problem):
    """The same with its loop compiled."""
    return per_sample(func, y0, problem, compile=True)


def joint(func, y0, problem):
    """All rows take the same steps."""
    return problem.through(lambda y, t0, t1: joint_end(func, y, t0, t1, **problem.solver), y0)


def by_torchode(func, y0, problem, *, through_sizes=False):
    """Each row takes its own steps.

    :param through_sizes: differentiate through their sizes as well, which is torchode's default
    """
    methods = {"Dopri5": torchode.Dopri5, "HeunEuler": torchode.Heun}
    term = torchode.ODETerm(lambda t, y: func(t[:, None], y), with_stats=False)
    controller = torchode.IntegralController(atol=problem.atol, rtol=problem.rtol, term=term)
    solver = torchode.AutoDiffAdjoint(
        methods[problem.method](term=term), controller, backprop_through_step_size_control=through_sizes
    )

    def end(y, t0, t1):
        solution = solver.solve(torchode.InitialValueProblem(y, t0.to(y), t1.to(y)))
        if bool((solution.status != 0).any()):
            raise RuntimeError(f"torchode ended with status {solution.status.tolist()}")
        return solution.ys[:, -1]

    return problem.through(end, y0)
