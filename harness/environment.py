"""What a number was measured with: code, command, versions and hardware."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "torchvision", "numpy", "scipy")


def describe():
    """A JSON-ready dict of commit, command line, versions, hardware and date; None for what cannot be found out."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        **_commit(),
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),  # as torchrun sets it
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def hardware(described):
    """Of what `describe` returned: the GPU, or the processor and how many threads of it."""
    if described["gpus"]:
        return described["gpus"][0]
    threads = described["threads"]
    return f"{described['cpu']}, {threads} thread{'' if threads == 1 else 's'}"


def kinds(runs):
    """The names of the rows that come from each commit, PyTorch version and machine; ``runs`` as for `origins`."""
    found = {}
    for name, described in runs:
        commit = (described.get("commit") or "unknown")[:7] + (" with changes" if described.get("dirty") else "")
        torch_version = described.get("packages", {}).get("torch", "unknown")
        found.setdefault(f"commit {commit}, PyTorch {torch_version}, {hardware(described)}", {})[name] = None
    return found


def origins(runs):
    """A sentence on the commits, PyTorch versions and machines that the rows of a table come from.

    ``runs``: for each run the name of its row and what `describe` returned. Rows of one kind need few words; of several
    kinds, each is named with its rows: such rows differ in more than what the table compares.
    """
    found = kinds(runs)
    if len(found) == 1:
        return f"All rows: {next(iter(found))}."
    parts = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(found.items()))
    return f"Not all rows come from one version of the code and one kind of machine. {parts}." if found else ""


def command_line():
    """The command as typed, but for paths: those inside the repository as seen from its root, the script's bare name
    outside of it."""
    script = Path(sys.argv[0]).resolve()
    script = portable(script) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", script, *(portable(argument) for argument in sys.argv[1:])])


def portable(value):
    """A path inside the repository, or option=path, as seen from its root; anything else as it is."""
    if not isinstance(value, (str, Path)):
        return value
    text = str(value)
    option, equals, path = text.partition("=") if text.startswith("-") else ("", "", text)
    return option + equals + Path(path).relative_to(ROOT).as_posix() if path.startswith(f"{ROOT}/") else value


def _commit():
    """The commit, and whether tracked files other than results differ from it; both None outside a git checkout."""
    if not (ROOT / ".git").exists():  # an installed copy could lie inside somebody else's repository
        return {"commit": None, "dirty": None}
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(*arguments):
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions(packages):
    """{name: version} of packages, None for one that is not installed."""
    found = dict.fromkeys(packages)
    for name in found:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None
