#!/usr/bin/env bash
# Builds the documentation site into site/, and fails at any warning. With "serve" as its argument it shows the site on
# http://127.0.0.1:8000 instead, and again whenever a page changes. Needs the extra "docs", which it installs into .venv.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-build} in
    build) command=(build --strict) ;;
    serve) command=(serve) ;;
    *) echo "error: $1: accepted are build and serve" >&2 && exit 2 ;;
esac

bash scripts/setup.sh
python=.venv/bin/python
"$python" -c 'import material, mkdocs, mkdocstrings_handlers.python' 2>/dev/null ||
    "$python" -m pip install --disable-pip-version-check -qq --editable '.[docs]'

# The pages stand in several folders. Links to them in one folder keep their places, so that links between pages are good
# in the site and in the repository alike.
pages=build/site
rm -rf "$pages"
mkdir -p "$pages"
for path in README.md CONTRIBUTING.md CHANGELOG.md LICENSE CITATION.cff docs examples results benchmarks \
    cifar_classification latent_ode_mujoco neural_ode_2018 three_body van_der_pol; do
    ln -s "../../$path" "$pages/$path"
done
NO_MKDOCS_2_WARNING=1 exec "$python" -m mkdocs "${command[@]}"
