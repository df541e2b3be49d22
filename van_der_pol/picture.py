"""A photograph carried along z' = tanh(K * z) by a convolution K, and rebuilt from its end."""

from pathlib import Path

import numpy as np
import torch

from harness.cli import positive_float, positive_int, run_main
from harness.files import atomic_write
from harness.progress import progress
from torch_ACA import solve
from van_der_pol import records
from van_der_pol.data import ODE45, photograph
from van_der_pol.models import Convolution
from van_der_pol.reconstruction import solve_back

TIMES = 5
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
SCALE = 2.0
PICTURES = "pictures.npz"


def main(argv=None):
    parser = records.measurement_parser(__doc__, "picture")
    parser.add_argument("--kernels", type=positive_int, default=10, help="random kernels to repeat it with")
    parser.add_argument("--horizon", type=positive_float, default=5.0, help="end T")
    parser.add_argument("--side", type=positive_int, default=64, help="pixels of a side of the photograph")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    times = torch.linspace(0.0, args.horizon, TIMES, dtype=torch.float64)
    photo, pictures = photograph(args.side), {}
    records.write(
        args, progress(rows(photo, times, range(args.seed, args.seed + args.kernels), pictures), desc="kernels")
    )
    with atomic_write(Path(args.out) / PICTURES) as file:
        np.savez_compressed(file, times=times.numpy(), **pictures)


def rows(photo, times, seeds, pictures):
    """Relative errors of what is rebuilt at ``times``, for all kernels, and at t = 0 for all tolerances with the first.

    ``pictures`` is given the states of the first kernel, [times, 3, side, side] under forward, adjoint and aca.
    """
    for seed in seeds:
        states = rebuild(Convolution(seed, scale=SCALE), photo, times, ODE45)
        if not pictures:
            pictures.update({name: found.float().numpy() for name, found in states.items()})
        for name in ("adjoint", "aca"):
            errors = relative_errors(states[name], states["forward"])
            yield {"sweep": "kernel", "kernel": seed, "label": name, "t": times.tolist(), "error": errors, **ODE45}
    for tolerance in TOLERANCES:
        tight = {"rtol": tolerance, "atol": tolerance * ODE45["atol"] / ODE45["rtol"]}
        states = rebuild(Convolution(seeds[0], scale=SCALE), photo, times, tight)
        for name in ("adjoint", "aca"):
            error = relative_errors(states[name], states["forward"])[0]
            yield {"sweep": "tolerance", "kernel": seeds[0], "label": name, "error": error, **tight}


def rebuild(field, photo, times, tolerances):
    """The states at ``times`` (landed on) going forward, solved back (adjoint) and replayed (aca)."""
    solver = {"method": "RK45", "options": {"land_on_t": True}, **tolerances}
    forward = solve(field, photo.clone().requires_grad_(), times, record=True, **solver)
    back = solve_back(field, forward.ys[-1], times, **solver)
    if not back.success:
        raise RuntimeError(f"the reverse solve gave up: {back.status}")
    at_times = torch.searchsorted(forward.record.times, times)
    return {
        "forward": forward.ys.detach(),
        "adjoint": back.ys.flip(0),
        "aca": forward.record.replayed()[at_times],
    }


def relative_errors(found, true):
    """|found - true| / |true| of each picture of [m, ...]: list of m floats."""
    return ((found - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).tolist()


if __name__ == "__main__":
    run_main(main)
