"""Every experiment trains and is tested with every gradient method."""

import json

import pytest

from neural_ode_2018.cnf import test as cnf_test
from neural_ode_2018.cnf import train as cnf_train
from neural_ode_2018.mnist import test as mnist_test
from neural_ode_2018.mnist import train as mnist_train
from neural_ode_2018.spirals import test as spirals_test
from neural_ode_2018.spirals import train as spirals_train
from torch_ACA import GRADIENTS

# a step or two of each; {data} is a folder of images
PARTS = {
    "mnist": (mnist_train, mnist_test, "--train-images 8 --test-images 4 --batch-size 8 --epochs 1", "--data {data}"),
    "cnf": (cnf_train, cnf_test, "--width 2 --batch-size 4 --epochs 1 --rtol 1e-2 --atol 1e-2", ""),
    "spirals": (spirals_train, spirals_test, "--spirals 8 --batch-size 8 --points 5 --epochs 1", ""),
}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("part", PARTS)
def test_one_switch_chooses_the_gradient(part, gradient, mnist_folder, tmp_path):
    train, test, flags, data = PARTS[part]
    data = data.format(data=mnist_folder).split()
    common = ["--profile", "quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path), *data]
    assert train.main([*common, *flags.split(), "--gradient", gradient]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["evaluations"]["forward"] > 0
    assert (summary["evaluations"]["backward"] > 0) == (gradient in ("aca", "adjoint", "mali"))
    assert test.main(["--resume", str(tmp_path), "--device", "cpu", "--threads", "1", *data]) == 0


@pytest.mark.parametrize("gradient", ["aca", "adjoint"])
def test_the_papers_solver_trains_its_network(gradient, mnist_folder, tmp_path):
    """Implicit Adams, in fixed steps, with its corrections to the default tolerances."""
    train, test, flags, data = PARTS["mnist"]
    machine = ["--device", "cpu", "--threads", "1", *data.format(data=mnist_folder).split()]
    solver = ["--method", "implicit_adams", "--h", "0.25", "--gradient", gradient]
    assert train.main(["--profile", "quick", *machine, "--out", str(tmp_path), *flags.split(), *solver]) == 0
    assert test.main(["--resume", str(tmp_path), *machine]) == 0
    (row,) = map(json.loads, (tmp_path / "tests.jsonl").read_text().splitlines())
    assert row["solver"]["method"] == "implicit_adams" and row["evaluations"] >= 2 * 4 + 2 * 2  # steps of RK4, of Adams
