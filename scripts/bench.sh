#!/usr/bin/env bash
# Measures torch_ACA beside other libraries, then writes tables and figures: about 25 minutes on 2 quiet cores.
#   --quick      scaled down, at most 5 minutes
# Other arguments go to benchmarks/run.py (--help lists them). Records that are complete stay, unless --overwrite is given.
# Libraries that are not installed are left out and named in the tables; to install them:
#   .venv/bin/python -m pip install --editable '.[bench]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python benchmarks/run.py --resume "$@"
