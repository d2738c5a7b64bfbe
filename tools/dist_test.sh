#!/usr/bin/env bash
# Test on several GPUs, or with several CPU processes where there is no GPU:
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]
# On several machines, run it on each with NNODES, NODE_RANK and MASTER_ADDR set; see torchrun.sh.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]" >&2
    exit 2
fi

exec "$(dirname "$0")/torchrun.sh" "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
