"""Builds the program of a case and runs it with a solver: states, gradients, and what else can be seen of it."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

import torch_ACA

from . import oracle
from .cases import fraction_of
from .fields import Span, Tensors, make_func, make_terms
from .states import Layout

MAX_EVALS = 30_000  # a solve takes a few hundred


@dataclass
class Outcome:
    """What came out of a program: tensors by name (None: no gradient), and counts."""

    states: dict = field(default_factory=dict)
    gradients: dict = field(default_factory=dict)
    second: dict = field(default_factory=dict)
    buffers: dict = field(default_factory=dict)
    hook_calls: dict = field(default_factory=dict)


class Solver:
    """torch_ACA. ``steps`` collects (t, h) of the accepted steps, a list for every solve."""

    def __init__(self):
        self.steps = []

    def __call__(self, program, func, y0, times):
        steps = []
        self.steps.append(steps)
        accept = torch_ACA.Callbacks(accept=lambda t, y, h: steps.append((float(t), float(h))))
        solution = torch_ACA.solve(func, y0, times, **asked(program), callbacks=accept)
        return solution.ys, solution.dense


def asked(program):
    """What a case asks of `torch_ACA.solve`."""
    case = program.case
    keywords = {"step_size": case.step_size, "first_step": case.first_step}
    options = {name: value for name, value in keywords.items() if value is not None} | dict(case.options)
    if case.grid is not None:
        options["grid"] = program.grid
    if case.step_t:
        options["step_t"] = list(case.step_t)
    if program.jumps:
        options["jump_t"] = list(program.jumps)
    return {
        "method": case.method,
        "rtol": case.rtol,
        "atol": case.atol,
        "gradient": case.gradient,
        "options": options,
        "max_evals": MAX_EVALS,
        "dense": case.loss == "dense",
        "memory": case.memory,
        "params": program.params,
    }


class Oracle:
    """Plain autograd over the steps that were accepted in as many solves before."""

    def __init__(self, steps):
        self._steps = iter(steps)

    def __call__(self, program, func, y0, times):
        case, options = program.case, dict(program.case.options)
        ts = program.ts
        plan = oracle.Plan(
            case.method,
            given=set(ts[1:] if options.get("land_on_t") else ts[-1:]) | (set(program.grid or ()) & set(ts)),
            constants={*case.step_t, *program.jumps, *(program.grid or ())},
            jumps=set(program.jumps),
            interp=options.get("interp"),
            dense=case.loss == "dense",
        )
        return oracle.solve(func, y0, as_tensor(times), program.layout, plan, next(self._steps))


def as_tensor(times):
    """Times [m] of a list of numbers and leaves."""
    if isinstance(times, list):
        times = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in times])
    return times


class Program:
    """The tensors and func of a case, made anew from its seed."""

    def __init__(self, case):
        self.case = case
        self.layout = Layout(case.state, case.precision, other_key_order=case.other_key_order)
        self.tensors = Tensors(case.seed, self.layout.dtype, case.frozen)
        self.times = self._make_times()
        self.ts = [float(t) for t in self.times]
        self.jumps = tuple(self.ts[value] if kind == "output" else value for kind, value in case.jumps)
        self.grid = self._make_grid()
        self.y0 = self._make_y0()
        around = set(self.tensors.leaves)
        stop = case.step_t[0] if case.step_t else self.ts[1]
        span = Span(self.ts[0], self.ts[-1], self.jumps, stop)
        terms = make_terms(case.terms, self.tensors, self.layout.size, span)
        self.modules = [part for _, parts in terms for part in parts.values() if isinstance(part, nn.Module)]
        self.func = make_func(case.style, terms, self.layout)
        self.of_func = [name for name in self.tensors.leaves if name not in around]
        self.params, self.unnamed = self._params()
        self.hook_calls = self._attach_hooks()

    def _make_times(self):
        case = self.case
        dtype = getattr(torch, case.times_precision)
        values = torch.tensor(case.times, dtype=torch.float64).to(dtype)
        if case.times_from == "floats":
            return list(case.times)
        if case.times_from == "tensor":
            return values
        if case.times_from == "leaf":
            return self.tensors.add("times", values)
        if case.times_from == "list":
            return [self.tensors.add(f"times.{i}", t.clone()) if i % 2 else float(t) for i, t in enumerate(values)]
        if case.times_from == "shared":
            s = self.tensors.leaf("gain.s")
            return self.tensors.prepare("times", values * (1 + 0.1 * torch.tanh(s.double())))
        sign = math.copysign(1, case.times[-1] - case.times[0])
        logs = self.tensors.add("log_gaps", values.diff().abs().log())
        start = self.tensors.add("start", values[:1].clone())
        gaps = torch.cat([torch.zeros(1, dtype=dtype), logs.exp().cumsum(0)])
        return self.tensors.prepare("times", start + sign * gaps)

    def _make_grid(self):
        if self.case.grid is None:
            return None
        first, last = self.ts[0], self.ts[-1]
        return sorted({*self.ts, *(first + q * (last - first) for q in self.case.grid)}, reverse=last < first)

    def _make_y0(self):
        case, new, n = self.case, self.tensors, self.layout.size
        if case.y0 == "leaf":
            parts = self.layout.split_parts(new.normal(n))
            return self.layout.assemble([new.add(f"y0.{i}", part) for i, part in enumerate(parts)])
        if case.y0 == "shared":
            return self.layout.split(new.leaf("anchor", n))
        if case.y0 == "plain":
            return self.layout.split(new.normal(n))
        encoded = torch.tanh(new.leaf("encoder.W", n, 2, scale=1.0) @ new.normal(2))
        return self.layout.split(new.prepare("anchor", encoded))

    def _params(self):
        """What params= is given, and the names of the parameters of func that it leaves out."""
        kind, names = self.case.params, self.of_func
        if kind is None:
            return None, ()
        count = {"all": len(names), "half": (len(names) + 1) // 2, "single": 1}[kind]
        chosen = [self.tensors.leaves[name] for name in names[:count]]
        return chosen[0] if kind == "single" else chosen, names[count:]

    def _attach_hooks(self):
        calls, pools = {}, {"leaf": self.tensors.leaves, "prepared": self.tensors.prepared}
        for number, (pool, fraction, action) in enumerate(self.case.hooks):
            tensors = {name: t for name, t in pools[pool].items() if t.requires_grad}
            if not tensors:
                continue
            name = fraction_of(list(tensors), fraction)
            if action == "retain":
                tensors[name].retain_grad()
            else:
                key = f"{name} {action} {number}"
                calls[key] = 0
                tensors[name].register_hook(_hook(action, key, calls))
        return calls

    def run(self, solve):
        """The `Outcome` with a solver."""
        case, outcome = self.case, Outcome()
        y0, total = self.y0, 0.0
        kind, count = case.solves
        for number in range(count):
            torch.manual_seed(case.seed + number)  # of the dropout masks
            ys, dense = solve(self, self.func, y0, self.times)
            outcome.states |= self._named_states(f"ys of solve {number}", ys)
            if dense is not None:
                states = [dense(time) for time in self._query_times()]
                ys = self.layout.assemble([torch.stack(rows) for rows in zip(*map(self.layout.parts, states))])
                outcome.states |= self._named_states(f"dense output of solve {number}", ys)
            total = total + self._loss(ys, number)
            last = self.layout.assemble([part[-1] for part in self.layout.parts(ys)])
            y0 = last if kind == "chain" else self.layout.assemble([0.9 * part for part in self.layout.parts(y0)])
        if case.loss_uses_parameters:
            total = total + sum(0.1 * (w**2).sum() for w in self.tensors.leaves.values() if not w.is_complex())
        if isinstance(total, torch.Tensor) and total.requires_grad:
            self._differentiate(total, outcome)
        outcome.hook_calls = self.hook_calls
        for number, module in enumerate(self.modules):
            outcome.buffers |= {f"module {number} {name}": b.clone() for name, b in module.named_buffers()}
        return outcome

    def _named_states(self, name, ys):
        return {f"{name}, part {i}": part.detach() for i, part in enumerate(self.layout.parts(ys))}

    def _query_times(self):
        """Where dense output is asked for: off the ends of steps, and one of them moving with the times."""
        first, last = self.ts[0], self.ts[-1]
        fixed = [torch.tensor(first + q * (last - first), dtype=torch.float64) for q in (0.13579, 0.5 * math.sqrt(2))]
        if not isinstance(self.times, torch.Tensor):
            return fixed
        return [*fixed, 0.34567 * self.times[0].double() + 0.65433 * self.times[-1].double()]

    def _loss(self, ys, number):
        """A number made of the outputs in question, with other weights in every solve."""
        kind, random = self.case.loss, torch.Generator().manual_seed(self.case.seed + 1000 + number)
        total = 0.0
        for part in self.layout.parts(ys):
            real = torch.view_as_real(part) if part.is_complex() else part
            rows = torch.ones(len(real), dtype=torch.float64)
            if kind == "last":
                rows[:-1] = 0
            elif kind == "some":
                rows = torch.randint(2, (len(real),), generator=random).double()
            for power in (1, 2):
                weights = torch.randn(real.shape, generator=random, dtype=torch.float64).to(real.dtype)
                chosen = weights * real**power
                total = total + (chosen.double() * rows.view(-1, *[1] * (real.dim() - 1))).sum()
        return total

    def _differentiate(self, total, outcome):
        """Fill in the gradients."""
        case = self.case
        leaves = {name: leaf for name, leaf in self.tensors.leaves.items() if leaf.requires_grad}
        wanted = list(leaves.values())
        if not wanted:  # all that the case has was frozen
            return
        for number in range(case.passes):
            # of a total that is not large: the sine of a large one is its rounding
            later = torch.sin(total / (1 + total.detach().abs()))
            loss, keep = (total if number == 0 else later), number + 1 < case.passes
            if case.take == "backward" and case.order == "first":
                loss.backward(retain_graph=keep)
                found = [None if leaf.grad is None else leaf.grad.clone() for leaf in wanted]
            else:
                graph = case.order != "first"
                found = torch.autograd.grad(
                    loss, wanted, retain_graph=keep or graph, create_graph=graph, allow_unused=True
                )
            outcome.gradients |= {f"{name}, pass {number}": g for name, g in zip(leaves, found)}
        for name, tensor in self.tensors.prepared.items():
            if tensor.retains_grad:
                outcome.gradients[f"{name}.grad"] = tensor.grad
        if case.order == "second":
            outcome.second = self._second(leaves, found)
        outcome.gradients = {name: None if g is None else g.detach() for name, g in outcome.gradients.items()}

    def _second(self, leaves, first):
        """Derivatives of a weighted sum of the first ones and of their squares."""
        random, total = torch.Generator().manual_seed(self.case.seed + 2000), 0.0
        for leaf, gradient in zip(leaves.values(), first):
            shape = torch.view_as_real(leaf.detach()).shape if leaf.is_complex() else leaf.shape
            weights = torch.randn(shape, generator=random, dtype=torch.float64)
            if gradient is not None:
                real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
                total = total + (weights.to(real.dtype) * (real + 0.5 * real**2)).sum().double()
        if not (isinstance(total, torch.Tensor) and total.requires_grad):
            return {}
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {name: g for name, g in zip(leaves, found)}


def _hook(action, key, calls):
    def hook(gradient):
        calls[key] += 1
        if action == "halve":
            return gradient / 2
        if action == "clip":
            return _clipped(gradient)
        return None

    return hook


def _clipped(gradient):
    """As a whole, by its norm: what is clipped piece by piece comes out otherwise."""
    norm = torch.linalg.vector_norm(gradient)
    return gradient / (1 + norm)
