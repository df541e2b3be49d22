"""Where this experiment keeps its records, and the command line of its measurements."""

from pathlib import Path

from harness import measurement, packed
from harness.measurement import read, write

__all__ = ["RESULTS", "measurement_parser", "read", "there", "write"]

RESULTS = Path(__file__).resolve().parent.parent / "results" / "van_der_pol"


def measurement_parser(description, name):
    """The command line of a measurement, by the name of its folder."""
    return measurement.measurement_parser(description, RESULTS / name)


def there(folder):
    """Whether a folder holds the record of a measurement, or of runs, that has ended."""
    return packed.read(folder, "summary.json") is not None or bool(packed.folders(folder, "summary.json"))
