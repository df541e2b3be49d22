"""Order conditions over rooted trees, in exact rational arithmetic."""

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import combinations_with_replacement

import pytest

from torch_ACA import Polynomials, methods
from torch_ACA.tableaus import TABLEAUS

UNIQUE = sorted({id(t): t for t in TABLEAUS.values()}.values(), key=lambda t: (t.order, t.name))
# Tsit5 and dopri8 are published as decimals or rounded fractions: to 1e-15; tsit5's interpolant to 13 digits
DECIMAL = {"tsit5": 1e-15, "dopri8": 1e-15}
DECIMAL_DENSE = {"tsit5": 1e-12, "dopri8": 1e-11}


@lru_cache
def trees(order):
    """Rooted trees with so many nodes, each the sorted tuple of its subtrees."""
    if order == 1:
        return ((),)
    return tuple(dict.fromkeys(forest for forest in forests(order - 1, order - 1)))


@lru_cache
def forests(nodes, largest):
    if nodes == 0:
        return ((),)
    found = []
    for size in range(min(nodes, largest), 0, -1):
        for count in range(1, nodes // size + 1):
            for heads in combinations_with_replacement(trees(size), count):
                found += [heads + rest for rest in forests(nodes - size * count, size - 1)]
    return tuple(found)


def size(tree):
    return 1 + sum(size(s) for s in tree)


def density(tree):
    value = size(tree)
    for s in tree:
        value *= density(s)
    return value


def elementary_weights(tree, a):
    """One weight per stage."""
    weights = [Fraction(1)] * len(a)
    for s in tree:
        inner = elementary_weights(s, a)
        weights = [w * sum(c * v for c, v in zip(row, inner)) for w, row in zip(weights, a)]
    return weights


def defect(weights, tree, a, theta=Fraction(1)):
    total = sum(w * v for w, v in zip(weights, elementary_weights(tree, a)))
    return abs(total - theta ** size(tree) / density(tree))


def largest_defect(weights, a, order, theta=Fraction(1)):
    return max(defect(weights, tree, a, theta) for n in range(1, order + 1) for tree in trees(n))


def test_number_of_trees():
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("tableau", UNIQUE, ids=lambda t: t.name)
def test_order_conditions(tableau):
    tolerance = DECIMAL.get(tableau.name, 0)
    assert all(abs(sum(row) - c) <= tolerance for row, c in zip(tableau.a, tableau.c))
    assert largest_defect(tableau.b, tableau.a, tableau.order) <= tolerance
    # and no higher order than stated
    assert max(defect(tableau.b, tree, tableau.a) for tree in trees(tableau.order + 1)) > 1e-6


@pytest.mark.parametrize("tableau", [t for t in UNIQUE if t.adaptive], ids=lambda t: t.name)
def test_embedded_order(tableau):
    tolerance = DECIMAL.get(tableau.name, 0)
    assert largest_defect(tableau.b_embedded, tableau.a, tableau.embedded_order) <= tolerance
    assert max(defect(tableau.b_embedded, tree, tableau.a) for tree in trees(tableau.embedded_order + 1)) > 1e-8


@pytest.mark.parametrize("tableau", UNIQUE, ids=lambda t: t.name)
def test_dense_output(tableau):
    a = tableau.a if tableau.interpolant.slopes <= tableau.stages else (*tableau.a, tableau.b)
    tolerance = DECIMAL_DENSE.get(tableau.name, 1e-15 if tableau.name == "Dopri5" else 0)
    for theta in (Fraction(1, 3), Fraction(4, 5)):
        weights = tableau.interpolant.exact(theta)
        assert largest_defect(weights, a, tableau.dense_order, theta) <= tolerance
    end = tableau.interpolant.exact(Fraction(1))
    expected = tableau.b + (0,) * (len(end) - len(tableau.b))
    assert max(abs(w - b) for w, b in zip(end, expected)) <= tolerance


def test_fsal_is_detected():
    assert {name for name, t in TABLEAUS.items() if t.fsal} == {
        "RK23", "RK45", "Dopri5", "bosh3", "dopri5", "tsit5", "dopri8"
    }  # fmt: skip


def test_quartic_is_that_of_scipy():
    from scipy.integrate import RK45

    rows = TABLEAUS["Dopri5"].interpolant.rows
    assert abs(RK45.P - [[float(c) for c in row] for row in rows]).max() == 0.0


@pytest.mark.parametrize(("change", "what"), [
    ({"b": (Fraction(1, 2), Fraction(3, 10))}, "b must add up to 1"),
    ({"b": (Fraction(1),)}, "an entry for each of the 1 weights b"),
    ({"c": (Fraction(0), Fraction(1, 2))}, "row i of a must add up"),
    ({"c": (Fraction(0), Fraction(1), Fraction(1))}, "an entry for each of the 2"),
    ({"a": ((), (Fraction(1, 2), Fraction(1, 2)))}, "row i of a needs i entries"),
    ({"a": ((),)}, "an entry for each of the 2"),
    ({"b_embedded": (Fraction(1),)}, "b_embedded needs 2"), ({"b_embedded": (Fraction(1), Fraction(1))}, "add up to 1"),
    ({"embedded_order": None}, "needs its embedded_order"), ({"interpolant": None}, "torch_ACA.Polynomials"),
    ({"interpolant": Polynomials(((1,),))}, "at the end of a step"),
    ({"interpolant": Polynomials(((1,), (1,)))}, "at the end of a step"),
], ids=str)  # fmt: skip
def test_a_slip_in_typing_a_tableau_is_told(change, what):
    with pytest.raises(ValueError, match=f"HeunEuler: .*{what}"):
        replace(methods["HeunEuler"], **change)
