import json

import pytest
import torch

from cifar_classification import timing
from cifar_classification.claims import of_scale
from cifar_classification.training import CifarTraining
from harness.cli import UsageError
from harness.record import Run, read_metrics, read_run
from harness.verdicts import FOR, judge

TINY = ["--dataset", "digits", "--width", "4", "--images", "128", "--rounds", "2"]


def arguments(*more):
    return timing.parser().parse_args([*TINY, *more])


def write(folder, times, waits=1.0):
    """A record of a timing run with these seconds by method and round."""
    run = Run.start(folder, {}, settings={name: {} for name in times})
    for number, turns in enumerate(zip(*times.values()), 1):
        scalars = {f"CPU/{name}": value for name, value in zip(times, turns)}
        scalars |= {f"Wall/{name}": waits * value for name, value in zip(times, turns)}
        run.log(number, scalars | {f"{what}/{name}": 4.0 for name in times for what in ("Forward", "Backward")})
    run.finish({})
    return folder


def test_methods_differ_in_their_gradient_alone():
    aca, adjoint, naive = (timing.settings_of(name, arguments()) for name in ("aca", "adjoint", "naive-own"))
    assert {name for name in aca if aca[name] != adjoint[name]} == {"gradient"}
    assert (naive["method"], naive["rtol"], naive["batch_size"]) == ("Dopri5", 1e-5, 32)


def test_a_turn_trains_on_its_batches_and_counts_for_128_images():
    args = arguments("--images", "256", "--rounds", "1")
    settings = timing.settings_of("aca", args)
    training = CifarTraining(settings, timing.some_images(args), torch.device("cpu"))
    assert len(training.images.train) == 3 * 256
    batches = list(training.training_batches())
    found = timing.turn(training, batches[:2])
    assert training.batch == 2
    mean = (training.solver / 2).mean(0)
    assert (found["Forward"], found["Backward"]) == pytest.approx((float(mean[0]), float(mean[1])))
    assert found["Forward"] >= 1 and 0 < found["CPU"] < 60 and 0 < found["Wall"] < 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "100"], "no whole batches of 128, which aca has"),
        (["--rounds", "20"], "are 2816 images, but digits has 1500"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(flags, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        timing.main([*TINY, *flags, "--of", "aca", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_quiet_run_decides_and_another_one_does_not(tmp_path):
    times = {"aca": [1.0, 1.1, 0.9, 1.0], "adjoint": [1.2, 1.32, 1.09, 1.2], "adjoint-own": [4.0, 4.2, 4.1, 3.9]}
    quiet, shared = write(tmp_path / "quiet", times), write(tmp_path / "shared", times, waits=1.1)
    nothing = {dataset: dict.fromkeys(("aca", "adjoint", "naive", "resnet", "adjoint-own", "naive-own", "aca-scale",
                                       "resnet-scale"), []) for dataset in ("cifar10", "cifar100")}  # fmt: skip
    robust = {"aca": (None, {}), "euler": (None, {})}

    def claims(folder):
        found, others = of_scale(nothing, ("aca", "adjoint-own", "naive-own"), robust, timing.seconds(folder))
        times = {one.comparison.claim: one.verdict for one in judge(found) if "less time" in one.comparison.claim}
        return times, [claim for claim, _ in others if "less time" in claim]

    decided, left = claims(quiet)
    faster = "ACA takes less time than adjoint"
    assert decided == {f"{faster}, like for like": FOR, f"{faster}, with the paper's settings": FOR}
    assert len(left) == 2 and all("naive" in claim for claim in left)
    assert timing.seconds(shared) == timing.seconds(tmp_path / "nowhere") == {} and len(claims(shared)[1]) == 4
    text = timing.timing_table(quiet)
    assert "| adjoint | 1.20 | 1.09 to 1.32 | 1.20 | 4.0 | 4.0 |" in text and "it was quiet" in text
    assert "waited 9.1% of the time for a processor: it was not quiet" in timing.timing_table(shared)


@pytest.mark.slow
def test_processes_take_turns_on_the_same_batches(tmp_path, capsys):
    timing.main([*TINY, "--of", "aca", "direct", "--out", str(tmp_path / "run")])
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["Forward/aca"] == row["Forward/direct"] for row in rows)  # the same steps: the same weights so far
    assert all(row[f"CPU/{name}"] > 0 for row in rows for name in ("aca", "direct"))
    assert "data" not in json.dumps(read_run(tmp_path / "run")["arguments"]).replace("dataset", "")
    assert "| direct | " in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run():
    args = arguments()
    with timing.Worker({"nonsense": True}, args) as worker, pytest.raises(RuntimeError, match="has died"):
        worker.turn()
