#!/usr/bin/env bash
# Start a script of this folder in several processes, as dist_train.sh and dist_test.sh do:
#   tools/torchrun.sh PROCESSES SCRIPT [options of the script]
# On one machine a free port is found, so that runs beside each other do not meet. On several, set
#   NNODES       how many there are
#   NODE_RANK    which one this is, from 0
#   MASTER_ADDR  the address of number 0
#   PORT         a port that is free there (29500)
set -euo pipefail

if [ "${NNODES:-1}" = 1 ]; then
    # The name of a machine need not resolve: its own address does.
    rendezvous=(--standalone --local-addr=127.0.0.1)
else
    # Of fixed ranks: the first process, which writes checkpoints, runs where NODE_RANK says.
    : "${NODE_RANK:?set NODE_RANK, the number of this machine from 0, as NNODES is $NNODES}"
    : "${MASTER_ADDR:?set MASTER_ADDR, the address of the machine of NODE_RANK 0}"
    rendezvous=(
        --nnodes="$NNODES" --node-rank="$NODE_RANK"
        --master-addr="$MASTER_ADDR" --master-port="${PORT:-29500}"
    )
fi

exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node="$1" \
    "$(dirname "$0")/$2" "${@:3}"
