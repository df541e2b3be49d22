"""Systems of three bodies and their true trajectories."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp

from three_body.physics import distances, slope

POINTS_PER_UNIT = 1000
TOLERANCE = 1e-12
MIN_DISTANCE = 0.05  # of random systems at all times; the authors' own system keeps just above it
CHECKED_UNTIL = 2.0  # random systems are free of collisions up to here
ATTEMPTS = 1000


@dataclass(frozen=True)
class System:
    """Masses [3], and the positions and velocities [3, 3] of the bodies at time 0, as nested lists of floats.

    Raises:
        ValueError: a number is missing or not finite, a mass is not positive, or two bodies coincide.
    """

    name: str
    masses: list
    positions: list
    velocities: list

    def __post_init__(self):
        for field, shape in (("masses", (3,)), ("positions", (3, 3)), ("velocities", (3, 3))):
            try:
                values = np.array(getattr(self, field), dtype=float)
            except (TypeError, ValueError):
                values = np.empty(0)
            if values.shape != shape or not np.isfinite(values).all():
                numbers = " lists of ".join(map(str, shape))
                raise ValueError(f"{field} of a system are {numbers} finite numbers, got {getattr(self, field)}")
        if min(self.masses) <= 0:
            raise ValueError(f"masses must be positive, got {self.masses}")
        for i, j in ((0, 1), (0, 2), (1, 2)):
            if self.positions[i] == self.positions[j]:
                raise ValueError(f"bodies {i + 1} and {j + 1} coincide at {self.positions[i]}; they must be apart")

    @property
    def state(self):
        """State at time 0 [6, 3]."""
        return torch.tensor([*self.positions, *self.velocities], dtype=torch.float64)


# Unequal masses, positions and velocities of the authors' three_body_problem.py
PAPER = System(
    "paper",
    masses=[1.1, 1.1, 0.9],
    positions=[[0.0, 0.2, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 0.5]],
    velocities=[[0.0, 0.1, 0.0], [0.0, 0.0, 0.1], [0.1, 0.0, 0.0]],
)


def find_system(text):
    """The system called ``paper``, the random one of a whole-number seed, or the one in a JSON file.

    Raises:
        ValueError: none of these, or a file without usable masses, positions and velocities.
    """
    if text == PAPER.name:
        return PAPER
    if text.isdecimal():
        return random_system(int(text))
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"system {text!r} is neither 'paper', nor a seed (0, 1, ...), nor a JSON file")
    try:
        content = json.loads(path.read_text())
        return System(path.stem, **{name: content[name] for name in ("masses", "positions", "velocities")})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON object with masses, positions and velocities") from error


def random_system(seed):
    """A system of about the paper's size: masses in [0.8, 1.2], positions in a cube of side 1, speeds up to 0.2 per
    axis; drawn again until all distances stay above MIN_DISTANCE.

    Raises:
        ValueError: ATTEMPTS draws collide.
    """
    generator = np.random.default_rng(seed)
    for _ in range(ATTEMPTS):
        system = System(
            f"random-{seed}",
            masses=generator.uniform(0.8, 1.2, 3).round(3).tolist(),
            positions=generator.uniform(-0.5, 0.5, (3, 3)).round(3).tolist(),
            velocities=generator.uniform(-0.2, 0.2, (3, 3)).round(3).tolist(),
        )
        # few draws survive the loose solve, which ends at a near collision; the tight one confirms them
        if stays_apart(system, tolerance=1e-5) and stays_apart(system):
            return system
    raise ValueError(f"seed {seed}: {ATTEMPTS} random systems come closer than {MIN_DISTANCE}; choose another seed")


def stays_apart(system, tolerance=TOLERANCE):
    """Whether no two bodies come closer than MIN_DISTANCE until CHECKED_UNTIL."""

    def margin(t, y):
        return float(distances(torch.from_numpy(y).view(6, 3)[:3]).min()) - MIN_DISTANCE

    margin.terminal = True
    if margin(0.0, system.state.flatten().numpy()) <= 0:
        return False
    return _solve(system, (0.0, CHECKED_UNTIL), events=margin, tolerance=tolerance).status == 0


def simulate(system, times):
    """True states at ``times`` (increasing, from 0 on): float64 [len(times), 6, 3].

    Raises:
        ValueError: times out of order or not from 0 on, or bodies that collide.
    """
    times = np.asarray(times, dtype=float)
    if times.ndim != 1 or len(times) < 2 or times[0] != 0 or not (np.diff(times) > 0).all():
        raise ValueError("times must begin at 0 and increase strictly")
    solution = _solve(system, times, t_eval=times)
    if not solution.success:
        raise ValueError(f"system {system.name} cannot be simulated until {times[-1]:g}: {solution.message}")
    return torch.from_numpy(solution.y.T.reshape(-1, 6, 3).copy())


def _solve(system, times, *, tolerance=TOLERANCE, **options):
    masses = torch.tensor(system.masses, dtype=torch.float64)

    def func(t, y):
        return slope(masses, torch.from_numpy(y).view(6, 3)).flatten().numpy()

    span, start = (times[0], times[-1]), system.state.flatten().numpy()
    return solve_ivp(func, span, start, method="DOP853", rtol=tolerance, atol=tolerance, **options)


def time_grid(until, points_per_unit=POINTS_PER_UNIT):
    """Equally spaced times from 0 to ``until``, both included, ``points_per_unit`` of them per unit of time."""
    return torch.linspace(0.0, until, round(until * points_per_unit), dtype=torch.float64)


def as_dict(system):
    """The system as JSON-ready dict; ``System(**as_dict(system))`` undoes it."""
    return asdict(system)
