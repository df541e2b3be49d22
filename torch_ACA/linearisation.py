"""f at one point together with its derivative, for methods that solve with the Jacobian.

The derivative is D = [df/dy | df/dt], of shape [n, n + 1]: the time is one more variable. Products w^T D are VJPs of
one recorded evaluation, many at once (`torch.vmap` over the backward pass) or, where func does not go through that, one
after the other. They are differentiated by a second backward pass through the same evaluation. What of D is needed,
and where from, `jacobian` knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .autocast import coarsest_rounding
from .errors import SecondDerivativeError
from .graph import saves_constants
from .inference_mode import recording
from .jacobian import NO_TIME_DERIVATIVE, Derivative
from .notices import warn_caller
from .transforms import under_transform

if TYPE_CHECKING:
    from .evaluation import GradientSum
    from .vector_field import VectorField

AT_ONCE = 2**28  # bytes that the VJPs which are computed at once may take


class Linearisation:
    """f(t, y) with its graph.

    :param field: `vector_field.VectorField`, or what stands for its ``jacobian``, ``vectorises`` and
        ``evaluation_bytes``
    :param value: f [n]
    :param leaf: the state [n] that the graph ends in
    :param time: and the time, 0-d, or one for each of b rows
    """

    def __init__(self, field: Any, value: torch.Tensor, leaf: torch.Tensor, time: torch.Tensor) -> None:
        self.field, self.value, self.leaf, self.time = field, value, leaf, time

    @property
    def inputs(self) -> list[torch.Tensor]:
        """The leaves that func was given."""
        return [self.leaf, self.time]

    def edges(self) -> list[GradientEdge]:
        """Gradient edges of the value, as those of `evaluation.Evaluation`."""
        return [get_gradient_edge(self.value)] if self.value.requires_grad else []

    def derivative(self, *, create_graph: bool = False) -> Derivative:
        """D as a `jacobian.Derivative`; create_graph: differentiable in what f depends on."""
        return self.field.jacobian.of(self, create_graph=create_graph)

    def products(self, cotangents: torch.Tensor, *, create_graph: bool = False) -> torch.Tensor:
        """Rows w^T D of cotangents [m, n]: [m, n + 1], of b times [m, n + b]; create_graph: differentiable in what f
        depends on."""
        return _pulled_back(self.field, self.value, self.leaf, self.time, cotangents, create_graph)

    def of_time(self, *, create_graph: bool = False) -> torch.Tensor:
        """df/dt [n], as the derivative of w^T df/dt by w.

        :raises SecondDerivativeError: func's backward pass has none
        """
        if not self.value.requires_grad:
            return torch.zeros_like(self.value)
        with recording():
            w = torch.ones_like(self.value).requires_grad_()
            try:
                (product,) = torch.autograd.grad(self.value, self.time, w, create_graph=True, allow_unused=True)
                if product is None:
                    return torch.zeros_like(w)
                (found,) = torch.autograd.grad(product.sum(), w, retain_graph=True, create_graph=create_graph)
            except RuntimeError as failure:
                raise SecondDerivativeError(NO_TIME_DERIVATIVE) from failure
        return found

    def vjp(
        self, value_bar: torch.Tensor, outputs: Sequence[torch.Tensor], bars: Sequence[torch.Tensor],
        gradients: GradientSum,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Pull cotangents of the value [n] and of outputs that were made with create_graph back; the graph is used up.

        :param gradients: `evaluation.GradientSum`
        :returns: cotangents of the state [n] and of the time (shaped like it), None for zero
        """
        captured = self.field.captured
        pairs = [(o, bar) for o, bar in zip((self.value, *outputs), (value_bar, *bars)) if o.requires_grad]
        if not pairs:
            return None, None
        outputs, bars = zip(*pairs)
        wanted = (self.leaf, *captured.leaves, self.time)
        state_bar, *captured_bars, time_bar = torch.autograd.grad(
            outputs, wanted, bars, retain_graph=captured.keep_graph, allow_unused=True
        )
        gradients.add(captured_bars)
        return state_bar, time_bar


def traced_linearisation(
    field: VectorField, t: torch.Tensor, y: torch.Tensor, *, side: int = 0
) -> tuple[torch.Tensor, Derivative]:
    """f(t, y) [n] and D for t and y with or without a history, differentiable in everything.

    :param t: 0-d tensor, or [b] of a `RowField`
    :param side: as for `VectorField.time`
    """
    if under_transform():  # a graph of autograd's own is not seen there
        return _linearisation_under_transform(field, t, y, side)
    # aliases: what else func uses may depend on t and y as well, which is not meant
    t, y = (x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (t, y))
    for x in (t, y):
        if x.is_leaf:
            field.captured.ignore(x)
    at = Linearisation(field, field.traced(t, y, side=side), y, t)
    return at.value, at.derivative(create_graph=True)


def _linearisation_under_transform(
    field: VectorField, t: torch.Tensor, y: torch.Tensor, side: int
) -> tuple[torch.Tensor, Derivative]:
    def f(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return field.traced(t, y, side=side)

    jacobian = field.jacobian
    if not jacobian.by_rows:
        (of_y, of_t), value = torch.func.jacrev(
            lambda *at: (f(*at),) * 2, argnums=(0, 1), has_aux=True, chunk_size=1
        )(y, t)  # fmt: skip
        return value, Derivative(of_y, of_t.to(y))
    value, pull, *_ = torch.func.vjp(f, y, t)

    def products(cotangents: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.cat([of_y, of_t.reshape(1).to(y)]) for of_y, of_t in map(pull, cotangents)])

    matrices = jacobian.matrices(products(jacobian.units(y))[:, :-1])
    found = Derivative(matrices, torch.func.grad(lambda w: pull(w)[1])(torch.ones_like(value)))
    jacobian.check(products, y, t, found, coarsest_rounding(field))
    return value, found


def check_differentiable_twice(field: VectorField, t: Any, y: torch.Tensor, side: int = 0) -> None:
    """Refuse a func whose own backward pass has no derivative: a part of the gradient would be missing. To be called
    with gradients off.

    u = J^T w is linear in w, so that w . d(u . v)/dw = u . v. It is not where the backward pass leaves PyTorch. Where a
    custom autograd.Function takes for a constant what it computed in its forward pass, u has not the derivative in y
    that differences show.

    :param y: state [n] at which to look
    :raises SecondDerivativeError: it has none
    """
    with field.side_effects.replay():
        at = field.linearise(t, y, side)
    if not at.value.requires_grad:
        return
    with torch.enable_grad():
        angles = torch.arange(1, len(y) + 1, device=y.device).to(y)
        v, w = torch.cos(angles), torch.sin(angles).requires_grad_()  # no pattern that func may have as well
        try:
            (u,) = torch.autograd.grad(at.value, at.leaf, w, create_graph=True, allow_unused=True)
            if u is None:
                return
            found = of_state = None
            if u.requires_grad:
                found, of_state = torch.autograd.grad(u, (w, at.leaf), v, allow_unused=True, retain_graph=True)
        except RuntimeError as failure:
            raise SecondDerivativeError(_NO_SECOND.format(failure)) from failure
    u, w = u.detach(), w.detach()
    difference = abs((0.0 if found is None else float(found @ w)) - float(u @ v))
    eps = coarsest_rounding(field)
    # entries of J may have cancelled, to some digits or to nothing but rounding
    of_u, of_nothing = eps ** (1 / 3) * (u * v).abs().sum(), 1e3 * eps * at.value.detach().abs().sum().clamp(min=1.0)
    if difference > float(of_u + of_nothing):
        raise SecondDerivativeError(_NO_SECOND.format("it leaves PyTorch, or detaches what it returns"))
    if saves_constants(at.value) and _misses_a_part(field, t, y, side, w, v, u, of_state):
        raise SecondDerivativeError(_NO_SECOND.format("what it saved in its forward pass is no input of that"))


def _misses_a_part(
    field: VectorField, t: float, y: torch.Tensor, side: int, w: torch.Tensor, v: torch.Tensor, u: torch.Tensor,
    of_state: torch.Tensor | None,
) -> bool:  # fmt: skip
    """Whether differences show another derivative of s = J(y)^T w . v than autograd knows. At a kink they show none:
    the ones to the left and to the right of y have to agree.

    :param u: J^T w at y
    :param of_state: ds/dy as autograd knows it [n], None for zero
    """
    eps = coarsest_rounding(field)
    along = torch.sin(3.0 * torch.arange(1, len(y) + 1, device=y.device).to(y)) * y.abs().max().clamp(min=1.0)
    step, values = eps ** (1 / 3), []
    for sign in (-1.0, 1.0):
        with field.side_effects.replay():
            at = field.linearise(t, y + sign * step * along, side)
        if not at.value.requires_grad:
            return False
        (there,) = torch.autograd.grad(at.value, at.leaf, w, allow_unused=True)
        values.append(0.0 if there is None else float(there @ v))
    here = float(u @ v)
    left, right = (here - values[0]) / step, (values[1] - here) / step
    seen, known = 0.5 * (left + right), 0.0 if of_state is None else float(of_state @ along)
    rounding = 100 * eps * float((u * v).abs().sum()) / step
    return abs(left - right) < 0.1 * abs(seen) and abs(seen - known) > 0.1 * abs(seen) + rounding


_NO_SECOND = (
    "the gradient of a Rosenbrock method contains the derivative of func's Jacobian, and func's own backward pass has "
    "no derivative ({}). Write the backward of its custom autograd.Function with differentiable operations of PyTorch, "
    "or solve under torch.no_grad()"
)


def _pulled_back(
    field: VectorField,
    value: torch.Tensor,
    y: torch.Tensor,
    time: torch.Tensor,
    cotangents: torch.Tensor,
    create_graph: bool,
) -> torch.Tensor:
    """VJPs of value with each of the cotangents [m, n]: those of y and, last, of the time [m, n + 1], or of b
    times [m, n + b]."""
    m, n = cotangents.shape
    if not value.requires_grad or n == 0:
        return cotangents.new_zeros(m, n + time.numel())

    def grad(cotangent: torch.Tensor, batched: bool) -> torch.Tensor:
        of_y, of_time = torch.autograd.grad(
            value, (y, time), cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True,
            is_grads_batched=batched,
        )  # fmt: skip
        of_y = torch.zeros_like(cotangent) if of_y is None else of_y
        shape = (*cotangent.shape[:-1], time.numel())
        of_time = cotangent.new_zeros(shape) if of_time is None else of_time.to(cotangent).reshape(shape)
        return torch.cat([of_y, of_time], -1)

    if field.vectorises and m > 1:
        measured = field.evaluation_bytes if field.evaluation_bytes < math.inf else 0
        at_once = max(1, int(AT_ONCE // max(measured, 16 * n * value.element_size(), 1)))
        try:
            rows = [grad(chunk, True) for chunk in cotangents.split(at_once)]
            return rows[0] if len(rows) == 1 else torch.cat(rows)
        except RuntimeError as failure:
            rows = [grad(cotangent, False) for cotangent in cotangents]  # raises what is not vmap's failure
            field.vectorises = False
            lines = str(failure).strip().splitlines() or [type(failure).__name__]
            warn_caller(f"the Jacobian of func is computed row by row: its backward pass has no vmap ({lines[0]})")
            return torch.stack(rows)
    return torch.stack([grad(cotangent, False) for cotangent in cotangents])
