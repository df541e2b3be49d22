"""Measurements that run in one go on a CPU: their command line, and their rows in a record like that of a run."""

from harness.cli import ArgumentParser, positive_int, seed
from harness.record import Run, read_metrics


def measurement_parser(description, folder):
    """A parser with the flags --seed --out --overwrite --threads; ``folder`` is where the record goes by default."""
    parser = ArgumentParser(description)
    parser.add_argument("--seed", type=seed, default=0, help="seed of every random number")
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    parser.add_argument("--out", default=str(folder), metavar="DIR", help="run folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the record that the run folder already holds")
    return parser


def write(args, rows, **summary):
    """Record ``rows``, dicts that JSON can hold, as they come."""
    run = Run.start(args.out, vars(args), overwrite=args.overwrite)
    for number, row in enumerate(rows):
        run.log(number, **row)
    run.finish(summary)


def read(folder, **wanted):
    """The rows of a measurement's folder that have the wanted values."""
    rows = read_metrics(folder)
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
