#!/usr/bin/env bash
# Trains and tests the models of the latent-ODE table on hopper data, then draws curves, reconstructions and tables.
# --table, --paper: more runs; --help lists the flags.
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" latent_ode_mujoco "$@"
