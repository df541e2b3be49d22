"""MNIST: the networks, the data, and what is measured of trained ones."""

import pytest
import torch

from harness.cli import UsageError
from harness.experiment import BEST
from harness.testing import own_test, read_tests
from neural_ode_2018.mnist import memory, test, train
from neural_ode_2018.mnist.data import load
from neural_ode_2018.mnist.experiment import MNIST, SWEEP
from neural_ode_2018.mnist.models import MODELS, Field, Network, ResidualBlock
from neural_ode_2018.mnist.plot import swept

SOLVER = {"method": "Dopri5", "rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize(("model", "millions"), [("resnet", "0.60"), ("rk-net", "0.22"), ("ode-net", "0.22")])
def test_networks_have_the_papers_numbers_of_parameters(model, millions):
    network = Network(model, SOLVER)
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f}" == millions
    images = torch.rand(3, 1, 28, 28)
    assert network.stem(images).shape == (3, 64, 7, 7)  # two downsamplings
    assert network(images).shape == (3, 10)
    assert (network.stats is None) == (model == "resnet")


def test_a_step_of_euler_at_time_0_is_a_residual_block():
    torch.manual_seed(0)
    block, field, x = ResidualBlock(), Field(), torch.randn(2, 64, 7, 7)
    for own, other in zip(block.layers[::3], (field.norm1, field.norm2)):
        other.load_state_dict(own.state_dict())
    for own, other in zip(block.layers[2::3], (field.conv1, field.conv2)):
        other.load_state_dict(own.state_dict())
    torch.testing.assert_close(x + field(torch.tensor(0.0), x), block(x))
    torch.nn.init.ones_(field.time2)
    torch.testing.assert_close(x + field(torch.tensor(2.0), x), block(x) + 2)


def test_images_are_those_of_the_files(mnist_folder):
    images = load(str(mnist_folder), 40, 20, "cpu")
    assert len(images.train) == 40 and len(images.test) == 20
    pixels, labels = next(images.test_batches(20))
    assert pixels.shape == (20, 1, 28, 28) and labels.tolist() == [i % 10 for i in range(20)]
    assert pixels[3, 0, 10].min() == 250 / 255 and pixels.min() >= 0


@pytest.mark.parametrize(("train_images", "said"), [(61, "has 60"), (10, None)])
def test_data_that_is_not_there(mnist_folder, tmp_path, train_images, said):
    with pytest.raises(UsageError, match=said or "is not in") as raised:
        load(str(mnist_folder if said else tmp_path), train_images, 10, "cpu")
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def trained(mnist_folder, tmp_path_factory):
    """Folders of a run of each model, of a few steps."""
    folders = {}
    for model in MODELS:
        folders[model] = tmp_path_factory.mktemp("runs") / model
        flags = "--profile quick --train-images 40 --test-images 20 --batch-size 20 --epochs 1 --device cpu --threads 1"
        where = ["--data", str(mnist_folder), "--out", str(folders[model]), "--model", model]
        assert train.main([*flags.split(), *where]) == 0
    return folders


@pytest.mark.parametrize("model", ["rk-net", "ode-net"])
def test_tighter_tolerances_take_more_evaluations_and_err_less(trained, mnist_folder, model):
    words = ["--resume", str(trained[model]), "--data", str(mnist_folder), "--device", "cpu"]
    for flags in ([], ["--sweep"], ["--sweep"]):  # what is recorded is not measured again
        assert test.main([*words, *flags]) == 0
    assert len((trained[model] / "tests.jsonl").read_text().splitlines()) == 1 + len(SWEEP)
    assert own_test(trained[model], BEST)["solver"]["method"] == "RK23"
    rows = swept(trained[model])
    assert [row["solver"]["rtol"] for row in rows] == list(SWEEP)
    evaluations, errors = ([row[name] for row in rows] for name in ("forward_of_batch", "solution_error"))
    assert evaluations == sorted(evaluations) and evaluations[0] < evaluations[-1] and errors[0] > errors[-1]
    assert all((row["backward_of_batch"] == 0) == (model == "rk-net") for row in rows)
    assert all(0 <= row["test_error"] <= 1 and row["images"] == 20 for row in rows)


def test_a_residual_network_is_tested_without_a_solver(trained, mnist_folder):
    words = ["--resume", str(trained["resnet"]), "--data", str(mnist_folder), "--device", "cpu"]
    assert test.main(words) == 0
    (row,) = read_tests(trained["resnet"])
    assert row["solver"] is None and "evaluations" not in row
    for flags, said in ((["--sweep"], "needs an ODE block"), (["--rtol", "1"], "solves no ODE")):
        with pytest.raises(UsageError, match=said):
            test.main([*words, *flags])


def test_rk_net_back_propagates_through_its_solver_unless_told():
    gradients = [MNIST.new_settings("--model", model)["gradient"] for model in ("rk-net", "ode-net")]
    assert gradients == ["direct", "aca"]
    assert MNIST.new_settings("--model", "rk-net", "--gradient", "naive")["gradient"] == "naive"


def test_memory_grows_with_depth_where_the_graph_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "DEPTHS", (48,))
    monkeypatch.setattr(memory, "GRADIENTS", ("direct", "aca"))
    found = {row["network"]: row["bytes"] for row in memory.rows(torch.device("cpu"))}
    # per step direct keeps tens of states, aca one; what a long test run has freed before may hold that one
    assert found["direct"] > max(3 * found["aca"], 0)
