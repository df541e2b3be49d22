"""Tables over all runs, rendered from their records: runs.csv, tables.md, and a part of the README."""

from pathlib import Path
from statistics import geometric_mean, mean, median

from harness import packed
from harness.cli import run_main
from harness.environment import hardware, origins
from harness.experiment import LAST
from harness.files import write_text
from harness.measurement import read
from harness.record import read_epochs, read_run
from harness.tables import replace_measured, results_folder, spread, table, write_runs
from harness.testing import runs_tested
from harness.training import FINISHED
from harness.verdicts import Means, hours_each, verdict_table
from latent_ode_mujoco import untrained
from latent_ode_mujoco.baselines import FRACTIONS
from latent_ode_mujoco.experiment import PROFILES, LatentODE, joint_words, label, scaled_down
from latent_ode_mujoco.gradients import FOLDER
from latent_ode_mujoco.models import ONE_STEP_AHEAD

README = Path(__file__).parent / "README.md"
RESULTS = LatentODE().results
PLAIN, REPAIRED, OURS = "rnn", "rnn-repaired", "latent-ode-aca"
PEER = "Seconds/torchdiffeq.odeint"
LABELS = (
    *ONE_STEP_AHEAD,
    REPAIRED,
    "rnn-vae",
    "latent-ode-rnn-aca",
    *(f"latent-ode-{gradient}" for gradient in ("adjoint", "naive", "aca")),
)
# Test MSE x 1e-2 at FRACTIONS, quoted from memory of the published tables: Zhuang et al. (2020), table 4, and Rubanova
# et al. (2019), interpolation. Confirmed elsewhere: 0.285 (paperswithcode). None: not in that table.
QUOTED = {
    "Zhuang et al.": {
        "rnn": (2.45, 1.71, 0.79),
        "rnn-decay": (1.97, 1.42, 0.75),
        "latent-ode-adjoint": (0.47, 0.44, 0.40),
        "latent-ode-naive": (0.36, 0.30, 0.29),
        "latent-ode-aca": (0.31, 0.27, 0.26),
        "latent-ode-mali": (0.35, 0.27, 0.26),
    },
    "Rubanova et al.": {
        "rnn": (2.454, 1.714, 0.785),
        "rnn-decay": (1.968, 1.421, 0.748),
        "rnn-vae": (6.514, 6.408, 6.100),
        "latent-ode-rnn-aca": (2.477, 0.578, 0.447),
        "latent-ode-naive": (0.360, 0.295, 0.285),
    },
}
COLUMNS = (
    "profile", "task", "sample", "label", "seed", "status", "mse", "epochs", "iterations", "training_seconds",
    "seconds", "forward", "backward", "parameters", "test_evaluations", "gradient_norm", "validation",
)  # fmt: skip


def collect(root):
    """One dict with COLUMNS and ``folder`` for each tested run below ``root``, in the order of the tables."""
    rows = [_row(*found) for found in runs_tested(LatentODE(), root, LAST)]
    return sorted(rows, key=lambda row: (row["profile"], row["task"], row["sample"], _rank(row["label"]), row["seed"]))


def _rank(name):
    return (LABELS.index(name) if name in LABELS else len(LABELS), name)


def _row(folder, run, test):
    settings, summary = run["settings"], run["summary"]
    return {
        **{name: summary[name] for name in ("status", "epochs", "iterations", "training_seconds", "seconds")},
        **(summary["evaluations"] or {"forward": None, "backward": None}),
        **{name: settings[name] for name in ("profile", "task", "sample", "seed")},
        "label": label(settings),
        "mse": test["mse"],
        "parameters": summary["parameters"],
        "test_evaluations": test["evaluations"],
        "gradient_norm": max((row["Train/GradientNorm"] for row in read_epochs(folder)), default=None),
        "scaled_down": scaled_down(settings),
        "validation": settings.get("validation", 0.0),  # runs of earlier versions set nothing aside
        "environment": run["environment"],
        "folder": folder,
    }


def tables(rows, speeds, root):
    """The text of tables.md."""
    parts = []
    for profile in PROFILES:
        for task in sorted({row["task"] for row in rows if row["profile"] == profile}, reverse=True):
            own = [row for row in rows if (row["profile"], row["task"]) == (profile, task)]
            parts += [_errors(profile, task, own, untrained.errors(root, profile, task)), _costs(own)]
            if found := comparisons(own):
                parts.append(f"**The paper's claims at this scale**\n\n{verdict_table(found)}")
    if text := untrained.by_size(root, QUOTED):
        parts.append(text)
    if speeds:
        parts.append(_speed_table(speeds))
    if packed.read(root / FOLDER.name, "summary.json") is not None:
        parts.append(_gradient_table(root / FOLDER.name))
    return "\n".join(parts)


def comparisons(rows):
    """The paper's claims on the test error of interpolation: one comparison each, over all fractions observed."""
    if rows[0]["task"] != "interpolation" or not _of_all_fractions(rows, OURS):
        return []
    others = ("latent-ode-adjoint", "latent-ode-naive", *ONE_STEP_AHEAD, REPAIRED)
    return [_comparison(rows, other) for other in others]


def _comparison(rows, other):
    """Of the geometric mean of a seed's errors over `FRACTIONS`; paired where the weights begin alike."""
    sides = [_of_all_fractions(rows, name) for name in (OURS, other)]
    errors = ({seed: geometric_mean(row["mse"] for row in own) for seed, own in side.items()} for side in sides)
    hours = hours_each(*([sum(row["seconds"] for row in own) for own in side.values()] for side in sides))
    claim = f"{OURS} has less error than {other}, over all fractions observed"
    return Means(claim, *errors, -1, other.startswith("latent-ode-"), hours, logs=True)


def _of_all_fractions(rows, name):
    """{seed: its rows} of the seeds that were run with every fraction."""
    seeds = {}
    for row in rows:
        if row["label"] == name:
            seeds.setdefault(row["seed"], []).append(row)
    return {seed: own for seed, own in seeds.items() if len(own) == len(FRACTIONS)}


def _heading(profile, task, rows):
    words = joint_words(rows)
    return f"### {task.capitalize()}, `--profile {profile}`{words and ', '}{words}\n"


def means(rows):
    """{fraction: {model: mean test error x 1e-2}} of what was run."""
    found = {}
    for fraction in FRACTIONS:
        for name in sorted({row["label"] for row in rows if row["sample"] == fraction}, key=_rank):
            found.setdefault(fraction, {})[name] = mean(_errors_of(rows, name, fraction).values())
    return found


def _errors(profile, task, rows, baselines):
    quoted = QUOTED if task == "interpolation" else {}
    columns = [f"{fraction:.0%}" for fraction in FRACTIONS]
    columns += [f"{source} {fraction:.0%}" for source in quoted for fraction in FRACTIONS]
    lines = [
        [untrained.TITLES[name], *(_counted(errors[fraction]) for fraction in FRACTIONS), *[""] * (len(columns) - 3)]
        for name, errors in baselines.items()
    ]
    for name in sorted({*LABELS, *(row["label"] for row in rows)}, key=_rank):
        cells = [_counted(list(_errors_of(rows, name, fraction).values())) for fraction in FRACTIONS]
        for published in quoted.values():
            cells += [f"{value:g}" for value in published.get(name, ())] or [""] * len(FRACTIONS)
        lines.append([name, *cells])
    text = f"{_heading(profile, task, rows)}\nTest MSE x 1e-2 by fraction observed, mean ± standard deviation over "
    text += "seeds (in brackets, how many); blank: not run, or not in that paper.\n\n"
    text += table(["model", *columns], lines) + _set_aside(rows)
    if said := untrained.compared(means(rows), baselines):
        text += f"\n{said}"
    for other, words in ((PLAIN, "The plain RNN's error"), (REPAIRED, "That of the repaired RNN")):
        ratios = [(fraction, _ratios(rows, other, fraction)) for fraction in FRACTIONS]
        if found := [f"{ratio} at {fraction:.0%}" for fraction, ratio in ratios if ratio]:
            text += f"\n{words} over that of the latent ODE with aca: {'; '.join(found)}.\n"
    failures = [
        f"- {row['label']}, {row['sample']:.0%}, seed {row['seed']}: {row['status']}"
        for row in rows
        if row["status"] != FINISHED
    ]
    return text + ("\nRuns that ended early:\n\n" + "\n".join(failures) + "\n" if failures else "")


def _set_aside(rows):
    """What the runs had to choose by, in words."""
    shares = ", ".join(sorted({f"{row['validation']:.1%}" for row in rows if row["validation"]}))
    without = ", ".join(dict.fromkeys(row["label"] for row in rows if not row["validation"]))
    text = ""
    if shares:
        text += f"\nSet aside for validation: {shares} of the trajectories to train on. "
        text += "Those to test on were used once, after training.\n"
    if without:
        text += "\nNothing was set aside for validation, and the test error was taken between epochs, in runs of "
        text += f"{without if shares else 'all models'}.\n"
    return text


def _errors_of(rows, name, fraction):
    """Test error x 1e-2 of each seed that was run."""
    return {row["seed"]: 100 * row["mse"] for row in rows if (row["label"], row["sample"]) == (name, fraction)}


def _ratios(rows, other, fraction):
    """Of the mean errors over the seeds that both have, and of each seed: a mean can hide that one misses an aim."""
    errors, ours = _errors_of(rows, other, fraction), _errors_of(rows, OURS, fraction)
    both = sorted(errors.keys() & ours.keys())
    if not both:
        return None
    of_means = mean(errors[seed] for seed in both) / mean(ours[seed] for seed in both)
    return f"{of_means:.2f} (by seed {', '.join(f'{errors[seed] / ours[seed]:.2f}' for seed in both)})"


def _costs(rows):
    """What the runs cost; NFE are those of the decoder's vector field."""
    lines = []
    for name in sorted({row["label"] for row in rows}, key=_rank):
        for fraction in FRACTIONS:
            own = [row for row in rows if (row["label"], row["sample"]) == (name, fraction)]
            iterations = sum(row["iterations"] for row in own)
            if not iterations:
                continue
            cells = [f"{sum(row['training_seconds'] for row in own) / iterations * 1e3:.1f}"]
            for kind in ("forward", "backward"):
                cells.append(f"{sum(row[kind] for row in own) / iterations:.1f}" if own[0][kind] is not None else "")
            minutes = mean(row["training_seconds"] for row in own) / 60
            norms = [row["gradient_norm"] for row in own if row["gradient_norm"] is not None]
            cells += [f"{minutes:.1f}", f"{max(norms):.2g}" if norms else ""]
            lines.append([name, f"{fraction:.0%}", f"{own[0]['parameters']:,}", *cells])
    header = ["model", "observed", "parameters", "ms a step", "NFE forward", "NFE backward", "minutes a run"]
    header.append("largest gradient norm")
    minutes = sum(row["training_seconds"] for row in rows) / 60
    note = "\nOne step is one batch. Processor time; tests between the epochs are not counted. Gradient norm: mean "
    note += "over an epoch, the largest of all epochs and seeds. All these runs "
    note += f"together: {minutes:.0f} minutes. {origins([(row['label'], row['environment']) for row in rows])}\n"
    return table(header, lines) + note


def collect_speeds(root):
    """Name, record and rows of metrics of each finished measurement of `speed.py`."""
    folders = packed.folders(Path(root) / "speed", "summary.json")
    return [(folder.name, read_run(folder), read_epochs(folder)) for folder in folders]


def _speed_table(speeds):
    """``speeds``: name, record and rows of metrics of each measurement."""
    names = list(dict.fromkeys(name for _, run, _ in speeds for name in run["summary"]["median_seconds"]))
    lines = []
    for folder, run, rounds in speeds:
        medians = run["summary"]["median_seconds"]
        cells = [f"{1e3 * medians[name]:.1f}" if name in medians else "" for name in names]
        pairs = [(row["Seconds/aca"], row[PEER]) for row in rounds if "Seconds/aca" in row and PEER in row]
        won = f"{sum(a < b for a, b in pairs)} of {len(pairs)}" if pairs else ""
        lines.append([folder, *cells, won, hardware(run["environment"])])
    text = "### Milliseconds per training iteration, in the same model\n\nMedian of interleaved rounds "
    text += "(`python latent_ode_mujoco/speed.py`). Sizes: profile, per cent observed, if all times are targets.\n\n"
    return text + table(["sizes", *names, "rounds in which aca beats odeint", "hardware"], lines)


def _gradient_table(folder):
    """How far the methods' gradients are from the exact one, by tolerance and horizon."""
    groups = {}
    for row in read(folder):
        group = groups.setdefault((row["horizon"], row["rtol"], row["atol"]), {})
        group.setdefault(row["method"], []).append(row["error"])
    lines = []
    for (horizon, rtol, atol), found in groups.items():
        cells = [f"{median(errors):.1e} ({min(errors):.0e} to {max(errors):.0e})" for errors in found.values()]
        lines.append([f"{horizon:.2g}", f"{rtol:g}", f"{atol:g}", *cells])
    header = ["horizon", "rtol", "atol", *dict.fromkeys(name for found in groups.values() for name in found)]
    text = "### Errors of the gradients\n\nRelative error of the gradient in the decoder's weights and first state, of "
    text += "a random functional of the latent states, at the first weights (paper profile, single precision); median "
    text += f"(range) over seeds (`python latent_ode_mujoco/{folder.name}.py`). The first row is the recipe.\n\n"
    kinds = origins([("all", read_run(folder)["environment"])])
    return f"{text}{table(header, lines)}\n{kinds}\n"


def _counted(values):
    """Mean and standard deviation, and in brackets of how many."""
    return spread(values, ".3f", f" ({len(values)})")


def main(argv=None):
    about = "Write runs.csv and tables.md from the records of all runs, and the README's tables."
    root = results_folder(argv, about, LatentODE(), packs=True)
    rows = collect(root)
    rendered = tables(rows, collect_speeds(root), root)
    write_runs(root / "runs.csv", COLUMNS, rows)
    write_text(root / "tables.md", f"# Latent ODE on hopper data: results\n\n{rendered}")
    if root == RESULTS:
        replace_measured(README, "latent_ode_mujoco/report.py", rendered)
    print(f"{len(rows)} runs -> {root / 'tables.md'}")


if __name__ == "__main__":
    run_main(main)
