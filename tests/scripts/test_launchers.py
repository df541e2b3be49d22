"""The lists of runs and what starts them, with a stand-in for python that only notes what it is to do."""

import subprocess
from pathlib import Path

import pytest

from cifar_classification import report, robustness
from cifar_classification.experiment import Cifar
from cifar_classification.runs import NAME
from harness import launch
from harness.cli import UsageError
from harness.environment import ROOT
from latent_ode_mujoco import report as latent_report
from latent_ode_mujoco.experiment import LatentODE
from neural_ode_2018.cnf.experiment import CNF
from neural_ode_2018.mnist.experiment import MNIST
from neural_ode_2018.spirals.experiment import SPIRALS
from three_body import report as three_body_report
from three_body.experiment import ThreeBody
from van_der_pol.experiment import VanDerPol

LAUNCHERS = {
    "run_cifar.sh": "cifar_classification",
    "run_cifar_multigpu.sh": "cifar_classification:several",
    "run_cifar_tables.sh": "cifar_classification:tables",
    "run_latent_ode.sh": "latent_ode_mujoco",
    "run_three_body.sh": "three_body",
    "run_van_der_pol.sh": "van_der_pol",
}


class Stand:
    """Stands in for python: notes the words; a training leaves a summary and weights, a test its record."""

    def __init__(self):
        self.commands, self.codes = [], {}

    def __call__(self, *words):
        self.commands.append(list(words))
        folder = Path(words[words.index("--out") + 1]) if "--out" in words else None
        if folder and words[0].endswith("train.py"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("summary.json", "checkpoint.pt"):
                (folder / name).touch()
        if words[0].endswith("test.py"):
            kept = "predictions.npz" if "--predictions" in words else "tests.jsonl"
            (Path(words[2]) / kept).touch()
        return self.codes.get(words[0], 0)

    def scripts(self, name):
        return [words for words in self.commands if words[0].endswith(name)]


@pytest.fixture
def stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # run folders are given from the root
    stand = Stand()
    monkeypatch.setattr(launch, "python", stand)
    monkeypatch.setattr(launch, "output", lambda *words: "results/named")
    return stand


def jobs(name, profile):
    experiment, _, which = name.partition(":")
    return launch.importlib.import_module(f"{experiment.replace('/', '.')}.launches").LAUNCHES[which].lists[profile]()


@pytest.mark.parametrize("scale", ["gpu", "table", "paper"])
def test_every_cifar_run_is_one_that_the_report_knows(scale):
    listed = jobs("cifar_classification:tables", scale)
    assert len({job.folder for job in listed}) == len(listed)
    known = {*report.LIKE_FOR_LIKE, *report.OWN[scale], *report.OTHER_SCALE, "aca-amp", "resnet", "euler"}
    labels = set()
    for job in listed:
        where, name = job.folder.split("/")
        assert where in (scale, *robustness.SCALES[scale])
        place = NAME.fullmatch(name)
        labels.add(place["label"])
        settings = Cifar().new_settings(*job.flags)
        assert (settings["dataset"], settings["seed"]) == (place["dataset"], int(place["seed"]))
        assert settings["profile"] == where
    assert labels == (known if scale != "gpu" else {"aca", "naive", "adjoint", "resnet", "resnet-scale"})


@pytest.mark.parametrize(
    ("name", "profile", "experiment", "labels"),
    [
        ("three_body", "quick", ThreeBody(), three_body_report.LABELS),
        ("three_body", "paper", ThreeBody(), (*three_body_report.LABELS, "ode-aca-own-time")),
        ("latent_ode_mujoco", "quick", LatentODE(), latent_report.LABELS),
        ("latent_ode_mujoco", "paper", LatentODE(), latent_report.LABELS),
        ("van_der_pol", "train", VanDerPol(), None),
        ("neural_ode_2018/cnf", "quick", CNF, None),
        ("neural_ode_2018/cnf", "paper", CNF, None),
        ("neural_ode_2018/mnist", "quick", MNIST, None),
        ("neural_ode_2018/mnist", "paper", MNIST, None),
        ("neural_ode_2018/spirals", "quick", SPIRALS, None),
        ("neural_ode_2018/spirals", "paper", SPIRALS, None),
    ],
)
def test_runs_lie_where_their_settings_put_them(name, profile, experiment, labels, monkeypatch):
    # whether a system can be solved is looked at for all settings, and takes a second each
    monkeypatch.setattr("three_body.experiment.simulate", lambda system, times: None)
    listed = [job for job in jobs(name, profile) if job.script is None]
    for job in listed[:: max(len(listed) // 8, 1)]:
        assert experiment.place(experiment.new_settings(*job.flags)) == job.folder
    if labels:
        assert {job.folder.split("/")[2] for job in listed} == set(labels)


def test_what_is_done_is_not_done_again(stand):
    command = ["cifar_classification:tables", "--shard", "1/17", "--threads", "1"]
    assert launch.main(command) == 0
    expected = [f"results/cifar_classification/{job.folder}" for job in jobs(command[0], "table")[::17]]
    assert [words[words.index("--out") + 1] for words in stand.scripts("train.py")] == expected
    assert all("--threads" in words for words in stand.scripts("train.py") + stand.scripts("test.py"))
    assert any("--predictions" in words for words in stand.scripts("test.py"))
    assert stand.commands[-1] == ["cifar_classification/report.py"]
    Path(expected[1], "summary.json").unlink()
    stand.commands.clear()
    assert launch.main([*command, "--no-report"]) == 0
    assert [words[words.index("--out") + 1] for words in stand.scripts("train.py")] == [expected[1]]
    assert not any("--predictions" in words and expected[0] in words for words in stand.commands)


def test_shards_are_the_whole_list(capsys):
    def listed(*flags):
        launch.main(["three_body", "--paper", "--list", *flags])
        return capsys.readouterr().out.splitlines()

    parts = [line for k in (1, 2, 3) for line in listed("--shard", f"{k}/3")]
    assert sorted(parts) == sorted(listed()) and len(set(parts)) == 283


def test_robust_models_are_tested_with_all_solvers(stand):
    listed = [job.folder for job in jobs("cifar_classification:tables", "table")]
    shard = f"{listed.index('cpu/cifar10_euler_seed0') + 1}/{len(listed)}"
    launch.main(["cifar_classification:tables", "--shard", shard, "--no-report"])
    train, test = stand.commands
    assert "--method Euler" in " ".join(train)
    assert test[2] == "results/cifar_classification/cpu/cifar10_euler_seed0" and "--all-solvers" in test


def test_a_single_run_is_tested_and_drawn_where_training_put_it(stand):
    Path("results/named").mkdir(parents=True)
    Path("results/named/checkpoint.pt").touch()
    assert launch.main(["cifar_classification", "--paper", "--data", "D", "--epochs=1"]) == 0
    train, *tests, plot = stand.commands
    assert train == ["cifar_classification/train.py", "--profile", "paper", "--data", "D", "--epochs=1",
                     "--resume", "auto"]  # fmt: skip
    assert [words[1:3] for words in tests] == [["--resume", "results/named"]] * 2
    assert tests[0][3:] == ["--method", "RK23", "--rtol", "1e-3", "--atol", "1e-3", "--data", "D"]
    assert plot == ["cifar_classification/plot.py", "results/named"]


def test_a_killed_process_is_no_failed_run():
    assert launch.python("-c", "import os; os.kill(os.getpid(), 9)") == 137


def test_where_to_work_is_the_command_lines(stand):
    launch.main(["three_body", "--device", "cuda:0", "--shard", "1/9", "--no-report"])
    assert " ".join(stand.commands[0]).count("--device") == 1
    assert "--device cuda:0 --threads 1" in " ".join(stand.commands[0])


@pytest.mark.parametrize("code", [2, 130, 137])
def test_wrong_usage_and_interruptions_end_the_list(stand, code):
    stand.codes["three_body/train.py"] = code
    assert launch.main(["three_body"]) == code
    assert len(stand.commands) == 1


def test_a_run_that_fails_is_tested_and_the_list_goes_on(stand, capsys):
    stand.codes["three_body/train.py"] = 1
    assert launch.main(["three_body", "--shard", "1/5"]) == 1
    assert [len(stand.scripts(name)) for name in ("train.py", "test.py", "report.py", "plot.py")] == [2, 2, 1, 1]
    assert "ended early, see their records: results/three_body/released/paper/ode-aca" in capsys.readouterr().err


def test_measurements_are_made_anew(stand):
    for _ in range(2):
        assert launch.main(["van_der_pol"]) == 0
    assert len(stand.scripts("depth.py")) == len(stand.scripts("plot.py")) == 2
    launch.main(["van_der_pol", "--train", "--seeds", "5"])
    assert len(stand.scripts("train.py")) == 50


def test_torchrun_gets_what_the_flags_say(stand):
    several = "cifar_classification:several"
    assert launch.main([several, "--processes", "4", "--profile", "quick"]) == 0
    look, torchrun = stand.commands
    assert look == ["cifar_classification/train.py", "--resume", "auto", "--profile", "quick", "--print-folder"]
    assert " ".join(torchrun) == (
        "-m torch.distributed.run --standalone --nproc-per-node 4 --max-restarts 3 "
        "cifar_classification/train.py --resume auto --profile quick"
    )
    launch.main([several, "--processes", "8", "--nodes", "1:4", "--endpoint", "a:1"])
    assert "--nnodes 1:4" in " ".join(stand.commands[-1])
    assert "--rdzv-backend c10d --rdzv-endpoint a:1" in " ".join(stand.commands[-1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("three_body --shard 3/2", "'3/2' is not of the form K/N"),
        ("three_body --shard 1", "'1' is not of the form K/N"),
        ("latent_ode_mujoco --jobs 0", "'0' is not a whole number of at least 1"),
        ("cifar_classification:tables --scale huge", "invalid choice: 'huge'"),
        ("cifar_classification:tables --scale", "expected one argument"),
        ("cifar_classification:several --processes none", "'none' is not a whole number"),
        ("cifar_classification:several --restarts -1", "'-1' is not a whole number of at least 0"),
        ("cifar_classification:several --nodes 2", "--nodes needs --endpoint HOST:PORT"),
        ("cifar_classification:several --nodes x --endpoint a:1", "--nodes x is neither N nor MIN:MAX"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(stand, capsys, arguments, said):
    with pytest.raises((SystemExit, UsageError)) as refusal:
        launch.main(arguments.split())
    message = capsys.readouterr().err or f"{refusal.value}\n"
    assert said in message and message.count("\n") == 1
    assert refusal.type is UsageError or refusal.value.code == 2
    assert stand.commands == []


@pytest.mark.parametrize("part", ["spirals", "cnf", "mnist"])
def test_the_launcher_of_several_experiments(part, capsys):
    script = ROOT / "scripts" / "run_neural_ode_2018.sh"
    assert part in script.read_text()
    with pytest.raises(SystemExit) as end:
        launch.main([f"neural_ode_2018/{part}", "--help"])
    assert end.value.code == 0 and "None" not in capsys.readouterr().out
    done = subprocess.run(["bash", script, "cifar"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and part in done.stderr


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_is_a_few_lines_over_the_shared_script(name, capsys):
    text = (ROOT / "scripts" / name).read_text()
    assert len(text.splitlines()) < 8 and f'launch.sh" {LAUNCHERS[name]} ' in text
    assert subprocess.run(["bash", "-n", ROOT / "scripts" / name]).returncode == 0
    with pytest.raises(SystemExit) as end:
        launch.main([LAUNCHERS[name], "--help"])
    assert end.value.code == 0 and "None" not in capsys.readouterr().out


def test_seeds_chooses_the_first_ones(capsys):
    assert launch.main(["neural_ode_2018/mnist", "--list", "--seeds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3 and all("--seed 0" in line for line in lines if "--seed" in line)
