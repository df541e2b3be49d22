"""What goes wrong in the authors' package (torch_ACA at 9cdd163, current PyTorch) and applies to a solver like ours.

A test that pins one carries `@pytest.mark.defect(name)`; `scripts/defects_table.py` writes docs/defects.md from both.
"""

DEFECTS = {
    "checkpointed-adjoint-raises": "the checkpointed adjoint cannot train: its parameters are gone after one step",
    "endtime-backward-raises": "restoring f's state bumps tensor versions: the end-time mode's backward pass raises",
    "batchnorm-counts-twice": "BatchNorm statistics count rejected tries and the backward pass's recomputation",
    "frozen-or-no-parameters": "frozen or unused parameters, plain functions and functions without parameters raise",
    "closure-gets-no-gradient": "tensors that f captures by closure get no gradient, silently",
    "no-second-derivatives": "no second derivatives through the checkpointed adjoint",
    "time-gradients": "gradients with respect to t0, t1 and output times are missing or wrong",
    "dropout-replay": "the backward pass draws other dropout masks than the forward pass",
    "fixed-step-adjoint": "the checkpointed adjoint of fixed-step methods raises",
    "dense-output": "Dopri5's dense output uses the wrong stage: 3e-2 off at tolerance 1e-6, t1 itself included",
    "last-step-unchecked": "the last step to t1 is never error-controlled",
    "oversteps-t1": "f is called beyond t1",
    "accepts-failed-steps": "a step that failed the tolerance is accepted if the step size hardly changes",
    "reverse-time": "output times in reverse order raise",
    "evaluation-limit": "at the evaluation limit: one unchecked step to t1, or fewer rows than asked for, silently",
    "stiff-loop": "stiff problems loop forever, printing",
    "nan": "a NaN ends in ZeroDivisionError",
    "bad-arguments": "unknown methods, a missing step size and the like print a line and crash elsewhere",
    "times-outside": "output times beyond t1 pass the range check and are integrated to without a word",
    "fixed-grid-ends-short": "fixed steps that do not divide the interval, or only up to rounding, miss t1",
    "buffer-emptied": "a buffer that f returns is emptied",
    "solver-reuse": "a solver object cannot be used twice",
    "float64-outputs": "float64 states fail at output times",
    "shapes": "0-d states change shape; a single output time loses its axis",
    "nested-states": "tuples of tensors crash",
}
