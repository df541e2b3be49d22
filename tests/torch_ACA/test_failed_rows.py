"""What rows that fail leave of the gradients of the others, and of what all rows share: as if they were not there."""

import pytest
import torch

from torch_ACA import solve

NAN = torch.nan
SAME = 1e-12  # of the same float64 operations in another order, relative to the largest entry
SETTINGS = {"per_sample": True, "on_failure": "return", "rtol": 1e-4, "atol": 1e-4}
METHODS = ["Dopri5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("HeunEuler", "dopri8", "Rodas5P"))]
SETUPS = [{}, {"memory": 3}, *(pytest.param(x, marks=pytest.mark.slow) for x in (
    {"options": {"land_on_t": True}}, {"options": {"jump_t": [0.5]}},
))]  # fmt: skip
BAD = 1  # the row that fails


class Field(torch.nn.Module):
    """Rows of 2 numbers with weights for all, and some data of each row, [b, 1], which come as ``args`` or are held."""

    def __init__(self, data=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 4).reshape(2, 2))
        self.data = data

    def forward(self, t, y, data=None):
        return self.of(t, y, self.data if data is None else data)


class Coupled(Field):
    def of(self, t, y, data):
        return self.scale * data * torch.tanh(data * y @ self.weight) * torch.cos(t)


class Ending(Field):
    """NaN behind the time data."""

    def of(self, t, y, data):
        return self.scale * torch.sqrt(data - t) * torch.tanh(y @ self.weight)


class Masked(Field):
    """NaN where data is, whatever the state."""

    def of(self, t, y, data):
        return torch.where(data.isnan(), NAN, self.scale * torch.sin(3 * t + y @ self.weight) * y**2)


class Bounded(Field):
    """NaN where y is above data."""

    def of(self, t, y, data):
        return self.scale * (3 + torch.log(data - y).clamp(min=-2)) + 0 * y @ self.weight


def data_of(count, others, bad):
    data = torch.full((count, 1), others)
    data[BAD] = bad
    return data


def gradients(field, y0, good, **keywords):
    """Of an outputs' sum of squares over the rows ``good``, and their derivatives, in what all rows share; whether
    there was a failure."""
    compiled = "compile" in keywords
    t = torch.tensor([0.0, 0.3, 1.0], requires_grad=not compiled)
    solution = solve(field, y0, t, **SETTINGS | keywords)
    assert bool(solution.ys[:, good].isfinite().all())
    loss, wanted = solution.ys[:, good].square().sum(), [*field.parameters()] if compiled else [t, *field.parameters()]
    found = torch.autograd.grad(loss, wanted, retain_graph=True)
    first = torch.autograd.grad(loss, wanted, create_graph=True)
    second = torch.autograd.grad(sum(bar.sum() for bar in first), wanted)
    return [*found, *(bar.detach() for bar in first), *second], not solution.success


def assert_as_without(kind, data, y0, args=False, **keywords):
    good = [row for row in range(len(y0)) if row != BAD]

    def of(rows):
        held, keys = (None, {"args": (data[rows],)}) if args else (data[rows], {})
        return gradients(kind(held), y0[rows], [i for i, row in enumerate(rows) if row != BAD], **keys | keywords)

    (found, failed), (expected, none) = of(list(range(len(y0)))), of(good)
    assert failed and not none
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 10 * SAME * max(1.0, float(other.abs().max()))


def start(count):
    return torch.linspace(0.5, 1.0, 2 * count).reshape(count, 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setup", SETUPS, ids=str)
class TestSharedParameters:
    def test_nan_at_the_start(self, method, setup):
        y0 = start(3)
        y0[BAD] = NAN
        assert_as_without(Coupled, torch.linspace(1, 2, 3)[:, None], y0, method=method, **setup)

    def test_nan_in_what_func_returns(self, method, setup):
        assert_as_without(Masked, data_of(3, 1.0, NAN), start(3), method=method, **setup)

    @pytest.mark.parametrize("count", [3, 16])
    def test_nan_in_args(self, method, setup, count):
        """Be it one row of many, which would not pay to be left out."""
        data = torch.linspace(1, 2, count)[:, None]
        data[BAD] = NAN
        assert_as_without(Coupled, data, start(count), args=True, method=method, **setup)

    @pytest.mark.parametrize("end", [0.2, 0.7, 1e-300], ids=["before its outputs", "behind one", "at once"])
    def test_nan_on_the_way(self, method, setup, end):
        setup = setup | {"options": setup.get("options", {}) | {"max_num_steps": 100}}
        assert_as_without(Ending, data_of(3, 9.0, end), start(3), method=method, **setup)

    @pytest.mark.parametrize("bound", [1.2, 0.5 + 1e-9], ids=["on the way", "at once"])
    def test_states_of_other_rows_are_out_of_its_bounds(self, method, setup, bound):
        """A row that waits does so where its own func is finite."""
        y0 = torch.tensor([[5.0, 6.0], [0.5, 0.5], [7.0, 8.0]])
        setup = setup | {"options": setup.get("options", {}) | {"max_num_steps": 100}}
        assert_as_without(Bounded, data_of(3, 50.0, bound), y0, method=method, **setup)


@pytest.mark.parametrize("options", [{}, {"land_on_t": True}], ids=str)
@pytest.mark.parametrize(("end", "compile"), [
    (1.0, False), (1.2, False), pytest.param(1.0, True, marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.usefixtures("ungenerated")
@pytest.mark.filterwarnings("ignore:compile=True")
def test_func_that_is_nan_behind_a_step(options, end, compile):
    """The step to t = 1 is accepted, and behind it func is NaN in one row: its dense output, cubic, is NaN as well."""

    def func(t, y, limit, scale):
        return scale * t + torch.sqrt(torch.where((t >= 1 - 1e-12) & (y > limit), -1.0, 1.0) * scale)

    found = []
    for limits in ([2.5 - 1e-6, 9.0], [9.0]):  # y(1) is 2.5, and the second stage of a step ends lower
        limit, scale = torch.tensor(limits)[:, None], torch.tensor(1.0, requires_grad=True)
        t = torch.tensor([0.0, 0.5, 0.999, 1.0, end][: 4 if end == 1.0 else 5])
        settings = SETTINGS | {"method": "HeunEuler", "options": {"interp": "cubic"} | options, "compile": compile}
        y0 = torch.ones(len(limits), 1)
        ys = solve(lambda t, y: func(t, y, limit, scale), y0, t, **settings).ys
        loss = ys[:, -1].square().sum() + 0.0 * ys.nansum()
        (first,) = torch.autograd.grad(loss, scale, create_graph=True)
        found.append([*torch.autograd.grad(loss, scale, retain_graph=True), first.detach()])
        found[-1] += torch.autograd.grad(first, scale)
    for one, other in zip(*found, strict=True):
        assert abs(float(one) - float(other)) <= 10 * SAME * abs(float(other))


@pytest.mark.slow
@pytest.mark.usefixtures("ungenerated")
def test_compiled_rows():
    y0 = start(3)
    assert_as_without(Ending, data_of(3, 9.0, 0.7), y0, compile=True, options={"max_num_steps": 100})
    y0[BAD] = NAN
    with pytest.warns(UserWarning, match="some have failed at the start"):
        assert_as_without(Coupled, torch.linspace(1, 2, 3)[:, None], y0, compile=True)


def test_nan_in_what_func_closes_over_is_told():
    """It cannot be kept from what all rows share; the others are as without it."""
    field, y0 = Coupled(data_of(3, 1.0, NAN)), start(3).requires_grad_()
    with pytest.warns(UserWarning, match="infinite or NaN. No output was reached by row 1: .* through args"):
        found = torch.autograd.grad(solve(field, y0, [0.0, 1.0], **SETTINGS).ys[:, [0, 2]].sum(), [y0, field.scale])
    assert bool(found[1].isnan()) and bool((found[0][BAD] == 0.0).all())
    (alone,) = torch.autograd.grad(solve(Coupled(data_of(3, 1.0, 1.0)), y0, [0.0, 1.0], **SETTINGS).ys.sum(), y0)
    assert bool(((found[0] - alone)[[0, 2]].abs() <= SAME).all())
