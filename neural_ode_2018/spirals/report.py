"""Tables over all runs on spirals, rendered from their records."""

from harness.cli import run_main
from harness.environment import ROOT
from harness.verdicts import verdict_table
from neural_ode_2018.part import smaller, write_report
from neural_ode_2018.spirals.experiment import SPIRALS

HEADINGS = {
    "rmse_ahead_train": ("RMSE ahead", ".3f"),
    "rmse_ahead_new": ("RMSE ahead, new spirals", ".3f"),
    "rmse_seen_train": ("RMSE seen", ".3f"),
    "rmse_behind_train": ("RMSE behind", ".3f"),
    "forward": ("NFE forward", ".0f"),
    "backward": ("NFE backward", ".0f"),
    "seconds": ("seconds", ".0f"),
}
NOTES = (
    "RMSE of a coordinate against the spirals without noise, ahead of the times trained on, at them and before them. "
    "The paper's units are not known: compare the order of the models, not the sizes. In the paper, at n = 30, 50, "
    "100: latent ODE 0.1642, 0.1502, 0.1346, RNN 0.3937, 0.3202, 0.1813."
)


def comparisons(rows):
    """That the latent ODE predicts better than both recurrent networks, at every number of points."""
    tasks = dict.fromkeys(row["what"] for row in rows)
    pairs = [(what, other) for what in tasks for other in ("rnn", "rnn-gaps")]
    return [smaller(rows, what, "latent-ode-aca", other, "rmse_ahead_train", ".3f") for what, other in pairs]


def claims(rows):
    """The text on them."""
    return verdict_table(comparisons(rows))


def main(argv=None):
    write_report(SPIRALS, argv, HEADINGS, NOTES, ROOT / "neural_ode_2018" / "README.md", claims)


if __name__ == "__main__":
    run_main(main)
