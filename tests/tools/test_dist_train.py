"""Training in several processes and on several machines: dist_train.sh and slurm_train.sh."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import torch

pytest.importorskip("mmengine")
from dr2net.openmmlab.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[2]
SECONDS = 300

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "PYTHON": sys.executable,
}

# Instead of train.py and test.py: what processes agree on, without the seconds OpenMMLab takes.
SUM_OF_RANKS = """
import sys, torch
from torch import distributed
distributed.init_process_group("gloo")
total = torch.tensor(distributed.get_rank() + 1)
distributed.all_reduce(total)
print(f"sum {total} of {distributed.get_world_size()} for {sys.argv[1:]}", flush=True)
distributed.destroy_process_group()
"""

# A model that its process group outlives, as a runner does; what threads are left is printed.
THREADS_LEFT = """
from pathlib import Path
import torch
from torch import distributed
from tools.command_line import leave_process_group

def main():
    distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model.cycle = [model]
    model(torch.ones(1, 2)).sum().backward()
    print("while open:", threads())

def threads():
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))

main()
leave_process_group()
print("when left:", threads())
"""

# A process is lost once, in the second epoch.
LOST_WORKER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class LoseWorker(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == 1 and runner.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""

# Runs tasks as srun does, on this machine, and writes down the options it got.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
    echo "$1" >> "$(dirname "$0")/options"
    [[ $1 == --ntasks=* ]] && export SLURM_NTASKS=${1#*=}
    shift
done
export SLURM_JOB_ID=$$ SLURM_NODELIST="node[1]"
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    wait -n || exit
done
"""

SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames node[1]" ] && printf '127.0.0.1\\n127.0.0.2\\n'
"""


def start(*command, **environment):
    """Start a command; return the process and the file that takes its output."""
    output = TemporaryFile("w+")  # noqa: SIM115 - finish() reads it
    command = [str(part) for part in command]
    environment = os.environ | ENVIRONMENT | environment
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=output
    ), output


def finish(runs):
    """Wait for commands to end; return their exit codes and outputs, and show these to pytest."""
    try:
        codes = [process.wait(timeout=SECONDS) for process, _ in runs]
    finally:
        for process, _ in runs:
            process.terminate()
        outputs = [output.seek(0) or output.read() for _, output in runs]
        print(*outputs)
    return codes, outputs


def assert_same_weights(first, second):
    first, second = (open_checkpoint(path)["state_dict"] for path in (first, second))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def options(work_dir):
    return "--work-dir", work_dir, "--no-validate", "--seed", "7"


@pytest.fixture(scope="module")
def one_machine(trained, tmp_path_factory):
    """The config and work folder of a run of two epochs in two processes of one machine."""
    config, folder = trained[0], tmp_path_factory.mktemp("one_machine")
    codes, _ = finish([start("tools/dist_train.sh", config, 2, *options(folder))])
    assert codes == [0]
    return config, folder


def network_namespaces():
    """Names for two network namespaces and the ends of a cable between them, and commands that
    make them.
    """
    names = [f"dr2net{os.getpid()}{side}" for side in "ab"]
    ends = [f"dr{os.getpid()}{side}" for side in "ab"]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add {ends[0]} type veth peer name {ends[1]}"]
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        commands += [
            f"ip link set {end} netns {name}",
            f"ip -n {name} addr add 10.213.7.{number}/24 dev {end}",
            f"ip -n {name} link set {end} up",
            f"ip -n {name} link set lo up",
        ]
    return names, ends, commands


@pytest.fixture(scope="module")
def machines():
    """Starts a command on each of two machines: in network namespaces of their own, if we may make
    them, else beside each other.
    """
    names, ends, commands = network_namespaces()
    made = all(
        shutil.which("ip") and subprocess.run(command.split(), capture_output=True).returncode == 0
        for command in commands
    )
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])

    def start_on_both(*command, **environment):
        running = []
        for number, (name, end) in enumerate(zip(names, ends, strict=True)):
            running.append(
                start(
                    *(["ip", "netns", "exec", name] if made else []),
                    *command,
                    NNODES="2",
                    NODE_RANK=str(number),
                    MASTER_ADDR="10.213.7.1" if made else "127.0.0.1",
                    PORT=port,
                    GLOO_SOCKET_IFNAME=end if made else "lo",
                    **environment,
                )
            )
        return running

    yield start_on_both
    for name in names:
        if shutil.which("ip"):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class TestOneMachine:
    def test_runs_beside_each_other_find_their_own_ports(self, tmp_path):
        for script in ("dist_train.sh", "dist_test.sh", "torchrun.sh"):
            shutil.copy(ROOT / "tools" / script, tmp_path)
        for script in ("train.py", "test.py"):
            (tmp_path / script).write_text(SUM_OF_RANKS)
        training = start(tmp_path / "dist_train.sh", "config.py", 2, "--amp")
        testing = start(tmp_path / "dist_test.sh", "config.py", "last.pth", 2)
        codes, (trained, tested) = finish([training, testing])
        assert codes == [0, 0]
        arguments = "['config.py', '--launcher', 'pytorch', '--amp']"
        assert trained.count(f"sum 3 of 2 for {arguments}") == 2
        arguments = "['config.py', 'last.pth', '--launcher', 'pytorch']"
        assert tested.count(f"sum 3 of 2 for {arguments}") == 2

    @pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
    def test_no_thread_is_left_that_could_abort_the_process(self):
        codes, (output,) = finish([start(sys.executable, "-c", THREADS_LEFT)])
        assert codes == [0]
        opened, left = output.splitlines()[-2:]
        assert "gloo" in opened
        assert "gloo" not in left

    @pytest.mark.parametrize(
        ("given", "missing"), [({}, "NODE_RANK"), ({"NODE_RANK": "1"}, "MASTER_ADDR")]
    )
    def test_what_several_machines_need_is_asked_for(self, given, missing):
        codes, (output,) = finish([start("tools/dist_train.sh", "c.py", 1, NNODES="2", **given)])
        assert codes == [1]
        assert f"set {missing}, the " in output


class TestSeveralMachines:
    @pytest.mark.slow  # the last lines of the next test show it too
    def test_train_as_one_machine_with_as_many_processes(self, one_machine, machines, tmp_path):
        config, alone = one_machine
        running = machines("tools/dist_train.sh", config, 1, *options(tmp_path))
        assert finish(running)[0] == [0, 0]
        assert_same_weights(tmp_path / "epoch_2.pth", alone / "epoch_2.pth")

    def test_a_lost_worker_ends_the_job_with_its_name_and_a_restart_resumes(
        self, one_machine, machines, tmp_path
    ):
        config, unbroken = one_machine
        (tmp_path / "lose_worker.py").write_text(LOST_WORKER)
        losing = tmp_path / "losing.py"
        losing.write_text(
            f'_base_ = "{config}"\ncustom_hooks = [dict(type="LoseWorker")]\n'
            'custom_imports = dict(imports=["tasks.video", "lose_worker"])\n'
        )
        work = options(tmp_path / "run")
        running = machines("tools/dist_train.sh", losing, 1, *work, PYTHONPATH=str(tmp_path))
        codes, outputs = finish(running)
        assert codes == [1, 1]
        lost = r"host +: \S+\n +rank +: 1 \(local_rank: 0\)\n +exitcode +: -9 .*\n(.*\n)*?.*SIGKILL"
        assert re.search(lost, outputs[1])
        assert not (tmp_path / "run/epoch_2.pth").exists()

        running = machines("tools/dist_train.sh", config, 1, *work, "--resume")
        assert finish(running)[0] == [0, 0]
        assert_same_weights(tmp_path / "run/epoch_2.pth", unbroken / "epoch_2.pth")


def test_slurm_tasks_train_as_processes_of_one_machine(one_machine, tmp_path):
    config, alone = one_machine
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    running = start(
        "tools/slurm_train.sh", "gpus", "my job", config, *options(tmp_path / "run"),
        PATH=f"{tmp_path}:{os.environ['PATH']}", GPUS="2", CPUS_PER_TASK="3",
        SRUN_ARGS="--time=1-00 --qos=long",
    )  # fmt: skip
    assert finish([running])[0] == [0]
    assert (tmp_path / "options").read_text().splitlines() == [
        "--partition=gpus",
        "--job-name=my job",
        "--gres=gpu:2",
        "--ntasks=2",
        "--ntasks-per-node=2",
        "--cpus-per-task=3",
        "--kill-on-bad-exit=1",
        "--time=1-00",
        "--qos=long",
    ]
    assert_same_weights(tmp_path / "run/epoch_2.pth", alone / "epoch_2.pth")
