"""Stiff problems of the literature, for numpy and torch alike; p: factors on the rate constants, ones as published."""

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
