"""What the three experiments share: settings, titles, run folders, lists of runs, and the rows of their tables."""

from harness.cli import refuse
from harness.environment import origins
from harness.experiment import BEST, Experiment
from harness.files import write_text
from harness.launch import Job
from harness.record import working_seconds
from harness.solvers import SOLVER, add_solver_arguments, settle_solver
from harness.tables import replace_measured, results_folder, spread, table, write_runs
from harness.testing import RECORD, runs_tested
from harness.training import FINISHED
from harness.verdicts import Means, hours_each


class Part(Experiment):
    """One of the experiments: a model, a task and a profile. To be subclassed, beside what `Experiment` says:

    Attributes:
        models: names; ``solved`` are those that solve an ODE.
        task: the setting that names what is learnt, and with the model a row of a table.
        sizes: words for the settings whose reduction a title tells.
    """

    models, solved = (), ()
    task = ""
    sizes = {}

    def add_settings(self, parser):
        """Add the flags of its own settings but --model."""

    def check(self, settings):
        """UsageError for settings that cannot be."""

    def add_arguments(self, parser):
        parser.add_argument("--model", choices=self.models, default=self.models[-1], help="see the README")
        self.add_settings(parser)
        add_solver_arguments(parser, f"for {', '.join(self.solved)}")

    def complete(self, values, chosen):
        own = {*self.profiles["paper"], self.task} - set(SOLVER)
        settings = {name: values[name] for name in ("model", "profile", "seed", *sorted(own))}
        self.check(settings)
        if settings["model"] not in self.solved:
            refuse(chosen, SOLVER, f"--model {settings['model']} solves no ODE")
            return settings
        return settings | settle_solver(values, chosen)

    def profile(self, values):
        chosen = self.profiles[values["profile"]]
        return {name: of[values["model"]] if isinstance(of, dict) else of for name, of in chosen.items()}

    def label(self, settings):
        """Model and, where it has one, gradient method."""
        return "-".join([settings["model"], *([settings["gradient"]] if "gradient" in settings else [])])

    def what(self, settings):
        """The task in a word that may be part of a path."""
        return str(settings[self.task])

    def scaled_down(self, settings):
        """How the settings are smaller than those of the paper profile, a few words each."""
        full = self.profile(settings | {"profile": "paper"})
        return [f"{settings[name]} of {full[name]} {words}" for name, words in self.sizes.items()
                if settings[name] < full[name]]  # fmt: skip

    def title(self, settings):
        text = f"{self.label(settings)}, {self.what(settings)}, {settings['profile']} profile"
        return f"{text}, scaled down: {', '.join(words)}" if (words := self.scaled_down(settings)) else text

    def place(self, settings):
        return f"{settings['profile']}/{self.what(settings)}/{self.label(settings)}/seed{settings['seed']}"

    def job(self, *flags):
        """A run with these flags, and its test."""
        return Job(flags, self.place(self.new_settings(*flags)), tests=(((), RECORD),))

    def runs(self, root):
        """A dict for each tested run below ``root``: its settings, summary and test together, ``label``, ``what``,
        ``title`` and ``folder``."""
        found = []
        for folder, run, test in runs_tested(self, root, BEST):
            settings, summary = run["settings"], run["summary"]
            own = {name: summary[name] for name in ("status", "parameters")} | {"seconds": working_seconds(run)}
            own |= summary["evaluations"] or {"forward": None, "backward": None}
            names = {"label": self.label(settings), "what": self.what(settings), "title": self.title(settings)}
            names |= {"folder": folder, "environment": run["environment"]}
            found.append(test | settings | own | names)
        return found


def means(rows, headings):
    """A Markdown table of the mean of each of ``headings`` (a dict: field -> (heading, format)) over the runs of a
    profile, task and label."""
    groups = {}
    for row in rows:
        groups.setdefault((row["profile"], row["what"], row["label"]), []).append(row)
    lines = []
    for (profile, what, label), own in groups.items():
        cells = [spread([row.get(name) for row in own], form) for name, (_, form) in headings.items()]
        lines.append([profile, what, label, str(len(own)), *cells])
    return table(["profile", "task", "model", "seeds", *(heading for heading, _ in headings.values())], lines)


def failures(rows):
    """A line for each run that did not finish."""
    return "".join(f"- {row['title']}, seed {row['seed']}: {row['status']}\n"
                   for row in rows if row["status"] != FINISHED)  # fmt: skip


def scales(rows):
    """A line for each way in which runs are scaled down."""
    words = dict.fromkeys(row["title"].partition("profile, ")[2] for row in rows)
    return "".join(f"- {text}\n" for text in words if text)


def smaller(rows, what, ours, theirs, field, form, same_network=False):
    """The claim that model ``ours`` has less of ``field`` than ``theirs`` on a task. Where both are the same network,
    runs of one seed begin with the same weights, and are compared as pairs."""
    sides = [[row for row in rows if (row["what"], row["label"]) == (what, name)] for name in (ours, theirs)]
    sides = [[row for row in side if row.get(field) is not None] for side in sides]
    values = ({row["seed"]: row[field] for row in side} for side in sides)
    hours = hours_each(*([row["seconds"] for row in side] for side in sides))
    return Means(f"{what}: {ours} below {theirs}", *values, -1, same_network, hours, form=form)


def write_report(part, argv, headings, notes, readme, claims=lambda rows: ""):
    """Write runs.csv and tables.md from the records of all runs, and the same table into the part of a README.

    Args:
        claims: of the runs of a profile, the text on what the paper claims.
    """
    root = results_folder(argv, "Write runs.csv and tables.md from the records of all runs.", part, packs=True)
    rows = sorted(part.runs(root), key=lambda row: (row["profile"], row[part.task]))
    columns = ("profile", "what", "label", "seed", "status", *headings, "seconds", "parameters", "forward", "backward")
    write_runs(root / "runs.csv", dict.fromkeys(columns), rows)
    kinds = origins((f"{row['label']}, {row['profile']} profile", row["environment"]) for row in rows)
    seeds = {row["seed"] for row in rows}
    few = "One seed: nothing is said about spread.\n\n" if len(seeds) == 1 else ""
    about = f"{notes} Seconds: of the processor, or where a run has not recorded those, of the clock. {kinds}"
    text = f"{means(rows, headings)}\n{few}{about}\n"
    for profile in dict.fromkeys(row["profile"] for row in rows):
        if found := claims([row for row in rows if row["profile"] == profile]):
            text += f"\nThe paper's claims, {profile} profile:\n\n{found}"
    text += f"\n{scales(rows)}" + (f"\nFailures:\n\n{failed}" if (failed := failures(rows)) else "")
    script = f"{part.name}/report.py"
    head = f"# {part.name}\n\nWritten by `python {script}` from the records beside it.\n\n"
    write_text(root / "tables.md", head + text)
    if root == part.results:
        replace_measured(readme, script, text)
    print(f"{len(rows)} runs -> {root / 'tables.md'}")
