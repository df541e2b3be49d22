#!/usr/bin/env bash
# Trains and tests every model of the three-body problem, then draws figures, animations and tables.
# --paper: the paper's settings; --help lists the flags.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" three_body "$@"
