"""What `baselines.py` measured, for tables and figures: predictors without training beside the models."""

from statistics import mean

from harness.measurement import read
from harness.tables import spread, table
from latent_ode_mujoco.baselines import FOLDER, FRACTIONS
from latent_ode_mujoco.experiment import PROFILES

TITLES = {"constant": "constant: mean of the training data", "straight": "straight lines between what is observed"}


def errors(root, profile, task):
    """{label: {fraction: [test error x 1e-2 of each seed]}}; empty where nothing was measured."""
    found = {}
    for row in read(root / FOLDER.name, profile=profile, task=task):
        found.setdefault(row["label"], {}).setdefault(row["sample"], []).append(100 * row["mse"])
    return found


def compared(means, untrained):
    """How the trained models compare with the predictors without training, in words; nothing without either.

    ``means``: {fraction: {model: mean test error x 1e-2}}; ``untrained``: what `errors` returns.
    """
    if not (means and untrained):
        return ""
    worse, best = {}, []
    for fraction, of_model in means.items():
        worse |= {name: None for name, error in of_model.items() if error > mean(untrained["constant"][fraction])}
        least = min(of_model, key=of_model.get)
        best.append(f"{of_model[least] / mean(untrained['straight'][fraction]):.2g} at {fraction:.0%} ({least})")
    return (
        f"The least error of a trained model over that of straight lines between the observed points: "
        f"{'; '.join(best)}. Trained models that are worse than the constant: {', '.join(worse) or 'none'}.\n"
    )


def by_size(root, quoted):
    """A section on their errors of interpolation at the size of each profile, beside the least error that is quoted.

    ``quoted``: the papers' test errors x 1e-2 at FRACTIONS, by source and model.
    """
    rows = []
    for profile, settings in PROFILES.items():
        for label, found in errors(root, profile, "interpolation").items():
            cells = [spread(found[fraction], ".2g") for fraction in FRACTIONS]
            rows.append([TITLES[label], f"{settings['trajectories']:,} (`--profile {profile}`)", *cells])
    if not rows:
        return ""
    published = [values for models in quoted.values() for values in models.values()]
    least = [f"{min(values[index] for values in published):g}" for index in range(len(FRACTIONS))]
    rows.append(["least of the errors that the papers have, quoted from memory", "10,000", *least])
    header = ["predictor", "trajectories", *(f"{fraction:.0%}" for fraction in FRACTIONS)]
    text = "### Without training\n\nTest MSE x 1e-2 of interpolation by fraction observed, mean ± standard deviation "
    text += "over seeds (`python latent_ode_mujoco/baselines.py`).\n\n"
    return text + table(header, rows)
