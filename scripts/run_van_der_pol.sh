#!/usr/bin/env bash
# Measures and draws the van der Pol experiment into results/van_der_pol/ (at most 5 minutes on 2 cores).
# --train also runs what is missing of the training runs (more minutes): runs that are there stay, broken ones go on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

train=false
for argument in "$@"; do
    case $argument in
        --train) train=true ;;
        -h | --help) sed -n 's/^# //p' "${BASH_SOURCE[0]}" && exit ;;
        *) echo "error: $argument: accepted are --train and --help" >&2 && exit 2 ;;
    esac
done

bash scripts/setup.sh
python=.venv/bin/python
jobs=()
for measurement in "depth gradient_error" "test picture"; do # two at a time, one per core
    (for name in $measurement; do "$python" "van_der_pol/$name.py" --overwrite; done) &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done

if $train; then
    for gradient in aca direct naive adjoint mali; do
        for problem in parameter neural; do
            for seed in 0 1 2 3 4; do
                folder=results/van_der_pol/train/${problem}_${gradient}_seed$seed
                [[ -e $folder/summary.json ]] && continue
                flags=(--problem "$problem" --gradient "$gradient" --seed "$seed" --threads 1)
                if [[ -e $folder/checkpoint.pt ]]; then
                    "$python" van_der_pol/train.py "${flags[@]}" --resume "$folder/checkpoint.pt"
                else
                    "$python" van_der_pol/train.py "${flags[@]}" --overwrite
                fi
            done
        done
    done
fi
"$python" van_der_pol/plot.py
