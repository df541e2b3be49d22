#!/usr/bin/env bash
# Trains and tests the runs behind the CIFAR tables, then renders tables and figures. What is done is skipped,
# interrupted runs are resumed. --help lists the flags.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" cifar_classification:tables "$@"
