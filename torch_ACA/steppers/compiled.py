"""Runge-Kutta steps as generated code, func included: the step itself, and an accepted step with its VJP.

Code is generated once per func, tableau, shape and dtype (and once more where func changes, as from training to
evaluation), see `compilation`; times, step sizes and tolerances are inputs. What cannot be compiled is done as
`runge_kutta` does it, with a warning. On a GPU, CUDA graphs (an option of `torch.compile`) replay a step without
launching its kernels one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..compilation.controller_settings import controller_of, is_plain, settings_of
from ..compilation.func_graph import NotCompilable
from ..compilation.start import code_again
from ..evaluation import GradientSum
from ..private_torch import pytree
from ..vector_field import VectorField
from .base import Carry, Trial
from .runge_kutta import RungeKutta


class CompiledRungeKutta(RungeKutta):
    """As `RungeKutta`, without graphs that are kept: an accepted step is always evaluated again.

    :param vector_field: `VectorField`, whose ``code`` there is (None: steps run as they are)
    :param with_slopes: there is dense output, so that slopes matter
    """

    def __init__(self, tableau: Any, vector_field: VectorField, *, with_slopes: bool, time_grad: bool = False) -> None:
        super().__init__(tableau, vector_field, time_grad=time_grad)
        self.with_slopes, code = with_slopes, vector_field.code
        self._end = None  # of the step that was last replayed
        self._calls, self._settings = {}, None
        if code is not None and is_plain(code.controller):  # then steps come with their error ratio
            self._settings = self._near(settings_of(code.controller))

    @property
    def _usable(self) -> bool:
        return self.field.code is not None and self.field.code.usable

    def _look(self, t: Any, y: Tensor) -> None:
        """Look whether func has changed, where it may from step to step."""
        field, before = self.field, self.field.code
        if self._usable and before.watched:
            field.code = code_again(field, t, y)
            if field.code is None or field.code.graph is not before.graph:
                self._calls = {}

    def _give_up(self, failure: Any) -> None:
        self.field.code.compiler.give_up(failure)

    def prepare(self, carry: Carry) -> None:
        """Evaluate f just behind a jump, and where steps run as they are; elsewhere a first stage that is not known yet
        is compiled with the others, at the price of evaluating it again after a rejected try.
        """
        if carry.slope is None and (carry.after_jump or not self._usable):
            super().prepare(carry)
            self._own(carry)

    def step(self, carry: Carry, h: Any, t_end: float, *, before_jump: bool = False) -> Any:
        y = carry.y.detach().contiguous()
        self._look(carry.t, y)
        if before_jump or not self._usable:
            return self._step_as_it_is(carry, h, t_end, before_jump)
        known = [] if carry.slope is None else [carry.slope]
        settings = [] if self._settings is None else [self._settings]
        try:
            y1, slopes, *rest = self.call("step", [self._times(carry.t, h, t_end), *settings, y, *known])
        except NotCompilable as failure:
            self._give_up(failure)
            return self._step_as_it_is(carry, h, t_end, before_jump)
        self.field.n_evals += self.tableau.stages - len(known)
        if self.with_slopes:
            self.slopes[: len(slopes)].copy_(slopes)
            slopes = slopes[-1]
        trial = Trial(Carry(t_end, y1, slopes if self.tableau.fsal else None), rest[0] if rest else None)
        trial.ratio = rest[1].item() if settings else None
        return trial

    def _step_as_it_is(self, carry: Carry, h: Any, t_end: float, before_jump: bool) -> Trial:
        known = carry.slope is not None
        super().prepare(carry)
        trial = super().step(carry, h, t_end, before_jump=before_jump)
        self._own(trial.end)
        if not known:  # a rejected try takes back what its evaluations did, the first one's too
            carry.slope = None
        return trial

    def end_slope(self, carry: Carry, *, before_jump: bool = False) -> None:
        if carry.slope is None:
            super().end_slope(carry, before_jump=before_jump)
            self._own(carry)

    @staticmethod
    def _own(carry: Carry) -> None:
        """Take the slope out of the buffer, which later steps overwrite."""
        if carry.slope is not None:
            carry.slope = carry.slope.clone()

    def replay(
        self,
        t: Any,
        h: Any,
        y: Tensor,
        t_end: float,
        *,
        after_jump: bool = False,
        before_jump: bool = False,
        every: Any = 1,
    ) -> Any:
        """Put off to `vjp`, which evaluates the step and pulls back through it in one."""
        self._look(t, y.detach())
        if after_jump or before_jump or not self._usable:
            return super().replay(t, h, y, t_end, after_jump=after_jump, before_jump=before_jump, every=every)
        return t, y.detach().contiguous(), t_end

    def vjp(self, h: Any, replayed: Any, y_bar: Tensor, slope_bars: Any, first_bar: Any, gradients: GradientSum) -> Any:
        self._end = None
        if isinstance(replayed, list):  # evaluations of a step that is not compiled
            return super().vjp(h, replayed, y_bar, slope_bars, first_bar, gradients)
        t, y, t_end = replayed
        inside = []
        if self.with_slopes:
            slopes_bar = torch.zeros_like(self.slopes) if slope_bars is None else slope_bars.clone()
            slopes_bar = slopes_bar[: self.own_stages].contiguous()
            if first_bar is not None:
                slopes_bar[0] += first_bar
            inside.append(slopes_bar)
        code = self.field.code
        totals = code.totals(self.field.captured.sources, gradients.totals)
        try:
            found = self.call("vjp", [self._times(t, h, t_end), y, y_bar.contiguous(), *inside, *totals])
        except NotCompilable as failure:
            self._give_up(failure)
            return super().vjp(h, super().replay(t, h, y, t_end), y_bar, slope_bars, first_bar, gradients)
        y_bar, self._end, *found = found
        self.field.n_evals += self.own_stages
        reached = code.steps(self.tableau).reached
        gradients.replace(code.gradients(self.field.captured.sources, found[: len(totals)], reached))
        if not self.time_grad:
            return y_bar, 0.0, 0.0
        times_bar, slopes = found[len(totals) :]
        self.slopes[: self.own_stages].copy_(slopes)
        t_bar, h_bar, t_end_bar = times_bar.tolist()
        return y_bar, t_bar + t_end_bar, h_bar + t_end_bar

    def replayed_end(self, y: Tensor, h: Any, every: Any = 1) -> Any:
        if self._end is None:  # a step that is not compiled
            return super().replayed_end(y, h, every)
        return self._end if every == 1 else (self._end[::every], self._end.sum(dtype=torch.float64))

    def _times(self, t: Any, h: Any, t_end: float) -> Tensor:
        """Time, step size and end time as a tensor [3]; on a GPU for CUDA graphs, which take nothing from elsewhere."""
        return self._near(torch.tensor([t, h, t_end], dtype=torch.float64, device="cpu"))

    def _near(self, numbers: Tensor) -> Tensor:
        if self.slopes.device.type != "cuda":
            return numbers
        return numbers.pin_memory().to(self.slopes.device, non_blocking=True)  # does not wait for the GPU

    def call(self, what: str, given: Any) -> Any:
        """Results of generated code for one of the functions below."""
        key = (what, len(given))
        call = self._calls.get(key)
        code = self.field.code
        if call is None:
            function = self._step if what == "step" else self._vjp
            n_settings = None if self._settings is None else len(self._settings)
            kind = (what, self.tableau, len(given), self.with_slopes, n_settings, self.time_grad)
            call = self._calls[key] = code.function(kind, function, lambda: given, cuda_graphs=True)
            if code.compiler.options.get("triton.cudagraphs"):
                call = self._calls[key] = _with_results_kept(call)
        return call([*given, *code.others])

    def _step(self, times: Tensor, *given: Any) -> Any:
        code, tableau = self.field.code, self.tableau
        settings, given = (None, given) if self._settings is None else (given[0], given[1:])
        n_given = len(given) - len(code.others)
        y, *known = given[:n_given]
        y1, slopes, error = code.steps(tableau).step(times.unbind(), y, known[0] if known else None, given[n_given:])
        results = [y1, torch.stack(slopes) if self.with_slopes else slopes[-1].clone()]
        if error is not None:
            results.append(error)
        if settings is not None:
            controller = controller_of(settings, tableau.error_order)
            results.append(controller.error_ratio(error, y, y1))
        return results

    def _vjp(self, times: Tensor, y: Tensor, y_bar: Tensor, *given: Any) -> Any:
        code = self.field.code
        inside, given = (given[0], given[1:]) if self.with_slopes else (None, given)
        count = len(code.sources)
        totals, others = given[:count], given[count:]
        y_bar, totals, times_bar, end, slopes = code.steps(self.tableau).vjp(
            times, y, y_bar, inside, totals, others, self.time_grad
        )
        return y_bar, end, *totals, *([times_bar, torch.stack(slopes)] if self.time_grad else [])


def _with_results_kept(call: Callable) -> Callable:
    """The same where results are memory of a CUDA graph, which the next call overwrites."""

    def kept(given: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return pytree.tree_map_only(torch.Tensor, torch.clone, call(given))

    return kept
