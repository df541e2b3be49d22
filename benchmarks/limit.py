"""The limit of ACA on a problem, measured: the calls of func that no implementation can do without.

Forward NFE_acc * c_f, backward NFE_acc * (c_fg + c_vjp), where c_f is one call of func, c_fg one that records a graph
and c_vjp its VJP; NFE_acc counts the stages of the accepted steps. Keeping graphs instead of evaluating again has the
floor NFE_acc * (c_fg + c_vjp).
"""

import torch


class Limit:
    """:param n_evals: NFE_acc"""

    def __init__(self, problem, n_evals):
        self.n_evals = n_evals
        self._func, self._y0 = problem.func, problem.y0.detach().requires_grad_()
        self._wanted = [self._y0, *problem.func.parameters()]
        self._bar = torch.ones_like(self._y0)
        self._t = torch.zeros((), dtype=self._y0.dtype, device=self._y0.device)

    @torch.no_grad()
    def evaluations(self):
        """NFE_acc * c_f"""
        for _ in range(self.n_evals):
            self._func(self._t, self._y0)

    def vjps(self):
        """NFE_acc * (c_fg + c_vjp)"""
        for _ in range(self.n_evals):
            torch.autograd.grad(self._func(self._t, self._y0), self._wanted, self._bar, allow_unused=True)
