"""The report, from records as train.py and test.py write them, with numbers made up."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cifar_classification import plot, report, robustness, single_runs
from cifar_classification.experiment import ALL_SOLVERS, Cifar
from cifar_classification.predictions import FILE, Collector, read
from cifar_classification.runs import collect, of_place
from harness.seeding import generator
from harness.testing import RECORD

MACHINE = {"gpus": [], "cpu": "some CPU", "threads": 1}


def write_run(root, name, accuracies, *flags, finished=True, error=None):
    """A run folder whose epochs have these test accuracies."""
    flags = ["--dataset", "cifar10", "--epochs", str(len(accuracies)), *flags]
    flags += ["--profile", name.rpartition("/")[0] or "table"]
    settled = Cifar().new_settings(*flags)
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"kind": Cifar.name, "settings": settled, "arguments": {}, "environment": MACHINE, "resumed": []})
    )
    nfe = {} if settled["model"] == "discrete" else {"Solver/n_f_evals": 4.0, "Solver/n_backward_f_evals": 2.0}
    rows = [
        {"step": i, "Train/Loss": 1.0, "Test/Accuracy": a, **nfe, "peak_memory_bytes": 2**30, "seconds": 60.0 * i}
        for i, a in enumerate(accuracies, 1)
    ]
    status = "finished"
    if error:
        rows.append({"step": len(rows) + 1, "error": error})
        status = f"failed in epoch {len(rows)}: {error}"
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        summary = {"status": status, "title": Cifar().title(settled), "epochs": len(accuracies)}
        summary |= {"test_accuracy": accuracies[-1], "seconds": 60.0 * len(rows)}
        (folder / "summary.json").write_text(json.dumps(summary | {"best_test_accuracy": max(accuracies)}))
    return folder


def write_tests(folder, accuracy_of):
    with open(folder / RECORD, "a") as file:
        for solver in ALL_SOLVERS:
            record = {
                "title": "a title",
                "checkpoint": "best.pt",
                "epoch": 3,
                "solver": {name: solver.get(name) for name in ("method", "rtol", "atol", "h")},
                "amp": False,
                "images": 10_000,
                "test_accuracy": accuracy_of(solver),
                "nfe_per_block": [3.0, 2.0, 2.0, 1.0],
                "seconds": 1.5,
            }
            file.write(json.dumps(record) + "\n")


def write_predictions(folder, noise, seed):
    """Images of a difficulty that all runs share, and noise of the run's own."""
    difficulty = torch.randn(400, generator=generator("cpu", "difficulty"))
    logits = difficulty + noise * torch.randn(400, generator=generator("cpu", seed))
    keep = Collector()
    for part in logits.split(150):
        keep(torch.stack([part, -part], 1), torch.zeros(len(part), dtype=torch.int64))
    keep.write(folder, epoch=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What these tests read; one that writes to it takes a copy."""
    root = tmp_path_factory.mktemp("results")
    for seed in range(3):
        shift = 0.002 * seed
        for label, best, flags, noise in (
            ("aca", 0.8, (), 0.3),
            ("adjoint", 0.7, ("--gradient", "adjoint"), None),
            ("resnet", 0.8001, ("--model", "discrete"), 3.0),
        ):
            name = f"table/cifar10_{label}_seed{seed}"
            folder = write_run(root, name, [0.5, 0.6, best + shift], *flags)
            if noise:
                write_predictions(folder, noise, f"{label} {seed}")
    write_run(root, "table/cifar10_aca-amp_seed1", [0.5, 0.6, 0.797], "--amp")
    write_run(root, "table/cifar10_naive_seed0", [0.5, 0.6], "--gradient", "naive", error="the loss is not finite")
    write_run(root, "table/cifar10_mali_seed0", [0.5], "--gradient", "mali", "--method", "ALF", finished=False)
    robust = write_run(root, "cpu/cifar10_aca_seed0", [0.5, 0.9])
    write_tests(robust, lambda solver: 0.9 if solver["method"] in ("HeunEuler", "RK23", "RK45") else 0.895)
    fragile = write_run(root, "cpu/cifar10_euler_seed0", [0.5, 0.85], "--method", "Euler")
    write_tests(fragile, lambda solver: 0.85 if solver == {"method": "Euler", "h": 1.0} else 0.8)
    return root


@pytest.fixture(scope="module")
def tables(root):
    """What the report writes of them, which takes seconds."""
    report.main(["--results", str(root)])
    return (root / "tables.md").read_text()


def lines(text, *words):
    """The rows of tables that hold all ``words``."""
    return [line for line in text.splitlines() if line.startswith("|") and all(word in line for word in words)]


def test_what_was_run_is_shown_with_its_spread_and_what_was_not_is_blank(root, tables):
    assert "scaled down: width 16 of 64, 3 of 90 epochs" in tables
    (aca, *_) = lines(tables, "| aca |")
    assert "| RK12 0.01 | 128 | 3 | 80.20 ± 0.20 % | 4.00 ± 0.00 | 2.00 ± 0.00 | 60 ± 0 | 3.0 ± 0.0 | 1024 ± 0 |" in aca
    assert "Gained by `--amp`, seed by seed: -0.50 points." in tables
    (direct,) = lines(tables, "| direct |")
    assert direct.split("|")[2:-1] == ["  "] * 10
    assert lines(tables, "cifar10_naive_seed0", "the loss is not finite")
    assert lines(tables, "cifar10_mali_seed0", "1 of 1 epochs")
    assert not lines(tables, "| naive |", "%", "RK12")
    for name in ("methods.png", "networks.png", "robustness.png"):
        assert (root / "table" / name).read_bytes().startswith(b"\x89PNG") and f"table/{name}" in tables
    assert "paper/" not in tables.replace("In the paper", "")


def test_the_claims_are_judged_by_the_records(tables):
    (row,) = lines(tables, "more accurate than adjoint, like for like")
    assert "| +10.00 points" in row and "| undecided: no spread between the seeds |" in row  # each seed differs by 10
    (row,) = lines(tables, "evaluates f less often than adjoint, like for like")
    assert "+0.00 per block and batch" in row and "no spread" in row
    (row,) = lines(tables, "less time than adjoint, like for like")
    assert "undecided: the processor was shared" in row
    (row,) = lines(tables, "more accurate than naive, like for like")
    assert "| undecided: not run |" in row
    (row,) = lines(tables, "NODE-18 is more accurate than ResNet-18 on CIFAR-10, unlike at the start |")
    assert "| Welch t |" in row and "| undecided: needs more than 1000 seeds |" in row
    (row,) = lines(tables, "more accurate than ResNet-18 on CIFAR-10, second blocks of both begin at 0.2 |")
    assert "| undecided: not run; 3 seeds take" in row
    (row,) = lines(tables, "more reliable than ResNet-18 on CIFAR-10:", "ICC(2,1) of true-class probability")
    assert "| decided for |" in row
    for words in ("mean growth", "growth by the worst solver"):
        (row,) = lines(tables, "Other test solvers hurt NODE-18 less", words)
        assert f"| {'-4.70' if words == 'mean growth' else '-4.50'} points" in row and "needs at least 3 seeds" in row
    (row,) = lines(tables, "NODE-18 has about 5 % error")
    assert "undecided: not at this scale" in row


def test_every_solver_of_the_supplement_stands_beside_the_papers(tables):
    first, second = tables.split("**Supplement table ")[1:]
    assert "error 15.00% (paper: 8.47 %)" in first and "error 10.00% (paper: 4.85 %)" in second
    for part in (first, second):
        assert len(lines(part, "| 2.0 | 1.5 |")) == 21
    assert lines(first, "Euler, h 0.1", "| +5.00 | +4.84 |")
    assert lines(second, "RK4, h 1 ", "| +0.50 | +1.09 |")
    assert lines(second, "HeunEuler, tolerance 0.01", "| +0.00 | +0.00 |")


def test_robustness_in_words_names_the_solvers_that_hurt(root):
    """No solver hurts NODE-18 as much as the other network; where one does, here Euler's h = 1, it is said."""
    found = robustness.tested(collect(root), "table")
    euler, ours = robustness.sentences(found)
    assert "of 20 other test solvers 20 change the error by more than 0.1 points" in euler
    assert "20 other test solvers 12 change" in ours and "The median is +0.50 points" in ours
    run, tests = found["aca"]
    tests["Euler", 1.0] = tests["Euler", 1.0] | {"test_accuracy": 0.8}
    *_, ours, verdict = robustness.sentences({"euler": found["euler"], "aca": (run, tests)})
    assert "worst are Euler, h 1 (+10.00) and Euler, h 0.5 (+0.50)" in ours
    assert "does not hold for every solver" in verdict and "(+10.00 points)" in verdict and "(+5.00)" in verdict
    assert "+8.31 and +7.69" in verdict


def test_robustness_is_drawn_without_the_solver_of_the_training(root):
    here, paper = plot.draw_robustness(robustness.tested(collect(root), "table")).axes
    for ax in (here, paper):
        assert [np.isfinite(line.get_xdata()).sum() for line in ax.lines[:2]] == [20, 20]
    assert paper.lines[1].get_xdata()[0] == 8.31 and here.lines[1].get_xdata()[0] == pytest.approx(0.5)
    assert "not run" in plot.draw_robustness(robustness.tested([], "table")).axes[0].get_title()


def test_the_papers_cells_are_complete():
    for label in robustness.ROBUST:
        cells = robustness.QUOTED[label]
        assert [len(cells[m]) for m in ("Euler", "RK2", "RK4", "HeunEuler", "RK23", "RK45")] == [4, 4, 4, 3, 3, 3]
        solvers = [robustness.cell(solver) for solver in ALL_SOLVERS]
        assert robustness.cell(robustness.BASES[label]) in solvers and len(set(solvers)) == 21
        assert len(robustness.quoted(label)) == 20


def test_nothing_finished_at_all(tmp_path, capsys):
    write_run(tmp_path, "table/cifar10_aca_seed0", [0.5], finished=False)
    report.main(["--results", str(tmp_path)])
    assert "0 finished runs" in capsys.readouterr().out


@pytest.mark.parametrize("below", ["", "a/b"])
def test_runs_at_any_depth_are_shown(tmp_path, below):
    """Of the tables by their names, whatever folder they lie in; others as single runs, even the folder itself."""
    write_run(tmp_path / below, "table/cifar10_aca_seed0", [0.5, 0.8]).parent.rename(tmp_path / below / "moved")
    write_run(tmp_path / below, "a_single_run", [0.5, 0.7])
    for root in (tmp_path, tmp_path / below):
        report.main(["--results", str(root)])
        text = (root / "tables.md").read_text()
        place = "" if root == tmp_path / below else f"{below}/"
        assert lines(text, "NODE-18, ACA", "80.00 %") and lines(text, f"({place}moved/cifar10_aca_seed0)", "80.00%")
        assert lines(text, f"(./{place}a_single_run)", "70.00%")
    report.main(["--results", str(tmp_path / below / "a_single_run")])
    assert lines((tmp_path / below / "a_single_run" / "tables.md").read_text(), "70.00%")


def test_the_readme_shows_the_results_folder_only(root, tmp_path_factory, monkeypatch):
    root = shutil.copytree(root, tmp_path_factory.mktemp("copies") / "results")
    monkeypatch.setattr(report, "save_figure", lambda figure, path: None)  # of which it shows the names alone
    readme = tmp_path_factory.mktemp("readmes") / "README.md"
    start = "<!-- measured: written by cifar_classification/report.py -->\n"
    readme.write_text(f"before\n{start}FORMER\n<!-- end of measured -->\nafter\n")
    monkeypatch.setattr(report, "README", readme)
    report.main(["--results", str(root)])
    assert "FORMER" in readme.read_text()
    monkeypatch.setattr(report, "RESULTS", root)
    single = write_run(root, "a_single_run", [0.5, 0.7])
    report.main(["--results", str(root)])
    text = readme.read_text()
    assert text.startswith(f"before\n{start}") and text.endswith("<!-- end of measured -->\nafter\n")
    assert "FORMER" not in text and "70.00%" in text and single.name in text
    assert "(../results/cifar_classification/table/methods.png)" in text
    report.main(["--results", str(root)])
    assert readme.read_text() == text


def test_predictions_survive_being_written(tmp_path):
    logits = torch.randn(1000, 10, generator=generator("cpu", 0))
    labels = torch.randint(10, (1000,), generator=generator("cpu", 1))
    keep = Collector()
    keep(logits[:600], labels[:600])
    keep(logits[600:], labels[600:])
    keep.write(tmp_path, epoch=7)
    found = read(tmp_path)
    assert found.epoch == 7
    assert found.correct.tolist() == (logits.argmax(1) == labels).tolist()
    expected = logits.softmax(1)[torch.arange(1000), labels].numpy()
    assert abs(found.probability - expected).max() < 2**-12  # half precision: 11 bits, below 1
    assert (tmp_path / FILE).stat().st_size < 4000
    assert read(tmp_path / "elsewhere") is None


def test_the_lowest_number_of_epochs_is_drawn(root):
    runs = {label: of_place(collect(root), "table", "cifar10", label) for label in ("aca", "adjoint", "naive")}
    figure = plot.draw_methods(runs, ("aca", "adjoint", "naive"), ("aca",), "a title")
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 1, 1]  # naive, which failed, has no line
    assert [len(line.get_ydata()) for line in figure.axes[1].lines] == [3, 3]  # a dot a seed
    assert figure.axes[0].lines[0].get_ydata()[-1] == pytest.approx(0.802)


def test_command_of_a_run_whose_settings_are_not_its_profiles(tmp_path):
    write_run(tmp_path, "as_it_is", [0.5] * 5)
    write_run(tmp_path, "longer", [0.5] * 6)
    as_it_is, longer = collect(tmp_path)
    assert single_runs.command_of(as_it_is) == "`python cifar_classification/train.py --profile table`"
    assert single_runs.command_of(longer) == f"{single_runs.command_of(as_it_is)[:-1]} --epochs 6`"
    assert [single_runs.as_flag(*setting) for setting in (("amp", False), ("milestones", [3, 5]))] == [
        "--no-amp",
        "--milestones 3 5",
    ]


def of_size(size, accuracies):
    """Stand-ins for runs of ResNet-18 whose second blocks begin at ``size``."""
    chosen = SimpleNamespace(model="discrete", branch_scale=size)
    return [SimpleNamespace(chosen=chosen, summary={"test_accuracy": accuracy}) for accuracy in accuracies]


def test_the_better_size_is_named_with_whether_every_run_says_so():
    rows = {"aca": [], "aca-scale": [], "resnet": of_size(1.0, [0.70, 0.71]), "resnet-scale": of_size(0.2, [0.72])}
    said = report.better_size({"cifar10": rows})
    assert "ResNet-18 on CIFAR-10 with 0.2 rather than 1, by 1.50 points (every run, 1 and 2 runs)." in said
    rows["resnet-scale"] = of_size(0.2, [0.705, 0.73])
    assert "by 1.25 points (the mean, not every run, 2 and 2 runs)" in report.better_size({"cifar10": rows})
    rows["resnet-scale"] = []
    assert report.better_size({"cifar10": rows}) == ""
