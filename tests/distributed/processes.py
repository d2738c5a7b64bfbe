"""Runs a function in several processes that form a gloo group."""

from __future__ import annotations

import io
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
from torch import distributed

# Processes fork from one that has imported what takes seconds to import, some of it when it is
# first used.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "timm.models"]
)

# By rank. They outlive a call, since PyTorch's first operations in a process take a second.
_workers: list[tuple[Any, Connection]] = []

SECONDS = 180

# In PyTorch 2.6 FSDP2 asks streams of the CPU for what they have not: there it runs on GPUs alone.
SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")


def run_in_processes(
    count: int, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> list[Any]:
    """Returns what ``function(*args, **kwargs)`` returned in each process, by rank.

    Raises:
        AssertionError: a process raised something, died, or took too long.
    """
    while len(_workers) < count:
        here, there = _context.Pipe()
        process = _context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        _workers.append((process, here))
    with TemporaryDirectory() as folder:
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(_workers[:count])}
        for pipe, rank in waiting.items():
            pipe.send(
                (f"file://{folder}/rendezvous", rank, count, partial(function, *args, **kwargs))
            )
        results, errors = {}, []
        end = monotonic() + SECONDS
        while waiting:
            answered = wait(list(waiting), max(end - monotonic(), 0))
            if not answered:
                errors.append(f"no answer from ranks {sorted(waiting.values())}")
                break
            for pipe in answered:
                rank = waiting.pop(pipe)
                try:
                    error, result = pipe.recv()
                except EOFError:
                    error, result = "it died", b""
                if error:
                    errors.append(f"rank {rank}: {error}")
                    end = min(end, monotonic() + 2)  # the others may wait for it in vain
                results[rank] = result
    if errors:
        for process, _ in _workers:
            process.kill()
        _workers.clear()
        raise AssertionError("\n".join(errors))
    return [torch.load(io.BytesIO(results[rank])) for rank in range(count)]


def _serve(pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for package in ("dr2net", "tests"):
        warnings.filterwarnings("error", module=package)
    while True:
        try:
            rendezvous, rank, count, work = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        result = io.BytesIO()
        try:
            distributed.init_process_group(
                "gloo", init_method=rendezvous, rank=rank, world_size=count
            )
            torch.save(work(), result)
            distributed.destroy_process_group()
        except BaseException:
            pipe.send((traceback.format_exc(), b""))
        else:
            pipe.send(("", result.getvalue()))
