#!/usr/bin/env bash
# Makes .venv with what requirements.txt lists and this project in editable mode; does nothing where nothing changed.
# pip's output is kept in .venv/pip.log, and shown where pip fails.
# $PYTHON chooses the interpreter (default: python3).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

python=${PYTHON:-python3}
stamp=.venv/installed
wanted=$(pwd && cksum requirements.txt pyproject.toml)
[[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit
if [[ -L .venv && -f $stamp && $(head -n 1 "$stamp") != "$(pwd)" ]]; then
    fail ".venv is a link to the one of $(head -n 1 "$stamp"), which would then import this checkout: remove the link"
fi

if [[ ! -x .venv/bin/python ]]; then
    command -v "$python" >/dev/null || fail "$python not found: set PYTHON to a Python of at least 3.10"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old: set PYTHON to a Python of at least 3.10"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module: install it (Debian, Ubuntu: apt install python3-venv) or set PYTHON"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

echo "installing requirements.txt into .venv (PyTorch is a large download)"
log=.venv/pip.log
if ! .venv/bin/python -m pip install --disable-pip-version-check --requirement requirements.txt --editable . &>"$log"; then
    cat "$log" >&2
    echo "error: pip could not install requirements.txt into .venv: its output is above, and in $log" >&2
    exit 1
fi
echo "$wanted" >"$stamp"
