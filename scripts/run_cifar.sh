#!/usr/bin/env bash
# Trains NODE-18 with ACA on CIFAR-10 (quick profile, for 2 cores), tests it with two other solvers and draws its curves.
# Run it again to go on after an interruption. --paper: the full recipe; --help lists the flags.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" cifar_classification "$@"
