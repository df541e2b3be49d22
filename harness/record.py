"""The run folder: run.json, metrics.jsonl, TensorBoard events and summary.json, the raw record behind every number."""

import json
import os
import shlex
import time
from pathlib import Path, PurePath

import torch
from tensorboardX import SummaryWriter

from harness import environment, packed
from harness.cli import UsageError
from harness.experiment import BEST, LAST
from harness.files import atomic_write, check_folder
from harness.resources import Stopwatch, peak_memory_bytes

RUN_FILES = (
    *("run.json", "metrics.jsonl", "summary.json", "events.out.tfevents.*"),
    *(LAST, BEST, "tests.jsonl"),  # its checkpoints, and what these were tested with
)
TIME_DIGITS = 4  # of seconds in the rows: further ones are noise, and took a twentieth of what git keeps of the results


class Run:
    """Records one run in its folder; made by :meth:`start` or :meth:`resume`.

    Wall-clock values appear in the metrics only under ``seconds``, so that without it the rows of an interrupted and
    resumed run can be compared bit for bit with those of an uninterrupted one.
    """

    def __init__(self, folder, rows=()):
        self.folder = folder
        self._stopwatch = Stopwatch(rows[-1]["seconds"] if rows else 0.0)
        self._cpu_start = time.process_time()
        self._curves = SummaryWriter(str(folder), flush_secs=10)
        for row in rows:
            self._draw(row)

    @classmethod
    def start(cls, folder, arguments, *, kind=None, settings=None, overwrite=False, files=()):
        """Begin a new record with run.json: arguments, seed, settings and environment, before anything else is done.

        ``kind`` is the experiment whose training this is, see `kind_of`. ``settings`` are what the arguments come to,
        with everything filled in.

        ``overwrite`` first removes the record from the folder, its curves and checkpoints, their tests, and ``files``,
        the names of what else its scripts write there.

        Raises:
            UsageError: the folder holds a record and ``overwrite`` is off, or it cannot be written to.
        """
        folder = Path(folder)
        check_folder(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a name that is too long, a full disk
            raise UsageError(f"run folder {folder} cannot be made: {error.strerror}") from error
        if (folder / "run.json").exists():
            if not overwrite:
                raise UsageError(f"{folder} already holds a run: resume it, overwrite it, or choose another folder")
            for pattern in (*RUN_FILES, *files):
                _remove(folder, pattern)
        record = {
            **({} if kind is None else {"kind": kind}),
            "arguments": _recorded(arguments),
            "seed": arguments.get("seed"),
            **({} if settings is None else {"settings": settings}),
            "environment": environment.describe(),
            "resumed": [],
        }
        _write_json(folder / "run.json", record)
        return cls(folder)

    @classmethod
    def resume(cls, folder, arguments, *, step, settings=None):
        """Go on with a record from a checkpoint taken at ``step``: later metrics and curves are cut off.

        run.json keeps its first content, but for the settings, which may ask for more epochs now, and lists this part,
        with its arguments and environment, under ``resumed``.

        Raises:
            UsageError: the folder holds no record, or it is damaged or does not reach this step; it stays as it was.
        """
        folder = Path(folder)
        record = read_run(folder)
        rows = [row for row in read_metrics(folder) if row["step"] <= step]
        if step > 0 and (not rows or rows[-1]["step"] != step):
            raise UsageError(
                f"{folder / 'metrics.jsonl'} lacks the row of step {step}, where the checkpoint was taken: a run goes "
                "on with its whole record only; start it anew with --overwrite"
            )
        del record["summary"]
        part = {"step": step, "arguments": _recorded(arguments), "environment": environment.describe()}
        record["resumed"].append(part)
        if settings is not None:
            record["settings"] = settings
        _write_json(folder / "run.json", record)
        _remove(folder, "summary.json")
        with atomic_write(folder / "metrics.jsonl") as file:
            file.writelines(_line(row).encode() for row in rows)
        _remove(folder, "events.out.tfevents.*")  # drawn again from the rows: a kill loses what the writer had queued
        return cls(folder, rows)

    def log(self, step, scalars=None, **extra):
        """Add a row of metrics: ``scalars`` maps tags of the form Group/Name, which become curves, to numbers.

        ``extra`` is anything else of the row that JSON can hold.
        """
        scalars = {tag: float(value) for tag, value in (scalars or {}).items()}
        if bad := [tag for tag in scalars if "/" not in tag]:
            raise ValueError(f"tags have the form Group/Name, such as Train/Loss; got {bad}")
        row = {"step": step, **scalars, **extra, "seconds": round(self._stopwatch.seconds, TIME_DIGITS)}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(_line(row))
        self._draw(row)

    def _draw(self, row):
        """Put the row's scalars on the curves, dated so that TensorBoard's clock shows the time spent on the run."""
        date = time.time() - self._stopwatch.seconds + row["seconds"]
        for tag, value in row.items():
            if "/" in tag:
                self._curves.add_scalar(tag, value, row["step"], walltime=date)

    def sync(self):
        """Have all rows on disk, as a checkpoint that is saved next will be: a run goes on with both."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            os.fsync(file.fileno())

    def finish(self, summary):
        """Write summary.json: ``summary``, wall time of all parts, processor time and peak memory of the last one.

        On a shared machine only the processor time, which counts all threads of this process, can be compared.
        """
        memory = {"cpu": peak_memory_bytes("cpu")}
        if torch.cuda.is_initialized():
            memory["cuda"] = peak_memory_bytes("cuda")
        _write_json(
            self.folder / "summary.json",
            {
                **summary,
                "seconds": self._stopwatch.seconds,
                "cpu_seconds": time.process_time() - self._cpu_start,
                "peak_memory_bytes": memory,
            },
        )
        self.close()

    def close(self):
        """Close the curves of a run that stops early; :meth:`finish` does it itself."""
        self._curves.close()


class NoRun:
    """Stands in for the `Run` of a folder that another process writes to."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def log(self, step, scalars=None, **extra):
        pass

    def sync(self):
        pass

    def finish(self, summary):
        pass

    def close(self):
        pass


def read_run(folder):
    """run.json as a dict, with summary.json under ``summary`` (None while unfinished). UsageError if there is none, or
    it is damaged."""
    run, summary = (packed.read(folder, name) for name in ("run.json", "summary.json"))
    if run is None:
        raise UsageError(f"{folder} holds no record of a run (run.json)")
    run = parsed(run, Path(folder, "run.json"), ("arguments", "environment"))
    return {**run, "summary": None if summary is None else parsed(summary, Path(folder, "summary.json"))}


def parsed(text, where, names=()):
    """What a JSON text holds, if that is an object with these names; else UsageError that says ``where`` it is from."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where} is damaged: {error}") from error
    if not isinstance(found, dict) or (missing := set(names) - found.keys()):
        lacks = f"; it lacks {', '.join(sorted(missing))}" if isinstance(found, dict) else ""
        raise UsageError(f"{where} is not what a run records{lacks}")
    return found


def kind_of(run):
    """The experiment whose training a run of `read_run` is of, such as "three_body"; of other records the script that
    made them, such as "three_body/first_gradient". None where the record does not say.
    """
    if "kind" in run:
        return run["kind"]
    _, script, *_ = *shlex.split(run["environment"].get("command") or ""), "", ""  # all that earlier versions recorded
    folder, _, name = script.rpartition("/")
    if not folder:
        return None
    trains = name == "train.py" or "checkpoint_every" in run["arguments"]
    return folder if trains else f"{folder}/{PurePath(name).stem}"


def trainings(root, kind):
    """Folder and record of each training of the experiment ``kind`` at any depth below ``root``, in order."""
    for folder in packed.folders(root, "run.json"):
        run = read_run(folder)
        if kind_of(run) == kind:
            yield folder, _with_settings(folder, run)


def read_training(folder, kind):
    """As `read_run`. UsageError also for a record of anything but a training of the experiment ``kind``."""
    run = read_run(folder)
    if (found := kind_of(run)) != kind:
        raise UsageError(f"{folder} holds no training of {kind}" + (f", but a record of {found}" if found else ""))
    return _with_settings(folder, run)


def _with_settings(folder, run):
    if "settings" not in run:
        convert = "scripts/convert_records.py converts records of earlier versions"
        raise UsageError(f"{Path(folder, 'run.json')} lacks settings; {convert}")
    return run


def working_seconds(run):
    """Seconds that a run of `read_run` which has ended took: of the processor if recorded for the whole of it, which a
    run of one thread needs whatever else goes on; else of the clock."""
    summary = run["summary"]
    whole = not run.get("resumed") and summary.get("cpu_seconds")
    return whole or summary["seconds"]


def read_metrics(folder):
    """The rows of metrics.jsonl as dicts, in order; a last line that a kill cut short is left out. UsageError if any
    other is damaged."""
    lines = (packed.read(folder, "metrics.jsonl") or b"").splitlines(keepends=True)
    where = Path(folder, "metrics.jsonl")
    return [parsed(line, f"{where}, line {number}", ("step",))
            for number, line in enumerate(lines, 1) if line.endswith(b"\n")]  # fmt: skip


def read_epochs(folder):
    """The rows of metrics that are of an epoch: without that of an error that ended the run."""
    return [row for row in read_metrics(folder) if "error" not in row]


def _remove(folder, pattern):
    for path in folder.glob(pattern):
        path.unlink()


def _line(row):
    return json.dumps(row) + "\n"


def _recorded(arguments):
    return {name: environment.portable(value) for name, value in arguments.items()}


def _write_json(path, content):
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())
