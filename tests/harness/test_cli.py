import subprocess
import sys

import pytest
import torch

from harness import cli


def common(argv, **keywords):
    parser = cli.ArgumentParser("does things")
    cli.add_common_arguments(parser, **{"out": "runs/x", **keywords})
    return parser.parse_args(argv)


def test_usage_error_is_one_line_and_exit_code_2():
    script = "from harness import cli\ndef main(argv): raise cli.UsageError('--h is needed')\ncli.run_main(main)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: --h is needed\n")


@pytest.mark.parametrize("argv", [["--seeed", "1"], ["--see", "1"], ["--seed"], ["--seed", "x"], ["stray"]])
def test_unusable_flags_are_one_line_and_exit_code_2(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        common(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3)])
def test_exit_code_is_mains(result, code):
    with pytest.raises(SystemExit) as caught:
        cli.run_main(lambda argv: result)
    assert (caught.value.code or 0) == code


def test_main_gets_the_arguments():
    with pytest.raises(SystemExit) as caught:
        cli.run_main(len, ["a", "b"])
    assert caught.value.code == 2


def test_ctrl_c_is_exit_code_130(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli.run_main(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_only_validation_turns_a_value_error_into_a_usage_error():
    with pytest.raises(cli.UsageError, match="unknown method"), cli.usage_errors():
        raise ValueError("unknown method")
    with pytest.raises(ValueError, match="a bug"):
        cli.run_main(lambda argv: (_ for _ in ()).throw(ValueError("a bug")))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.positive_float, ["1e-3", "2"], ["0", "-1", "nan", "inf", "x", ""]),
        (cli.non_negative_float, ["0", "0.5"], ["-1e-9", "nan", "inf", "x"]),
        (cli.positive_int, ["1", "128"], ["0", "-1", "1.5", "x"]),
        (cli.non_negative_int, ["0", "3"], ["-1", "1e3", "x"]),
        (cli.fraction, ["0", "1", "0.25"], ["-0.1", "1.1", "nan", "50%"]),
    ],
)
def test_number_types(kind, good, bad):
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(cli.argparse.ArgumentTypeError, match="is not a"):
            kind(text)


def test_common_arguments(monkeypatch):
    monkeypatch.setenv("SOME_DATA", "from the environment")
    args = common([], data="data", data_env="SOME_DATA")
    assert (args.seed, args.device, args.threads, args.out) == (0, "auto", None, "runs/x")
    assert args.overwrite is False
    assert args.data == "from the environment"
    monkeypatch.delenv("SOME_DATA")
    assert common([], data="data", data_env="SOME_DATA").data == "data"
    assert common(["--data", "mine"], data="data").data == "mine"
    assert not hasattr(common([]), "data")


def test_help_explains_every_flag_and_its_default(capsys):
    with pytest.raises(SystemExit):
        common(["--help"], data="some/folder", data_env="SOME_DATA")
    text = " ".join(capsys.readouterr().out.split())
    for part in ("(default: 0)", "(default: auto)", "(default: runs/x)", "(default: some/folder)", "$SOME_DATA"):
        assert part in text
    assert "None" not in text


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        assert cli.apply_common_arguments(common(["--threads", "3", "--device", "cpu"])) == torch.device("cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_devices_that_are_not_there(monkeypatch):
    assert cli.resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert cli.resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "mps", "gpu", "meta", "cuda:x", ""):
        with pytest.raises(cli.UsageError, match=f"^--device {name}:"):
            cli.resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cli.resolve_device("auto") == torch.device("cuda")
    with pytest.raises(cli.UsageError, match="cuda:1"):
        cli.resolve_device("cuda:1")
