#!/usr/bin/env bash
# Train on several GPUs, or with several CPU processes where there is no GPU:
#   tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# On several nodes, set NNODES, NODE_RANK and MASTER_ADDR on each.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]" >&2
    exit 2
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    --nproc-per-node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
