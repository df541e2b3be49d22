#!/usr/bin/env bash
# Tests the solver with the oldest PyTorch that pyproject.toml allows and with the newest that pip finds. Each release gets
# an environment of its own in .venv-matrix/, which stays for the next time: minutes to install, then minutes to test.
#   scripts/test_matrix.sh [RELEASE ...] [-- PYTEST ARGUMENTS]      other releases than these two, such as 2.12
# $PYTHON chooses the interpreter (default: python3).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

releases=()
while [[ $# -gt 0 && $1 != -- ]]; do releases+=("$1") && shift; done
[[ ${1:-} == -- ]] && shift
oldest=$(sed -n 's/^dependencies = .*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
[[ ${#releases[@]} -gt 0 ]] || releases=("$oldest" newest)

failed=()
for release in "${releases[@]}"; do
    folder=.venv-matrix/$release
    wanted=torch
    [[ $release == newest ]] || wanted="torch==$release.*"
    [[ -x $folder/bin/python ]] || "${PYTHON:-python3}" -m venv "$folder"
    echo "$release: installing $wanted into $folder"
    "$folder/bin/python" -m pip install --disable-pip-version-check -qq --upgrade "$wanted" --editable '.[scipy,dev]'
    "$folder/bin/python" -c 'import sys, torch; print("PyTorch", torch.__version__, "on Python", sys.version.split()[0])'
    "$folder/bin/python" -m pytest tests/torch_ACA tests/compat "$@" || failed+=("$release")
done
[[ ${#failed[@]} -eq 0 ]] || { echo "failed with PyTorch ${failed[*]}" >&2 && exit 1; }
echo "passed with PyTorch ${releases[*]}"
