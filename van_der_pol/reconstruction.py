"""The forward trajectory in reverse time, which is all that is left to the adjoint method in its backward pass.

What the other methods see again there, a solution says itself: `Record.replayed`.
"""

import torch

from torch_ACA import solve


def solve_back(func, y_end, times, **solver):
    """Solve from y_end at the last of increasing ``times`` back to the first, as the adjoint method does.

    :returns: `Solution` in reverse order of ``times``; of the part that was solved where the solver gave up
    """
    with torch.no_grad():
        return solve(func, y_end.detach(), times.flip(0), on_failure="return", **solver)
