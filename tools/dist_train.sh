#!/usr/bin/env bash
# Train on several GPUs, or with several CPU processes where there is no GPU:
#   tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# On several machines, run it on each with NNODES, NODE_RANK and MASTER_ADDR set; see torchrun.sh.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]" >&2
    exit 2
fi

exec "$(dirname "$0")/torchrun.sh" "$2" train.py "$1" --launcher pytorch "${@:3}"
