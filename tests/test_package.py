"""What `pip install .` gives, and what importing it costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import torch_ACA

ROOT = Path(__file__).resolve().parent.parent
MEASURE = """
import sys
import torch_ACA
print(*(name for name in {unwanted!r} if name in sys.modules))
"""
UNWANTED = ("scipy", "matplotlib", "torchvision", "tensorboardX", "torch._dynamo", "torch._inductor")


def test_import_brings_in_little():
    """What takes seconds to import is imported where it is needed."""
    command = [sys.executable, "-c", MEASURE.format(unwanted=UNWANTED)]
    assert subprocess.check_output(command, cwd=ROOT, text=True).split() == []


def test_the_first_solves_leave_the_compiler_alone():
    """Its import takes seconds, and a dispatch mode of PyTorch's would bring it in."""
    solves = """
import sys, torch, torch_ACA
y0, t = torch.ones(2, requires_grad=True), torch.tensor([0.0, 1.0], requires_grad=True)
for gradient in torch_ACA.GRADIENTS:
    torch_ACA.solve(lambda t, y: -y, y0, t, gradient=gradient).ys.sum().backward()
    torch_ACA.solve(lambda t, y: -y * float(t), y0, t, gradient=gradient).ys.sum().backward()
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", solves], cwd=ROOT, text=True) == "False\n"


def test_package_holds_torch_ACA_alone():
    setuptools = pytest.importorskip("setuptools")
    pyproject = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())
    chosen = pyproject["tool"]["setuptools"]
    packages = setuptools.find_packages(str(ROOT), include=chosen["packages"]["find"]["include"])
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("torch_ACA/**/*.py")}
    assert {Path(*name.split(".")) for name in packages} == folders
    assert (ROOT / "torch_ACA" / "py.typed").exists() and chosen["package-data"] == {"torch_ACA": ["py.typed"]}
    assert [re.match(r"\w+", name)[0] for name in pyproject["project"]["dependencies"]] == ["torch", "numpy"]


def test_changelog_has_this_version():
    assert f"\n## {torch_ACA.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
