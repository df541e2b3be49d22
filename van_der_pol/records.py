"""Where this experiment keeps its records, and the command line of its measurements."""

from pathlib import Path

from harness import packed
from harness.cli import ArgumentParser, positive_int, seed
from harness.record import Run, read_metrics

RESULTS = Path(__file__).resolve().parent.parent / "results" / "van_der_pol"


def measurement_parser(description, name):
    """A parser with the flags of a measurement that runs in one go, on a CPU: --seed --out --overwrite --threads."""
    parser = ArgumentParser(description)
    parser.add_argument("--seed", type=seed, default=0, help="seed of every random number")
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    parser.add_argument("--out", default=str(RESULTS / name), metavar="DIR", help="run folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the record that the run folder already holds")
    return parser


def write(args, rows, **summary):
    """Record ``rows``, dicts that JSON can hold, as they come."""
    run = Run.start(args.out, vars(args), overwrite=args.overwrite)
    for number, row in enumerate(rows):
        run.log(number, **row)
    run.finish(summary)


def there(folder):
    """Whether a folder holds the record of a measurement, or of runs, that has ended."""
    return packed.read(folder, "summary.json") is not None or bool(packed.folders(folder, "summary.json"))


def read(folder, **wanted):
    """The rows of a measurement's folder that have the wanted values."""
    rows = read_metrics(folder)
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
