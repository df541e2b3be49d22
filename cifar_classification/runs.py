"""The recorded runs, as the report and its figures see them.

The runs of the tables lie in folders SCALE/DATASET_LABEL_seedN (scripts/run_cifar_tables.sh names them), SCALE being
the profile; other folders hold single runs.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

from cifar_classification import options
from harness.environment import hardware
from harness.record import read_metrics, read_run

NAME = re.compile(r"(?P<dataset>cifar100?)_(?P<label>.+)_seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Recorded:
    """A run: its place in the tables (None for a single run), its record, and a row of metrics for each epoch.

    ``failure`` is the error that ended it, if one did; without that and without a summary it is under way.
    """

    folder: Path
    place: tuple | None
    chosen: SimpleNamespace
    environment: dict
    summary: dict | None
    rows: list
    failure: str | None

    @property
    def title(self):
        return options.title(self.chosen)

    @property
    def hardware(self):
        return hardware(self.environment)

    def last(self, name):
        """A value of the last epoch; None where it was not recorded."""
        return self.rows[-1].get(name)

    def average(self, name):
        """A value's mean over the epochs; None where it was not recorded."""
        return mean(row[name] for row in self.rows) if name in self.rows[0] else None

    @property
    def peak_memory(self):
        return max(row["peak_memory_bytes"] for row in self.rows)

    @property
    def epoch_seconds(self):
        """Wall time per epoch, its test included."""
        return self.rows[-1]["seconds"] / len(self.rows)


def collect(root):
    """All runs below ``root``, those of the tables by scale, data set, label and seed."""
    return [_recorded(Path(root), path.parent) for path in sorted(Path(root).glob("**/run.json"))]


def _recorded(root, folder):
    record, rows = read_run(folder), read_metrics(folder)
    scale, name = folder.parent.relative_to(root).as_posix(), NAME.fullmatch(folder.name)
    errors = [row["error"] for row in rows if "error" in row]
    return Recorded(
        folder=folder,
        place=(scale, name["dataset"], name["label"], int(name["seed"])) if name else None,
        chosen=SimpleNamespace(**record["arguments"]),
        environment=record["environment"],
        summary=record["summary"],
        rows=[row for row in rows if "Train/Loss" in row],
        failure=errors[-1] if errors and not record["summary"] else None,
    )


def of_place(runs, scale, dataset, label):
    """The finished runs of one row of a table, a run a seed, in their order."""
    found = [run for run in runs if run.summary and run.place and run.place[:3] == (scale, dataset, label)]
    return sorted(found, key=lambda run: run.place[3])


def on_gpus(runs):
    return all(run.environment["gpus"] for run in runs)


def spread(values, form, unit=""):
    """Mean and standard deviation as text; blank without values."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    deviation = f" ± {stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{deviation}{unit}"
