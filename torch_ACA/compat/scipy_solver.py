"""scipy's solvers behind torchdiffeq's method name ``scipy_solver``: a reference, and stiff problems without
gradients.
"""

import numpy as np
import torch
from scipy.integrate import solve_ivp

from ..errors import SolverError
from ..state import StateLayout


def odeint_scipy(func, y0, t, *, rtol, atol, options):
    """y at all of t by `scipy.integrate.solve_ivp`; not differentiable.

    :param options: ``solver`` names scipy's method (default RK45; LSODA, BDF, Radau for stiff problems); the others are
        handed to solve_ivp
    :raises ValueError: gradients would be needed
    :raises SolverError: scipy did not reach t[-1]
    """
    options = dict(options or {})
    layout = StateLayout(y0)
    t = torch.as_tensor(t, dtype=torch.float64)
    flat = layout.flatten(y0)
    if torch.is_grad_enabled() and (flat.requires_grad or t.requires_grad):
        raise ValueError("method 'scipy_solver' is not differentiable: use it under torch.no_grad()")

    def slope(time, y):
        with torch.no_grad():
            state = layout.unflatten(torch.as_tensor(y, dtype=layout.dtype, device=layout.device))
            k = layout.flatten(func(torch.tensor(time, dtype=layout.dtype, device=layout.device), state))
        return k.double().cpu().numpy()

    times = t.detach().cpu().numpy()
    y_start = flat.detach().double().cpu().numpy()
    result = solve_ivp(
        slope, (times[0], times[-1]), y_start, options.pop("solver", "RK45"), times, rtol=rtol, atol=atol, **options
    )
    if not result.success:
        reached = float(result.t[-1]) if len(result.t) else float(times[0])
        raise SolverError(reached, 0.0, len(result.t), result.nfev, what=f"scipy gave up ({result.message})")
    ys = torch.as_tensor(np.ascontiguousarray(result.y.T), dtype=layout.dtype, device=layout.device)
    return layout.unflatten(ys)
