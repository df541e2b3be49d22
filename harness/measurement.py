"""Measurements that run in one go on a CPU: their command line, and their rows in a record like that of a run."""

from harness import packed
from harness.cli import ArgumentParser, UsageError, positive_int, seed
from harness.progress import progress
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


def write_parts(args, parts, rows_of, **summary):
    """As `write`, of the rows that ``rows_of`` gives for each of ``parts``, a list of numbers that every row has as
    ``seed``. A record that was interrupted goes on: with the first part that is not complete."""
    known = [] if args.overwrite else read_metrics(args.out)
    if known and packed.read(args.out, "summary.json") is None:
        begun = known[-1].get("seed")  # the last part may lack rows
        if begun not in parts:
            raise UsageError(f"{args.out} holds another script's unfinished run: overwrite it, or take another folder")
        kept = [row for row in known if row["seed"] != begun]
        run, parts = Run.resume(args.out, vars(args), step=len(kept) - 1), parts[parts.index(begun) :]
    else:
        run, kept = Run.start(args.out, vars(args), overwrite=args.overwrite), []
    numbered = enumerate((row for part in parts for row in rows_of(part)), len(kept))
    for number, row in progress(numbered, desc=str(args.out)):
        run.log(number, **row)
    run.finish(summary)


def read(folder, **wanted):
    """The rows of a measurement's folder that have the wanted values."""
    rows = read_metrics(folder)
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
