#!/usr/bin/env bash
# Trains and tests the models of the latent-ODE table on hopper data, then draws curves, reconstructions and tables.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: run_latent_ode.sh [--table | --paper] [--shard K/N] [--device NAME] [--data DIR] [--no-report]

Without flags: the quick profile, scaled down, at most 15 minutes on 2 cores. Runs that are done are skipped,
interrupted ones resumed.
  --table        every row, 3 fractions, 3 seeds, scaled down so far that 2 cores take hours
  --paper        the same rows and the extrapolation task with the full recipe; for GPUs and days
  --shard K/N    only every N-th run, from the K-th on (default: 1/1, all of them)
  --device NAME  cpu (the default, fastest for models of the scaled-down sizes), cuda or cuda:N
  --data DIR     cache of the trajectories (default: data/hopper)
  --no-report    leave out figures and tables
TEXT
}

fail() {
    echo "error: $1 (--help lists the options)" >&2
    exit 2
}

profile=quick shard=1/1 device=cpu data=data/hopper report=yes
while (($#)); do
    case $1 in
        --table) profile=table ;;
        --paper) profile=paper ;;
        --shard) shard=${2-} && shift ;;
        --device) device=${2-} && shift ;;
        --data) data=${2-} && shift ;;
        --no-report) report=no ;;
        --help | -h) usage && exit ;;
        *) fail "unknown option $1" ;;
    esac
    shift || fail "the last option needs a value"
done
[[ $shard =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] || fail "--shard $shard is not of the form K/N"
first=${BASH_REMATCH[1]} shards=${BASH_REMATCH[2]}
((first <= shards)) || fail "--shard $shard: K must not exceed N"

# One run a line: preset, task, per cent observed, seed, model. Seed by seed, so that a cut leaves whole rows; the
# continuous adjoint comes last in each: with many outputs it is slowest.
models=(rnn rnn-decay rnn-repaired latent-ode-aca latent-ode-naive latent-ode-rnn-aca rnn-vae latent-ode-adjoint)

quick_runs() {
    for model in "${models[@]}"; do echo quick interpolation 10 0 $model; done
    echo quick extrapolation 50 0 latent-ode-aca
}

table_runs() {
    local preset=${1:-table} seed percent model
    for seed in {0..2}; do
        for percent in 10 20 50; do
            for model in "${models[@]}"; do echo "$preset" interpolation $percent $seed $model; done
        done
    done
}

paper_runs() {
    local seed percent
    table_runs paper
    for seed in {0..2}; do
        for percent in 10 20 50; do echo paper extrapolation $percent $seed latent-ode-aca; done
    done
}

run() {
    local preset=$1 task=$2 percent=$3 seed=$4 model=$5 options=()
    local folder=results/latent_ode_mujoco/$preset/$task-$percent/$model/seed$seed
    local common=(--device "$device" --threads 1 --data "$data")
    [[ -f $folder/test.json ]] && return
    if [[ $model =~ ^(latent-ode(-rnn)?)-(aca|adjoint|naive|direct|mali)$ ]]; then
        model=${BASH_REMATCH[1]} options=(--gradient "${BASH_REMATCH[3]}")
    elif [[ $model == *-repaired ]]; then
        model=${model%-repaired} options=(--repaired)
    fi
    if [[ ! -f $folder/summary.json && -f $folder/checkpoint.pt ]]; then
        .venv/bin/python -m latent_ode_mujoco.train --resume "$folder/checkpoint.pt" "${common[@]}"
    elif [[ ! -f $folder/summary.json ]]; then
        .venv/bin/python -m latent_ode_mujoco.train --preset "$preset" --task "$task" --sample "0.$percent" \
            --seed "$seed" --model "$model" "${options[@]}" "${common[@]}" --out "$folder" --overwrite
    fi
    .venv/bin/python -m latent_ode_mujoco.test "$folder/checkpoint.pt" "${common[@]}" --out "$folder"
}

bash scripts/setup.sh
mapfile -t runs < <("${profile}_runs")
for ((i = first - 1; i < ${#runs[@]}; i += shards)); do
    # shellcheck disable=SC2086 # a line holds five words
    run ${runs[i]}
done
if [[ $report == yes ]]; then
    .venv/bin/python -m latent_ode_mujoco.report
    .venv/bin/python -m latent_ode_mujoco.plot
fi
