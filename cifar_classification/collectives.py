"""What several processes that train one network together have to agree on."""

from harness.cli import UsageError

GLOBAL_NORM_GRADIENTS = ("aca", "direct", "mali")


def check_collectives(settings):
    """UsageError if processes could come to wait for each other in vain, or would get gradients that are not theirs."""
    if settings["error_norm"] == "global" and settings["gradient"] not in GLOBAL_NORM_GRADIENTS:
        raise UsageError(
            f"--error-norm global goes with --gradient {' '.join(GLOBAL_NORM_GRADIENTS)}: "
            f"{settings['gradient']} has a norm in its backward pass too"
        )
    if settings["error_norm"] == "global" and settings.get("per_sample"):
        raise UsageError("--error-norm global does not go with --per-sample: each image has an error of its own")
    if settings["batch_norm"] == "sync" and (settings["error_norm"] == "local" or settings["memory"]):
        cause, instead = ("--memory", "leave it out") if settings["memory"] else ("--error-norm local", "use global")
        raise UsageError(
            f"--batch-norm sync does not go with {cause}: processes that evaluate f different numbers of times would "
            f"wait for each other forever; {instead}"
        )
