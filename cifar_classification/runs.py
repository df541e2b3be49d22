"""The recorded runs, as the report and its figures see them.

The runs of the tables lie in folders called DATASET_LABEL_seedN (launches.py names them), of whatever folder; their
scale is the profile. Other folders hold single runs.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

from cifar_classification.experiment import Cifar
from harness import packed
from harness.environment import hardware
from harness.record import read_epochs, trainings, working_seconds
from harness.training import FINISHED

TIMING, GRADIENT_ERROR = "timing", "gradient_error"  # folders of what these scripts measure, which is no training
NAME = re.compile(r"(?P<dataset>cifar100?)_(?P<label>.+)_seed(?P<seed>\d+)")


@dataclass(frozen=True)
class Recorded:
    """A run: its place in the tables (None for a single run), its record, and a row of metrics for each epoch.

    ``summary`` is that of a run that finished; ``failure`` is what ended it, if something did; with neither it is under
    way. ``resumed`` tells the parts that went on after an interruption.
    """

    folder: Path
    place: tuple | None
    chosen: SimpleNamespace
    environment: dict
    summary: dict | None
    rows: list
    failure: str | None
    resumed: list

    @property
    def title(self):
        return Cifar().title(vars(self.chosen))

    @property
    def hardware(self):
        return hardware(self.environment)

    def record(self, root):
        """Where its record lies, as seen from the folder of the results."""
        return packed.source(self.folder).relative_to(root).as_posix()

    def average(self, name):
        """A value's mean over the epochs; None where it was not recorded."""
        return mean(row[name] for row in self.rows) if name in self.rows[0] else None

    @property
    def seconds(self):
        """What the run took, of the processor if recorded: `working_seconds`."""
        return working_seconds({"summary": self.summary, "resumed": self.resumed})

    @property
    def peak_memory(self):
        return max(row["peak_memory_bytes"] for row in self.rows)

    @property
    def epoch_seconds(self):
        """Wall time per epoch, its test included."""
        return self.rows[-1]["seconds"] / len(self.rows)


def collect(root):
    """All runs at any depth below ``root``, those of the tables by scale, data set, label and seed."""
    return [_recorded(folder, record) for folder, record in trainings(root, Cifar.name)]


def _recorded(folder, record):
    name, settings, summary = NAME.fullmatch(folder.name), record["settings"], record["summary"]
    finished = summary is not None and summary["status"] == FINISHED
    return Recorded(
        folder=folder,
        place=(settings["profile"], name["dataset"], name["label"], int(name["seed"])) if name else None,
        chosen=SimpleNamespace(**settings),
        environment=record["environment"],
        summary=summary if finished else None,
        rows=read_epochs(folder),
        failure=summary["status"] if summary and not finished else None,
        resumed=record.get("resumed", []),
    )


def of_place(runs, scale, dataset, label):
    """The finished runs of one row of a table, a run a seed, in their order."""
    found = [run for run in runs if run.summary and run.place and run.place[:3] == (scale, dataset, label)]
    return sorted(found, key=lambda run: run.place[3])


def on_gpus(runs):
    return all(run.environment["gpus"] for run in runs)
