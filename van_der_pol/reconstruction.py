"""The forward trajectory as each gradient method sees it again in its backward pass.

``aca`` and ``direct`` evaluate (or keep) each accepted step from its stored state; ``mali`` runs its leapfrog
backwards; ``adjoint`` solves the equation from y(T) in reverse time, which is all that is left to it.
"""

import torch

from torch_ACA import solve
from torch_ACA.steppers.base import Carry
from torch_ACA.steppers.runge_kutta import RungeKutta


def solve_node(solution):
    """The autograd node that holds what a solve with any gradient but naive remembers."""
    node = solution.ys.grad_fn
    while not hasattr(node, "run"):
        node = node.next_functions[-1][0]
    return node


@torch.no_grad()
def replay(solution):
    """Replay the accepted steps that an ``aca`` or ``direct`` solution remembers, with the code of aca's backward pass.

    :param solution: `Solution` of a solve whose y0 requires grad, not yet differentiated; tensor state
    :returns: times [N + 1], the stored states [N + 1, n] and the replayed ones [N + 1, n], each from the stored state
        before it (the first is the stored one)
    """
    node = solve_node(solution)
    run, problem = node.run, node.run.problem
    stepper = RungeKutta(problem.tableau, problem.field)
    *stored, _ = node.saved_tensors[node.n_inputs :]  # the last one only if there is dense output in the last step
    stored.append(solution.ys[-1].reshape(-1))
    steps = run.storage.steps
    replayed = [stored[0]]
    with problem.backward_pass():
        for step, y in zip(steps, stored):
            stepper.replay(step.t, step.h, y, step.t_end)
            replayed.append(stepper.replayed_end(y, step.h))
    times = torch.tensor([*(step.t for step in steps), steps[-1].t_end], dtype=torch.float64)
    return times, torch.stack(stored), torch.stack(replayed).detach()


def invert(solution):
    """Run the leapfrog of a ``mali`` solution backwards: times [N + 1] and states [N + 1, n], in forward order."""
    node = solve_node(solution)
    carry = Carry(node.t_end, *node.saved_tensors[:2])
    carries = [carry]
    with node.run.problem.backward_pass(), torch.no_grad():
        for step in reversed(node.run.steps):
            carry, _ = node.run.stepper.invert(carry, step.h)
            carries.append(carry)
    carries.reverse()
    return torch.tensor([c.t for c in carries], dtype=torch.float64), torch.stack([c.y for c in carries])


def solve_back(func, y_end, times, **solver):
    """Solve from y_end at the last of increasing ``times`` back to the first, as the adjoint method does.

    :returns: `Solution` in reverse order of ``times``; of the part that was solved where the solver gave up
    """
    with torch.no_grad():
        return solve(func, y_end.detach(), times.flip(0), on_failure="return", **solver)
