"""Trajectories cut into the two tasks, divided to train, validate and test on, and observed at few of their points."""

from dataclasses import dataclass

import torch

from harness.seeding import generator
from latent_ode_mujoco.data import FEATURES, POINTS

WINDOW = 100  # points of the interpolation task
OBSERVABLE = POINTS // 3  # points of the extrapolation task that are observed; the others are predicted
TRAINED_FRACTION = 0.8
TASKS = ("interpolation", "extrapolation")


@dataclass(frozen=True)
class Split:
    """Trajectories [N, P, FEATURES] that can be observed at grid points 0 to P - 1, and what is predicted of them:
    ``targets`` [N, T, FEATURES] at grid points ``start`` to ``start + T - 1``, all of one device."""

    observable: torch.Tensor
    targets: torch.Tensor
    start: int

    def __len__(self):
        return len(self.targets)

    def observe(self, rows, count, draw):
        """A `Batch` of the trajectories ``rows`` (a slice), each observed at ``count`` points of its own.

        ``draw`` is a generator on the CPU: whatever the device, the same points are observed.
        """
        observable, targets = self.observable[rows], self.targets[rows]
        scores = torch.rand(observable.shape[:2], generator=draw)
        index = scores.argsort(dim=1)[:, :count].sort(dim=1).values.to(observable.device)
        values = observable.gather(1, index[..., None].expand(-1, -1, FEATURES))
        target_index = torch.arange(self.start, self.start + targets.shape[1])
        return Batch(values, index, targets, target_index, self.start)


@dataclass(frozen=True)
class Batch:
    """What a model is given of B trajectories, and what it is to predict. Times are grid points over POINTS.

    ``values`` [B, m, FEATURES] are the observations, at increasing grid points ``index`` [B, m]; nothing else of the
    trajectories is in here but the ``targets`` [B, T, FEATURES], at grid points ``target_index`` [T] (on the CPU),
    common to all; ``start`` is the first that could be predicted.
    """

    values: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor
    target_index: torch.Tensor
    start: int

    @property
    def times(self):
        """Times of the observations [B, m]."""
        return self.index / POINTS

    def some_targets(self, count, draw):
        """The batch with ``count`` of its target times, drawn evenly without replacement (None: with all)."""
        if count is None or count >= len(self.target_index):
            return self
        chosen = torch.randperm(len(self.target_index), generator=draw)[:count].sort().values
        targets = self.targets[:, chosen.to(self.targets.device)]
        return Batch(self.values, self.index, targets, self.target_index[chosen], self.start)


@dataclass(frozen=True)
class Task:
    """Of the first 80 % of the trajectories those to train on, and those set aside for `prepare`'s ``validation``; the
    last 20 % to test on; and the extremes [FEATURES] with which `normalise` scaled them."""

    train: Split
    validation: Split
    test: Split
    minimum: torch.Tensor
    maximum: torch.Tensor


def normalise(states):
    """(x - minimum) / maximum of each feature, extremes over all trajectories as in the recipe, and these two.

    The recipe divides by the maximum, not by the range: its errors, ours and the paper's share this scale.
    """
    flat = states.flatten(0, 1)
    minimum, maximum = flat.amin(0), flat.amax(0)
    maximum = torch.where(maximum == 0, torch.ones_like(maximum), maximum)
    return (states - minimum) / maximum, minimum, maximum


def sizes(count, validation):
    """How many of ``count`` trajectories there are to train, to validate and to test on. Of those not to test on the
    fraction ``validation`` is set aside to validate on: at least one, if it is not 0."""
    first = int(TRAINED_FRACTION * count)
    aside = max(round(validation * first), 1) if validation else 0
    return first - aside, aside, count - first


def prepare(states, task, seed, device, validation=0.0):
    """The `Task` of that name on trajectories [N, POINTS, FEATURES].

    Which trajectories are set aside (see `sizes`) is drawn with ``seed``. Those to test on do not depend on it.

    Interpolation: a window of WINDOW points from each trajectory, drawn with ``seed``; any of it may be observed, all
    is predicted. Extrapolation: of all points, the first third may be observed and the others are predicted.
    """
    scaled, minimum, maximum = normalise(states)
    if task == "interpolation":
        draw = generator("cpu", seed, "windows")
        first = torch.randint(POINTS - WINDOW + 1, (len(states), 1), generator=draw)
        index = (first + torch.arange(WINDOW))[..., None].expand(-1, -1, FEATURES)
        observable = targets = scaled.gather(1, index).to(device)
        start = 0
    else:
        observable, targets = (part.to(device) for part in scaled.tensor_split([OBSERVABLE], dim=1))
        start = OBSERVABLE
    train, aside, test = sizes(len(states), validation)
    order = torch.randperm(train + aside, generator=generator("cpu", seed, "validation set"))
    parts = (*(part.sort().values for part in order.split([train, aside])), train + aside + torch.arange(test))
    splits = (Split(observable[part.to(device)], targets[part.to(device)], start) for part in parts)
    return Task(*splits, minimum, maximum)
