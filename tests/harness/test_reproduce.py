"""The stages of the whole reproduction, with a stand-in for what they run."""

import json

import pytest

from harness import launch, reproduce
from harness.environment import ROOT
from harness.launch import Launch


class Stand:
    """Notes the commands; ends with the exit codes and the output that it is told."""

    def __init__(self):
        self.commands, self.codes, self.output = [], {}, {}

    def __call__(self, words, log):
        self.commands.append(words)
        name = next((name for name in self.codes | self.output if any(name in word for word in words)), None)
        log.write_text(self.output.get(name, "done\n"))
        return self.codes.get(name, 0)


@pytest.fixture
def stand(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "missing", lambda name, profile: None)
    return Stand()


def names(stand):
    return [words[2] if words[0] == "-m" else words[0] for words in stand.commands]


def test_every_stage_is_a_list_that_exists():
    for stages in reproduce.STAGES.values():
        for name, (which, profile, _) in stages.items():
            launches = launch.importlib.import_module(f"{name.replace('/', '.')}.launches").LAUNCHES
            assert launches[which].lists[profile]()


def test_no_experiment_is_left_out():
    paths = [*ROOT.glob("*/launches.py"), *ROOT.glob("*/*/launches.py")]
    found = {path.parent.relative_to(ROOT).as_posix() for path in paths}
    assert all(found == set(stages) for stages in reproduce.STAGES.values())


def test_stages_that_passed_are_skipped(stand, capsys):
    assert reproduce.main([], stand) == 0
    assert names(stand) == [*reproduce.STAGES["quick"], "scripts/render_docs.py"]
    stand.commands.clear()
    assert reproduce.main([], stand) == 0
    assert names(stand) == ["scripts/render_docs.py"]
    assert "three_body: passed before" in capsys.readouterr().out
    stand.commands.clear()
    assert reproduce.main(["--only", "three_body", "--again"], stand) == 0
    assert stand.commands == [["-m", "harness.launch", "three_body", "--profile", "quick"]]
    stand.commands.clear()
    reproduce.main(["--only", "cifar_classification", "--profile", "paper"], stand)
    assert names(stand) == ["cifar_classification:tables"]


def test_a_failed_stage_is_told_and_run_again(stand, capsys):
    stand.codes["three_body"], stand.output["three_body"] = 1, "a line\nValueError: no\n"
    assert reproduce.main([], stand) == 1
    assert "failed" in (out := capsys.readouterr().out) and "ValueError: no (exit code 1, runs/reproduce" in out
    assert len(stand.commands) == len(reproduce.STAGES["quick"]) + 1  # the others run nevertheless
    stand.commands.clear()
    del stand.codes["three_body"]
    assert reproduce.main([], stand) == 0 and names(stand) == ["three_body", "scripts/render_docs.py"]


def test_a_run_that_ended_early_with_its_record_is_a_result(stand, tmp_path, capsys):
    stand.codes["van_der_pol"], stand.output["van_der_pol"] = 1, "ended early, see their records: results/a\n"
    assert reproduce.main(["--only", "van_der_pol"], stand) == 1  # it left no record
    (tmp_path / "results/a").mkdir(parents=True)
    (tmp_path / "results/a/summary.json").write_text(json.dumps({"status": "failed in epoch 3"}))
    assert reproduce.main(["--only", "van_der_pol"], stand) == 0
    assert "1 runs ended early, which is recorded: results/a" in capsys.readouterr().out


def test_an_interruption_ends_the_list(stand):
    stand.codes["three_body"] = 130
    assert reproduce.main([], stand) == 130
    assert names(stand) == ["van_der_pol", "three_body"]


def test_what_a_machine_lacks_is_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    stand = Stand()
    launches = {"": Launch("", needs=lambda: "no simulator"), "tables": Launch("")}
    module = type("Module", (), {"LAUNCHES": launches})
    monkeypatch.setattr(reproduce.importlib, "import_module", lambda name: module)
    assert reproduce.main(["--only", "latent_ode_mujoco"], stand) == 0 and stand.commands == []
    assert "latent_ode_mujoco: skipped: no simulator" in capsys.readouterr().out


def test_missing_data_are_one_line(tmp_path, monkeypatch):
    from cifar_classification import data
    from latent_ode_mujoco import data as hopper

    monkeypatch.setenv("CIFAR_DATA", str(tmp_path))
    assert "CIFAR-10 is not in" in data.missing() and "\n" not in data.missing()
    monkeypatch.setenv("HOPPER_DATA", str(tmp_path))
    monkeypatch.setattr(hopper, "_versions", lambda: {"mujoco": None, "dm-control": None})
    assert "pip install" in hopper.missing() and "\n" not in hopper.missing()
    monkeypatch.setattr(hopper, "_versions", lambda: {"mujoco": "3", "dm-control": "1"})
    assert hopper.missing() is None
