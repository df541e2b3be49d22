"""What the paper and its supplement report on CIFAR: the numbers of paper.json, quoted for comparison."""

import json
from pathlib import Path

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text())
