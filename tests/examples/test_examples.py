import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {  # the last line of what a program prints, up to its numbers, and whether the numbers are good
    "bouncing_ball": ("elasticity", lambda elasticity, off: off < 1e-9),
    "compiled": ("relative difference of the gradients", lambda difference: difference < 1e-9),
    "ddp": ("process", lambda rank, loss, evaluations: loss < 0.1),
    "fit_spiral": ("mean squared error", lambda error: error < 5e-3),
    "lightning_module": ("accuracy", lambda percent: percent > 90),
    "many_steps": ("the gradients are equal to the last bit", lambda: True),
    "normalising_flow": ("mean log-likelihood", lambda value: -1.8 < value < -1.0),
    "rows": ("largest relative error of a stiffness:", lambda error: error < 0.05),
    "stiff": ("rate constant:", lambda learnt, truth: abs(learnt / truth - 1) < 0.01),
    "physical_parameter": ("friction:", lambda learnt, truth: abs(learnt - truth) < 0.02),
}


_SLOW = ("compiled", "ddp", "fit_spiral", "many_steps", "normalising_flow", "rows", "stiff")


def marked(example):
    """An example, marked where it takes ten seconds."""
    slow = [pytest.mark.slow] if example.stem in _SLOW else []
    return pytest.param(example, marks=slow, id=example.stem)


@pytest.mark.parametrize("example", map(marked, EXAMPLES))
def test_example_runs_and_is_short(example, tmp_path):
    if example.stem == "lightning_module":
        pytest.importorskip("lightning")
    text = example.read_text()
    assert len(text.splitlines()) <= 60
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, example], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    start, good = SAYS[example.stem]
    last = done.stdout.splitlines()[-1]
    assert last.startswith(start)
    assert good(*numbers(last)), last
    assert [path.name for path in tmp_path.glob("*.png")] == ([f"{example.stem}.png"] if "savefig" in text else [])


def numbers(line):
    return [float(number) for number in re.findall(r"-?\d[\d.]*(?:e[+-]\d+)?", line)]


def test_every_example_is_in_the_readme():
    readme = (ROOT / "examples" / "README.md").read_text()
    assert all(f"[{example.name}]({example.name})" in readme for example in EXAMPLES)
