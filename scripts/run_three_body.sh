#!/usr/bin/env bash
# Trains and tests every model of the three-body problem, then draws figures, animations and tables.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'TEXT'
usage: run_three_body.sh [--paper] [--shard K/N] [--device NAME] [--no-report]

Without flags: the quick profile, scaled down, minutes on 2 cores. Runs that are done are skipped, interrupted ones resumed.
  --paper        the paper's settings: 5 seeds of the paper's system, then 5 random systems; hours on 2 cores
  --shard K/N    only every N-th run, from the K-th on (default: 1/1, all of them)
  --device NAME  cpu (the default, fastest for models this small), cuda or cuda:N
  --no-report    leave out figures, animations and tables
TEXT
}

fail() {
    echo "error: $1 (--help lists the options)" >&2
    exit 2
}

profile=quick shard=1/1 device=cpu report=yes
while (($#)); do
    case $1 in
        --paper) profile=paper ;;
        --shard) shard=${2-} && shift ;;
        --device) device=${2-} && shift ;;
        --no-report) report=no ;;
        --help | -h) usage && exit ;;
        *) fail "unknown option $1" ;;
    esac
    shift || fail "the last option needs a value"
done
[[ $shard =~ ^([1-9][0-9]*)/([1-9][0-9]*)$ ]] || fail "--shard $shard is not of the form K/N"
first=${BASH_REMATCH[1]} shards=${BASH_REMATCH[2]}
((first <= shards)) || fail "--shard $shard: K must not exceed N"

# One run a line: preset, system, seed, model. The continuous adjoint comes last: with many outputs it is slowest.
quick_runs() {
    echo released paper 0 ode-aca
    for model in lstm lstm-aug {node,ode}-{aca,naive,adjoint}; do echo quick paper 0 $model; done
}

paper_runs() {
    local seed model models=(ode-aca node-aca lstm lstm-aug ode-naive node-naive ode-adjoint node-adjoint)
    for seed in {0..4}; do echo released paper $seed ode-aca; done
    for seed in {0..4}; do for model in "${models[@]}"; do echo paper paper $seed $model; done; done
    for seed in {1..5}; do for model in "${models[@]}"; do echo paper $seed 0 $model; done; done
}

run() {
    local preset=$1 system=$2 seed=$3 model=$4 gradient=()
    local name=random-$system
    [[ $system == paper ]] && name=paper
    local folder=results/three_body/$preset/$name/$model/seed$seed
    [[ -f $folder/test.json ]] && return
    [[ $model =~ ^(node|ode)-(.*)$ ]] && model=${BASH_REMATCH[1]} gradient=(--gradient "${BASH_REMATCH[2]}")
    if [[ ! -f $folder/summary.json && -f $folder/checkpoint.pt ]]; then
        .venv/bin/python -m three_body.train --resume "$folder/checkpoint.pt" --device "$device" --threads 1
    elif [[ ! -f $folder/summary.json ]]; then
        .venv/bin/python -m three_body.train --preset "$preset" --system "$system" --seed "$seed" --model "$model" \
            "${gradient[@]}" --device "$device" --threads 1 --out "$folder" --overwrite
    fi
    .venv/bin/python -m three_body.test "$folder/checkpoint.pt" --device "$device" --threads 1 --out "$folder"
}

bash scripts/setup.sh
mapfile -t runs < <("${profile}_runs")
for ((i = first - 1; i < ${#runs[@]}; i += shards)); do
    # shellcheck disable=SC2086 # a line holds four words
    run ${runs[i]}
done
if [[ $report == yes ]]; then
    .venv/bin/python -m three_body.report
    .venv/bin/python -m three_body.plot
fi
