import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import UsageError
from harness.record import Run, kind_of, read_metrics, read_run, read_training, trainings, working_seconds


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
    written, own = ("checkpoint.pt", "best.pt", "tests.jsonl", "end.csv"), ("notes.txt", "somebodys.pt", "other.csv")
    for name in (*written, *own):
        (tmp_path / name).touch()
    run = Run.start(tmp_path, {"lr": 0.2}, overwrite=True, files=("end.csv",))
    log_steps(run, [5])
    run.close()
    assert read_run(tmp_path)["arguments"] == {"lr": 0.2}
    assert read_run(tmp_path)["summary"] is None
    assert [row["step"] for row in read_metrics(tmp_path)] == [5]
    assert [step for step, _ in curve(tmp_path, "Train/Loss")] == [5]
    assert not any((tmp_path / name).exists() for name in written)
    assert all((tmp_path / name).exists() for name in own)


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
        with pytest.raises(UsageError, match="file is not a folder"):
            Run.start(folder, {})
    with pytest.raises(UsageError, match="cannot be made: File name too long"):
        Run.start(tmp_path / ("a" * 300), {})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", '{"arguments": {"se', "run.json is damaged: "),
        ("run.json", "", "run.json is damaged: "),
        ("run.json", "\xff", "run.json is damaged: "),
        ("run.json", "[1, 2]", "run.json is not what a run records"),
        ("run.json", "{}", "run.json is not what a run records; it lacks arguments, environment"),
        ("summary.json", '{"status"', "summary.json is damaged: "),
        ("summary.json", "", "summary.json is damaged: "),
        ("summary.json", "3", "summary.json is not what a run records"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, name, content, said):
    Run.start(tmp_path, {}).finish({})
    (tmp_path / name).write_bytes(content.encode("latin1"))
    for reads in (lambda: read_run(tmp_path), lambda: Run.resume(tmp_path, {}, step=0)):
        with pytest.raises(UsageError, match=f"^{tmp_path}/{re.escape(said)}") as caught:
            reads()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, " lacks the row of step 2"),
        ('{"step": 1, "seconds": 1}\n{"step": 2, "sec', " lacks the row of step 2"),
        ('{"step": 1, "sec\n{"step": 2, "seconds": 1}\n', ", line 1 is damaged: "),
        ('{"step": 1, "seconds": 1}\n[]\n', ", line 2 is not what a run records"),
        ('{"step": 1, "seconds": 1}\n{}\n', ", line 2 is not what a run records; it lacks step"),
    ],
)
def test_a_run_goes_on_with_its_whole_record_only(tmp_path, lines, said):
    Run.start(tmp_path, {}).finish({})
    if lines:
        (tmp_path / "metrics.jsonl").write_text(lines)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=f"^{tmp_path}/metrics.jsonl{said}"):
        Run.resume(tmp_path, {}, step=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_records_tell_what_they_are_of(tmp_path):
    """New ones say so themselves; those of earlier versions by the command that made them."""
    by = {"kind": "three_body"}, {}
    for name, kind in zip("ab", by):
        Run.start(tmp_path / name, {}, settings={}, **kind).close()
    assert kind_of(read_run(tmp_path / "a")) == "three_body"
    assert [folder for folder, _ in trainings(tmp_path, "three_body")] == [tmp_path / "a"]
    earlier = {
        ("three_body/valley.py", True): "three_body",
        ("neural_ode_2018/cnf/train.py", True): "neural_ode_2018/cnf",
        ("three_body/first_gradient.py", False): "three_body/first_gradient",
        ("train.py", True): None,
        ("", False): None,
    }
    for (script, trains), kind in earlier.items():
        environment = {"command": f"python {script} --seed 1"} if script else {}
        assert kind_of({"environment": environment, "arguments": {"checkpoint_every": 1} if trains else {}}) == kind
    with pytest.raises(UsageError, match="a holds no training of van_der_pol, but a record of three_body$"):
        read_training(tmp_path / "a", "van_der_pol")
    Run.start(tmp_path / "a", {}, kind="three_body", overwrite=True).close()
    for reads in (lambda: read_training(tmp_path / "a", "three_body"), lambda: [*trainings(tmp_path, "three_body")]):
        with pytest.raises(UsageError, match="a/run.json lacks settings; scripts/convert_records.py converts"):
            reads()


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
