"""What the sections of results/README.md share: their columns, where a number of a paper comes from, and links."""

import os

from harness import packed
from harness.environment import ROOT, kinds

RESULTS = ROOT / "results"
FIGURE, SUPPLEMENT, MEMORY, UNKNOWN = "read off a figure", "supplement", "from memory", "-"
HEADER = ["what", "in the paper", "source", "here", "runs", "record"]


def link(folders):
    """A link to the record of the runs in ``folders``: a pack, or the folder that has all of them."""
    places = {packed.source(folder) for folder in folders}
    if not places:
        return ""
    path = os.path.relpath(os.path.commonpath(places), RESULTS)
    return f"[record]({path})"


def numbers(experiment, environments):
    """Where all numbers of a section are, and whether the runs behind its rows have different origins."""
    text = f"All numbers: [tables]({experiment}/tables.md)."
    if len(kinds(("", environment) for environment in environments)) > 1:
        text += " Not all rows come from one version of the code and one kind of machine: the tables name them."
    return f"{text}\n"
