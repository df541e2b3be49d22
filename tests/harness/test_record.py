import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import UsageError
from harness.record import Run, read_metrics, read_run, working_seconds


def log_steps(run, steps):
    for step in steps:
        run.log(step, {"Train/Loss": 1 / (step + 3)}, epoch=step // 2)


def without_clock(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def curve(folder, tag):
    """The points that TensorBoard shows for ``tag``, as (step, value)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_start_writes_the_arguments_first(tmp_path):
    Run.start(tmp_path / "run", {"seed": 7, "lr": 0.1, "data": Path("data")}).close()
    record = read_run(tmp_path / "run")
    assert record["arguments"] == {"seed": 7, "lr": 0.1, "data": "data"}
    assert record["seed"] == 7
    assert record["environment"]["packages"]["torch"]
    assert record["summary"] is None
    assert read_metrics(tmp_path / "run") == []


def test_log_and_finish(tmp_path):
    run = Run.start(tmp_path, {})
    run.log(1, {"Test/Accuracy": 0.5}, nfe=[4, 4], note="x")
    run.finish({"accuracy": 0.5})
    (row,) = read_metrics(tmp_path)
    assert row.pop("seconds") > 0
    assert row == {"step": 1, "Test/Accuracy": 0.5, "nfe": [4, 4], "note": "x"}
    summary = read_run(tmp_path)["summary"]
    assert summary["accuracy"] == 0.5
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"]["cpu"] > 2**20
    assert curve(tmp_path, "Test/Accuracy") == [(1, 0.5)]


def test_a_record_is_not_overwritten_by_accident(tmp_path):
    Run.start(tmp_path, {"lr": 0.1}).finish({"accuracy": 0.5})
    with pytest.raises(UsageError, match="already holds a run"):
        Run.start(tmp_path, {"lr": 0.2})
    assert read_run(tmp_path)["summary"]["accuracy"] == 0.5


def test_overwriting_leaves_nothing_of_the_former_run(tmp_path):
    run = Run.start(tmp_path, {"lr": 0.1})
    log_steps(run, range(3))
    run.finish({})
    for name in ("checkpoint.pt", "tests.jsonl", "predictions.npz", "notes.txt"):
        (tmp_path / name).touch()
    run = Run.start(tmp_path, {"lr": 0.2}, overwrite=True)
    log_steps(run, [5])
    run.close()
    assert read_run(tmp_path)["arguments"] == {"lr": 0.2}
    assert read_run(tmp_path)["summary"] is None
    assert [row["step"] for row in read_metrics(tmp_path)] == [5]
    assert [step for step, _ in curve(tmp_path, "Train/Loss")] == [5]
    assert not any((tmp_path / name).exists() for name in ("checkpoint.pt", "tests.jsonl", "predictions.npz"))
    assert (tmp_path / "notes.txt").exists()


def test_start_leaves_the_files_of_others_alone(tmp_path):
    (tmp_path / "somebodys.pt").touch()
    Run.start(tmp_path, {}, overwrite=True).close()
    assert (tmp_path / "somebodys.pt").exists()


@pytest.mark.parametrize("tag", ["Loss", "step", "seconds"])
def test_a_tag_without_group_is_refused(tmp_path, tag):
    run = Run.start(tmp_path, {})
    with pytest.raises(ValueError, match="Group/Name"):
        run.log(1, {tag: 0.5})
    assert read_metrics(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="cannot be made"):
            Run.start(folder, {})


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    whole = Run.start(tmp_path / "whole", {})
    log_steps(whole, range(10))
    whole.finish({})

    killed = Run.start(tmp_path / "killed", {"part": 0})
    log_steps(killed, range(7))
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "Train/Lo')
    resumed = Run.resume(tmp_path / "killed", {"part": 1}, step=4)  # the checkpoint was taken after step 4
    log_steps(resumed, range(5, 10))
    resumed.finish({})

    assert without_clock(read_metrics(tmp_path / "killed")) == without_clock(read_metrics(tmp_path / "whole"))
    assert curve(tmp_path / "killed", "Train/Loss") == curve(tmp_path / "whole", "Train/Loss")
    record = read_run(tmp_path / "killed")
    assert record["arguments"] == {"part": 0}
    assert [(part["step"], part["arguments"]) for part in record["resumed"]] == [(4, {"part": 1})]


def test_wall_time_goes_on_from_the_last_row_kept(tmp_path):
    Run.start(tmp_path, {}).finish({})
    rows = [{"step": 1, "seconds": 1000.0}, {"step": 2, "seconds": 2000.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Run.resume(tmp_path, {}, step=1).finish({})
    assert 1000 < read_run(tmp_path)["summary"]["seconds"] < 1100


def test_resume_reopens_a_finished_run(tmp_path):
    Run.start(tmp_path, {}).finish({})
    Run.resume(tmp_path, {}, step=0).close()
    assert read_run(tmp_path)["summary"] is None


def test_resume_without_a_record(tmp_path):
    with pytest.raises(UsageError, match="holds no record"):
        Run.resume(tmp_path, {}, step=3)
    assert list(tmp_path.iterdir()) == []


def test_sigkill_loses_nothing_that_was_logged(tmp_path):
    script = (
        "import itertools, sys\n"
        "from harness.record import Run\n"
        "run = Run.start(sys.argv[1], {})\n"
        "for step in itertools.count():\n"
        "    run.log(step, {'Train/Loss': step})\n"
        "    print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            last = int(line)
            if last == 20:
                process.send_signal(signal.SIGKILL)
    Run.resume(tmp_path, {}, step=last).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(last + 1))
    assert curve(tmp_path, "Train/Loss") == [(step, step) for step in range(last + 1)]


def test_paths_inside_the_repository_are_recorded_from_its_root(tmp_path):
    from harness.environment import ROOT

    Run.start(tmp_path / "run", {"out": str(ROOT / "results" / "x"), "data": "/elsewhere"}).close()
    assert read_run(tmp_path / "run")["arguments"] == {"out": "results/x", "data": "/elsewhere"}


def test_a_run_took_its_processor_time_if_that_is_known_for_the_whole_of_it():
    known = {"seconds": 9.0, "cpu_seconds": 2.0}
    assert working_seconds({"summary": known, "resumed": []}) == 2.0
    assert working_seconds({"summary": known, "resumed": [{}]}) == 9.0  # only its last part recorded it
    assert working_seconds({"summary": {"seconds": 9.0}}) == 9.0
