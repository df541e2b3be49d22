"""Run every experiment at a profile, stage by stage, then write the pages: what scripts/reproduce.sh starts.

A stage that has passed is skipped the next time, an interrupted one goes on. What a stage prints goes to a log beside
the state in runs/reproduce/PROFILE. A run that ended early with its record is a result, so its stage passes.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

from harness.cli import FAILED, INTERRUPTED, ArgumentParser, run_main
from harness.environment import ROOT
from harness.files import write_text
from harness.resources import Stopwatch

PAGES = "pages"
NEURAL_ODE_2018 = tuple(f"neural_ode_2018/{part}" for part in ("spirals", "cnf", "mnist"))
# by profile: experiment, which list of its launches.py, and how many seeds of it (None: all)
STAGES = {
    "quick": {"van_der_pol": ("", "measure", None), "three_body": ("", "quick", None),
              "latent_ode_mujoco": ("", "quick", None), "cifar_classification": ("", "quick", None),
              **dict.fromkeys(NEURAL_ODE_2018, ("", "quick", 1))},
    "cpu": {"van_der_pol": ("", "train", None), "three_body": ("", "quick", None),
            "latent_ode_mujoco": ("", "table", None), "cifar_classification": ("tables", "table", None),
            **dict.fromkeys(NEURAL_ODE_2018, ("", "quick", None))},
    "paper": {"van_der_pol": ("", "train", None), "three_body": ("", "paper", None),
              "latent_ode_mujoco": ("", "paper", None), "cifar_classification": ("tables", "paper", None),
              **dict.fromkeys(NEURAL_ODE_2018, ("", "paper", None))},
}  # fmt: skip
PASSED, SKIPPED = "passed", "skipped"
EARLY = re.compile(r"^ended early, see their records: (.*)$", re.MULTILINE)


def parser():
    names = [*STAGES["quick"], PAGES]
    result = ArgumentParser("Run every experiment, then write the tables and pages.")
    result.add_argument(
        "--profile", choices=list(STAGES), default="quick",
        help="quick: within an hour on 2 cores; cpu: all seeds, scaled down, many hours; paper: full scale, for GPUs",
    )  # fmt: skip
    result.add_argument("--only", choices=names, metavar="NAME", help=f"one stage: {', '.join(names)}")
    result.add_argument("--again", action="store_true", help="also run the stages that have passed before")
    return result


def main(argv=None, run=None):
    """``run(words, log)`` runs a Python command, its output going to a file, and returns the exit code."""
    args, run = parser().parse_args(argv), run or run_python
    folder = ROOT / "runs" / "reproduce" / args.profile
    state = read_state(folder)
    outcomes = {}
    for name in [args.only] if args.only else [*STAGES[args.profile], PAGES]:
        before = state.get(name)
        # pages follow from all records, so they are always written
        if before and before["status"] == PASSED and not args.again and name != PAGES:
            outcomes[name] = before
            print(f"{name}: passed before, in {minutes(before)}; --again runs it again", flush=True)
            continue
        if reason := missing(name, args.profile):
            outcomes[name] = {"status": SKIPPED, "why": reason, "seconds": 0.0}
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        log = folder / f"{name}.log"
        print(f"{name}: started, output in {log.relative_to(ROOT)}", flush=True)
        outcomes[name] = state[name] = stage(name, args.profile, log, run)
        write_text(folder / "state.json", json.dumps(state, indent=2) + "\n")
        print(f"{name}: {outcomes[name]['status']} in {minutes(outcomes[name])}", flush=True)
        if outcomes[name]["status"] == "interrupted":
            break
    return summary(outcomes)


def stage(name, profile, log, run):
    """Run a stage; returns its outcome: status, why, and seconds."""
    words = ["scripts/render_docs.py"]
    if name != PAGES:
        which, chosen, seeds = STAGES[profile][name]
        words = ["-m", "harness.launch", f"{name}:{which}" if which else name, "--profile", chosen]
        words += ["--seeds", str(seeds)] if seeds else []
    clock = Stopwatch()
    log.parent.mkdir(parents=True, exist_ok=True)
    code = run(words, log)
    text = log.read_text(errors="replace") if log.exists() else ""
    status, why = PASSED, ""
    if code == INTERRUPTED:
        status, why = "interrupted", "the same command goes on"
    elif code:
        early = EARLY.findall(text)
        folders = early[-1].split() if early else []
        if code == FAILED and folders and all((ROOT / folder / "summary.json").exists() for folder in folders):
            why = f"{len(folders)} runs ended early, which is recorded: {' '.join(folders)}"
        else:
            last = text.strip().splitlines()[-1:] or [f"exit code {code}"]
            status, why = "failed", f"{last[0]} (exit code {code}, {log.relative_to(ROOT)})"
    return {"status": status, "why": why, "seconds": clock.seconds}


def missing(name, profile):
    """What a stage lacks on this machine; None if nothing."""
    if name == PAGES:
        return None
    which = STAGES[profile][name][0]
    needs = importlib.import_module(f"{name.replace('/', '.')}.launches").LAUNCHES[which].needs
    return needs and needs()


def summary(outcomes):
    """Say how the stages ended; returns the exit code."""
    print()
    for name, outcome in outcomes.items():
        print(f"{name:24} {outcome['status']:12} {minutes(outcome):>12}  {outcome['why']}".rstrip())
    statuses = {outcome["status"] for outcome in outcomes.values()}
    if "interrupted" in statuses:
        return INTERRUPTED
    return FAILED if "failed" in statuses else 0


def minutes(outcome):
    return f"{outcome['seconds'] / 60:.1f} minutes"


def read_state(folder):
    path = Path(folder) / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def run_python(words, log):
    with open(log, "w") as file:
        try:
            return subprocess.run([sys.executable, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
        except KeyboardInterrupt:
            return INTERRUPTED


if __name__ == "__main__":
    run_main(main)
