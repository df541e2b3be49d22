"""Stiff problems of the literature, for numpy, torch and jax.numpy alike (``xp``).

field(xp, y, p): y [n] and p, factors on the rate constants, ones as published, or weights; kinetics take both with a
further axis behind, too, for as many systems at once.
"""

import numpy as np


def robertson(xp, y, p):
    """Robertson's kinetics (Hairer and Wanner, Solving ODEs II, eq. IV.1.4), rates from 0.04 to 3e7."""
    a, b, c = 0.04 * p[0] * y[0], 3e7 * p[1] * y[1] * y[1], 1e4 * p[2] * y[1] * y[2]
    return xp.stack([c - a, a - b - c, b])


ROBERTSON_TIMES = np.concatenate([[0.0], np.logspace(-5, 5, 50)])
ROBERTSON_START = np.array([1.0, 0.0, 0.0])
ROBERTSON_SCALE = np.array([1.0, 3.65e-5, 1.0])


def robertson_with_sensitivities(t, z):
    """(y, dy/dp) [12] with p = 1."""
    y, sensitivities = z[:3], z[3:].reshape(3, 3)
    jacobian = np.array([
        [-0.04, 1e4 * y[2], 1e4 * y[1]],
        [0.04, -6e7 * y[1] - 1e4 * y[2], -1e4 * y[1]],
        [0.0, 6e7 * y[1], 0.0],
    ])  # fmt: skip
    of_p = np.array([
        [-0.04 * y[0], 0.0, 1e4 * y[1] * y[2]],
        [0.04 * y[0], -3e7 * y[1] ** 2, -1e4 * y[1] * y[2]],
        [0.0, 3e7 * y[1] ** 2, 0.0],
    ])  # fmt: skip
    return np.concatenate([robertson(np, y, np.ones(3)), (jacobian @ sensitivities + of_p).ravel()])


def van_der_pol(xp, y, p):
    """mu = 1000: a relaxation oscillation whose period is about 1,614 (Hairer and Wanner, eq. IV.1.5)."""
    return xp.stack([y[1], 1000.0 * p[0] * (1 - y[0] * y[0]) * y[1] - y[0]])


POLLU_START = np.zeros(20)
POLLU_START[[1, 3, 6, 7, 8, 16]] = 0.2, 0.04, 0.1, 0.3, 0.01, 0.007
_POLLU_RATES = (
    *(0.35, 26.6, 1.23e4, 8.6e-4, 8.2e-4, 1.5e4, 1.3e-4, 2.4e4, 1.65e4, 9e3, 0.022, 1.2e4, 1.88),
    *(1.63e4, 4.8e6, 3.5e-4, 0.0175, 1e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12),
)
# reactants of each reaction, then species by species the reactions that make (+) and use (-) it, counted from 1
_POLLU_REACTANTS = (
    *((0,), (1, 3), (4, 1), (6,), (6,), (6, 5), (8,), (8, 5), (10, 1), (10, 0), (12,), (9, 1), (13,), (0, 5), (2,)),
    *((3,), (3,), (15,), (15,), (16, 5), (18,), (18,), (0, 3), (18, 0), (19,)),
)
_POLLU_BALANCE = (
    (-1, -10, -14, -23, -24, 2, 3, 9, 11, 12, 22, 25), (-2, -3, -9, -12, 1, 21), (-15, 1, 17, 19, 22),
    (-2, -16, -17, -23, 15), (-3, 4, 4, 6, 7, 13, 20), (-6, -8, -14, -20, 3, 18, 18), (-4, -5, -6, 13),
    (4, 5, 6, 7), (-7, -8), (-12, 7, 9), (-9, -10, 8, 11), (9,), (-11, 10), (-13, 12), (14,), (-18, -19, 16),
    (-20,), (20,), (-21, -22, -24, 23, 25), (-25, 24),
)  # fmt: skip


def pollu(xp, y, p):
    """Air pollution (Verwer, SIAM J. Sci. Comput. 15, 1994): 20 species, 25 reactions, rates from 1e-4 to 4e11."""
    rates = []
    for k, factor, reactants in zip(_POLLU_RATES, p, _POLLU_REACTANTS):
        rate = k * factor
        for i in reactants:
            rate = rate * y[i]
        rates.append(rate)
    return xp.stack([
        sum(rates[r - 1] if r > 0 else -rates[-r - 1] for r in reactions) for reactions in _POLLU_BALANCE
    ])  # fmt: skip


HIRES_START = np.array([1.0, 0, 0, 0, 0, 0, 0, 0.0057])


def hires(xp, y, p):
    """High irradiance response of a plant (Schaefer, J. Theor. Biol. 55, 1975): 8 species, 6 rate constants."""
    k1, k2, k3, k4, k5, k_plus = (k * p[i] for i, k in enumerate((1.71, 0.43, 8.32, 0.69, 0.035, 280.0)))
    bound = k_plus * y[5] * y[7] - (k2 + 2 * k4) * y[6]
    return xp.stack([
        -k1 * y[0] + k2 * y[1] + k3 * y[2] + 0.0007,
        k1 * y[0] - (k2 + k3) * y[1],
        -(k3 + k1) * y[2] + k2 * y[3] + k5 * y[4],
        k3 * y[1] + k1 * y[2] - (k2 + k4) * y[3],
        -(k1 + k5) * y[4] + k2 * (y[5] + y[6]),
        -k_plus * y[5] * y[7] + k4 * y[3] + k1 * y[4] - k2 * y[5] + k4 * y[6],
        bound,
        -bound,
    ])  # fmt: skip


def reaction_diffusion_start(n):
    x = np.arange(1, n + 1) / (n + 1)
    return np.sin(np.pi * x) + 0.5 * np.sin(3 * np.pi * x) + 0.1 * np.sin(20 * np.pi * x)


REACTION_WEIGHTS = np.random.default_rng(0).standard_normal((3, 16)) * [[1], [1], [3]]


def reaction_diffusion(xp, y, p):
    """u_t = u_xx + r(u) on [0, 1], u = 0 at both ends, by the method of lines; r is a network of 16 units, whose
    weights, biases and weights in the sum stand one behind the other in p."""
    edge = 0.0 * y[:1]
    left, right = (xp.concatenate(parts) for parts in ((edge, y[:-1]), (y[1:], edge)))
    reaction = (xp.tanh(y[:, None] * p[:16] + p[16:32]) * p[32:]).sum(-1)
    return (len(y) + 1) ** 2 * (left - 2 * y + right) + reaction
