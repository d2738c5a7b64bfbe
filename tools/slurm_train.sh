#!/usr/bin/env bash
# Train on a Slurm cluster, on one machine or several:
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# with these from the environment:
#   GPUS           processes, each with a GPU (8)
#   GPUS_PER_NODE  as many of them on each machine (GPUS, at most 8)
#   CPUS_PER_TASK  processor cores for each (5)
#   SRUN_ARGS      further options of srun, such as "--time=1-00 --qos=long"
# A process that ends with an error ends the job; --resume continues it.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2
    exit 2
fi

GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
read -ra more <<< "${SRUN_ARGS:-}"

exec srun --partition="$1" --job-name="$2" --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    "${more[@]}" "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$3" --launcher slurm "${@:4}"
