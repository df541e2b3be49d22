"""What the reports share: Markdown tables, spreads, and the part of a README that a script writes."""

from pathlib import Path
from statistics import mean, stdev

from harness import packed
from harness.cli import ArgumentParser, UsageError
from harness.files import atomic_write, check_folder, csv_text, write_text
from harness.record import kind_of, read_run


def table(header, rows):
    """A Markdown table of cells that are texts."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values, form, unit="", deviation_form=None):
    """Mean and, of several values, standard deviation as text; None is left out; blank without values."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    deviation = f" ± {stdev(values):{deviation_form or form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{deviation}{unit}"


def results_folder(argv, description, experiment, *, packs=False):
    """The folder of an experiment's runs that the command line of a report or of a plot names.

    ``packs``: it has the flag --record, which packs these runs first.

    Raises:
        UsageError: there is no such folder, it holds no record of the experiment, or it cannot be written to.
    """
    parser, about = ArgumentParser(description), "folder below which the runs lie, at any depth"
    parser.add_argument("--results", default=str(experiment.results), metavar="DIR", help=about)
    if packs:
        add_record_argument(parser)
    args = parser.parse_args(argv)
    folder = Path(args.results)
    if not folder.is_dir():
        raise UsageError(f"--results {folder} is {'a file' if folder.exists() else 'not there'}; a folder is needed")
    if not any(_may_be_of(experiment, read_run(run)) for run in packed.folders(folder, "run.json")):
        raise UsageError(f"--results {folder} holds no record of {experiment.name} (run.json or {packed.PACK})")
    check_folder(folder)
    if packs and args.record:
        pack_runs(folder)
    return folder


def _may_be_of(experiment, run):
    """Whether a record is of a training or a measurement of an experiment, or does not say of what it is."""
    kind = kind_of(run)
    return kind is None or kind == experiment.name or kind.startswith(f"{experiment.name}/")


def add_record_argument(parser):
    """Add the flag --record, to be followed by `pack_runs`."""
    about = f"first pack the runs that have ended into {packed.PACK} of their profile, which git keeps"
    parser.add_argument("--record", action="store_true", help=about)


def pack_runs(root):
    """Pack the runs below a folder, and say how many."""
    print(f"{packed.pack(root)} runs packed below {root}")


def write_runs(path, columns, rows):
    """Write a CSV file of dicts, with those ``columns`` of them; what is None is left blank."""
    write_text(path, csv_text(columns, ([row.get(name) for name in columns] for row in rows)))


def replace_measured(readme, script, text):
    """Put ``text`` between the marks of a README that say what ``script`` writes there."""
    start, end = f"<!-- measured: written by {script} -->\n", "<!-- end of measured -->\n"
    head, rest = Path(readme).read_text().split(start)
    with atomic_write(readme) as file:
        file.write((head + start + text + end + rest.split(end, 1)[1]).encode())
