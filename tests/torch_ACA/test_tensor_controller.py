"""Step-size control without branches, for compiled code: the choices of the controller and the march."""

import dataclasses
import itertools
import math

import pytest
import torch

from tests.torch_ACA.test_compiled_loop import stiff
from torch_ACA import tensor_controller
from torch_ACA.compilation.controller_settings import controller_of, settings_of
from torch_ACA.controller import Controller
from torch_ACA.march import next_step


def twin_of(controller):
    """With tensors for its numbers, where tests have theirs."""
    return controller_of(settings_of(controller).to(torch.get_default_device()), controller.error_order)


def test_the_choices_without_branches_are_the_controllers():
    """On tries of every kind: accepted, rejected, shortened, at the smallest size, under I and PI controllers."""
    ratios = [0.0, 1e-7, 0.3, 1.0, 1.7, 1e9, math.inf, math.nan]
    for beta, minimum in itertools.product((0.0, 0.04), (0.0, 0.3)):
        controller = Controller(1e-3, 1e-6, 5, beta=beta, min_step=minimum, max_step=2.0)
        twin = twin_of(controller)
        for ratio, size, previous, landing, rejected in itertools.product(
            ratios, (0.2, 0.3, 1.0, 7.0), (1.0, 0.01) if beta else (1.0,), (False, True), (False, True)
        ):
            expected = controller.judge(ratio, previous, size, 0.8 * size, landing=landing, rejected=rejected)
            if not expected.accepted:  # what to remember is then what it was
                expected = dataclasses.replace(expected, previous=previous)
            numbers = [torch.tensor(x, dtype=torch.float64) for x in (ratio, previous, size, 0.8 * size)]
            flags = {"landing": torch.tensor(landing), "rejected": torch.tensor(rejected)}
            for judge in (twin.judge, tensor_controller.TensorController(controller).judge):
                found = judge(*numbers, **flags)
                for name, value in dataclasses.asdict(expected).items():
                    assert getattr(found, name).item() == pytest.approx(value, rel=1e-14, abs=0), (name, ratio, size)


def test_the_first_step_and_the_way_to_a_stop_are_those_of_eager_steps(field):
    y0, controller = torch.ones(3), Controller(1e-3, 1e-6, 5, max_step=0.9)
    twin = twin_of(controller)
    with torch.no_grad():
        for func, end in itertools.product((field, stiff, lambda t, y: 0 * y, lambda t, y: y / 0), (1.0, -1.0, 1e-9)):
            slope, times = func(torch.tensor(0.0), y0), torch.tensor([0.0, end])
            expected = controller.initial_step(lambda t, y: func(torch.tensor(t), y), 0.0, end, y0, slope)
            found = twin.initial_step(func, *times, y0, slope)
            assert found.item() == pytest.approx(expected, rel=1e-13)
    for t, stop, size in itertools.product((0.0, 0.4), (1.0, -1.0), (0.1, 0.6, 0.6 * (1 - 1e-10), 1.4, 3.0)):
        found = tensor_controller.next_step(*torch.tensor([t, stop, size]))
        assert tuple(x.item() for x in found) == next_step(t, stop, size)
