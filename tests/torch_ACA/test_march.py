"""The loop, with a stub stepper and a stub controller: no ODE in sight."""

import pytest
import torch

from torch_ACA.callbacks import Callbacks
from torch_ACA.controller import Controller, FixedSteps
from torch_ACA.errors import TooManyEvaluationsError
from torch_ACA.march import Limits, Stats, Stop, march
from torch_ACA.steppers.base import Carry, Trial


class StubStepper:
    """Counts; its 'error' is the step size over a limit."""

    def __init__(self, limit=0.3):
        self.limit, self.n_f_evals, self.prepared, self.rewound, self.refreshed = limit, 0, 0, 0, []
        self.current, self.n_accepted = "stub", 0

    def start(self):
        return Carry(0.0, torch.zeros(1))

    def prepare(self, carry):
        self.prepared += 1

    def accepted(self):
        self.n_accepted += 1

    def mark(self):
        return self.n_f_evals

    def rewind(self, mark):
        self.rewound += 1

    def refresh(self, carry):
        self.refreshed.append(carry.t)

    def step(self, carry, h, t_end, *, before_jump=False):
        self.n_f_evals += 1
        return Trial(Carry(t_end, carry.y + h), torch.tensor([abs(h) / self.limit]))

    def is_finite(self, trial):
        return True


class Absolute(Controller):
    """The error as it is."""

    def error_ratio(self, error, y0, y1):
        return error.abs().max()


CONTROLLER = Absolute(0.0, 1.0, error_order=1)


def steps_of(stops, *, first_step=1.0, controller=CONTROLLER, stepper=None, **keywords):
    stepper = stepper or StubStepper()
    return stepper, list(
        march(stepper, controller, stepper.start(), 0.0, [Stop(*s) if isinstance(s, tuple) else Stop(s) for s in stops],
              first_step=first_step, **keywords)
    )  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.defect("last-step-unchecked", "accepts-failed-steps")
def test_ends_exactly_on_every_stop(sign):
    stats = Stats()
    stepper, steps = steps_of([sign * 0.7, sign * 0.701, sign * 2.0], stats=stats)
    assert [s.stop.t for s in steps if s.stop] == [sign * 0.7, sign * 0.701, sign * 2.0]
    assert steps[-1].t_end == sign * 2.0 and all(s.h * sign > 0 for s in steps)
    assert all(a.t_end == b.t for a, b in zip(steps, steps[1:]))
    assert all(abs(s.h) <= 0.3 for s in steps)  # the last step is controlled like any other
    assert stats.n_accepted == len(steps) and stats.n_rejected == stepper.rewound > 0


def test_a_step_is_prepared_once_however_often_it_is_tried():
    stepper, steps = steps_of([1.0], first_step=100.0)
    assert stepper.prepared == len(steps) and stepper.rewound > 0


def test_a_short_landing_step_does_not_shrink_the_next():
    _, steps = steps_of([0.25, 0.2501, 2.0], first_step=0.25)
    after = steps[[s.stop is not None and s.stop.t == 0.2501 for s in steps].index(True) + 1]
    assert after.h > 0.2


def test_jumps_refresh_the_slope():
    stepper, _ = steps_of([(0.4, None, True), 1.0])
    assert stepper.refreshed == [0.4]


def test_fixed_steps_leave_no_sliver():
    _, steps = steps_of([1.0], first_step=1 / 49, controller=FixedSteps(1 / 49))
    assert len(steps) == 49 and steps[-1].t_end == 1.0


def test_limits():
    with pytest.raises(TooManyEvaluationsError, match="max_evals = 5"):
        steps_of([100.0], limits=Limits(max_evals=5))
    with pytest.raises(TooManyEvaluationsError, match="max_num_steps = 5"):
        steps_of([100.0], limits=Limits(max_steps=5))


def test_callbacks_see_every_try():
    seen = {"step": 0, "accept": 0, "reject": 0}

    def count(name):
        return lambda t, y, h: seen.__setitem__(name, seen[name] + 1)

    stats = Stats()
    steps_of([2.0], first_step=5.0, stats=stats, callbacks=Callbacks(**{name: count(name) for name in seen}))
    assert seen["accept"] == stats.n_accepted and seen["reject"] == stats.n_rejected > 0
    assert seen["step"] == seen["accept"] + seen["reject"]


def test_controller_on_floats_and_tensors_alike():
    for beta in (0.0, 0.04):
        controller = Controller(1e-3, 1e-3, error_order=5, beta=beta)
        for ratio in (1e-12, 0.01, 0.5, 1.0, 3.0, 1e9):
            as_tensor = controller.factor(torch.tensor(ratio), 0.7)
            assert float(as_tensor) == pytest.approx(controller.factor(ratio, 0.7), rel=1e-12)
    assert controller.factor(0.0) == controller.ifactor
    zero = torch.zeros((), requires_grad=True)
    (g,) = torch.autograd.grad(controller.factor(zero), zero)
    assert float(g) == 0.0


def test_initial_step_is_that_of_hairer():
    """y' = -y, y(0) = 1, tolerance 1e-6: d0 = d1 = 1 / (2e-6), h0 = 0.01, d2 = d1 up to 1 %."""
    controller = Controller(1e-6, 1e-6, error_order=5)
    size = controller.initial_step(lambda t, y: -y, 0.0, 10.0, torch.ones(3), -torch.ones(3))
    assert size == pytest.approx((0.01 * 2e-6) ** 0.2, rel=1e-6)


def test_an_error_that_min_step_let_pass_does_not_stall_the_pi_controller():
    """The short step that lands at 0.09 passes with any error; what the controller remembers of it must not keep the
    tries behind it, whose error is a little too large, from shrinking."""

    class Jump(StubStepper):
        def step(self, carry, h, t_end, *, before_jump=False):
            trial = super().step(carry, h, t_end, before_jump=before_jump)
            return Trial(trial.end, torch.tensor([2e4 if carry.t < 0.09 else abs(h) / self.limit]))

    controller = Absolute(0.0, 1.0, error_order=5, beta=0.02, min_step=0.14, max_step=0.26)
    steps = march(
        Jump(limit=0.2028), controller, StubStepper().start(), 0.0, [Stop(0.09), Stop(1.0)], first_step=0.26,
        limits=Limits(max_evals=100),
    )  # fmt: skip
    assert [step.t_end for step in steps][-1] == 1.0
