"""What a stepper is to the march and to the gradient methods."""

from dataclasses import dataclass, field

import torch


@dataclass(slots=True, eq=False)
class Carry:
    """What one step hands to the next: time, flat state y [n], and a slope or velocity that belongs to it.

    ``evaluation`` is the `Evaluation` behind the slope where its graph is kept; ``after_jump`` says that f jumped at
    t, so that the slope is to be taken just behind it.
    """

    t: float
    y: torch.Tensor
    slope: torch.Tensor | None = None
    evaluation: object = None
    after_jump: bool = False


@dataclass(slots=True, eq=False)
class Trial:
    """A step that was tried: the carry at its end, its error estimate [n] (None for fixed-step methods), and the
    evaluations whose graphs were kept (None: none)."""

    end: Carry
    error: torch.Tensor | None
    evaluations: list | None = field(default=None)


class Stepper:
    """Base of the steppers. Subclasses give `start`, `prepare`, `refresh`, `step`, `interpolate` and, as far as the
    method has them, `replay`, `vjp`, `interpolate_vjp` and `invert`. ``hint``: what else a solve that took too many or
    too small steps may try."""

    hint = ""

    def __init__(self, vector_field):
        self.field = vector_field

    @property
    def n_f_evals(self):
        return self.field.n_evals

    def report(self, stats):
        """Fill in the counts of a forward pass."""
        stats.n_f_evals = self.n_f_evals

    def mark(self):
        """State of f's side effects before a try."""
        self.field.side_effects.check_stream()
        return self.field.side_effects.mark()

    def rewind(self, mark):
        """Undo the side effects of a rejected try."""
        self.field.side_effects.check_stream()
        self.field.side_effects.rewind(mark)

    def is_finite(self, trial):
        return self.is_finite_state(trial.end)

    @staticmethod
    def is_finite_state(carry):
        return carry.y.numel() == 0 or bool(torch.isfinite(torch.linalg.vector_norm(carry.y, float("inf"))))
