#!/usr/bin/env bash
# Measures and draws the van der Pol experiment into results/van_der_pol/ (at most 5 minutes on 2 cores).
# --train: and what is missing of the training runs; --help lists the flags.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" van_der_pol "$@"
