"""Where this experiment keeps its records, and the command line of its measurements."""

from pathlib import Path

from harness import measurement, packed
from harness.measurement import read, write
from harness.record import trainings

__all__ = ["RESULTS", "measurement_parser", "places", "read", "write"]

RESULTS = Path(__file__).resolve().parent.parent / "results" / "van_der_pol"
MEASURED = ("reconstruction", "gradient_error", "picture", "depth")


def measurement_parser(description, name):
    """The command line of a measurement, by the name of its folder."""
    return measurement.measurement_parser(description, RESULTS / name)


def places(folder):
    """Where what has ended lies, by name: each measurement in a folder of its name, training runs at any depth."""
    found = {name: folder / name for name in MEASURED if packed.read(folder / name, "summary.json") is not None}
    trained = any(run["summary"] for _, run in trainings(folder, RESULTS.name))
    return found | ({"train": folder} if trained else {})
