"""Time farthest-point sampling and neighbour search beside Open3D's, in one run.

    python tools/benchmarks/sampling_time.py && python tools/pages/readme_tables.py

The methods take turns, after one untimed turn, so that what else the machine does falls on all of
them. Where there is a GPU, it is timed too.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import open3d
import torch
from torch import Tensor

from tasks.pointcloud import neighbours
from tasks.pointcloud.neighbours import farthest_points, gather_points, nearest_points
from tools.benchmarks.measurements import quartiles
from tools.result_files import markdown_table, origin, write_json

CLOUDS, POINTS, SAMPLED, NEIGHBOURS = 8, 24_000, 6_000, 32
THREADS = 2
SAMPLING = f"sampling {SAMPLED:,} of {POINTS:,} points"
SEARCH = f"{NEIGHBOURS} neighbours of each of {SAMPLED:,} points"


def make_methods(coord: Tensor) -> dict[tuple[str, str], Callable[[], object]]:
    """Return what is timed, by task and method.

    Args:
        coord: (clouds, points, 3) float32 on the CPU.
    """
    centres = gather_points(coord, farthest_points(coord, SAMPLED))
    # Open3D takes double precision; the conversion is not what is timed.
    clouds = [
        open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.double().numpy()))
        for points in coord
    ]

    def without_tree() -> object:
        with mock.patch.object(neighbours, "_open3d", return_value=None):
            return nearest_points(centres, coord, NEIGHBOURS)

    methods: dict[tuple[str, str], Callable[[], object]] = {
        (SAMPLING, "PyTorch, CPU"): lambda: farthest_points(coord, SAMPLED),
        (SAMPLING, "Open3D, CPU"): lambda: [c.farthest_point_down_sample(SAMPLED) for c in clouds],
        (SEARCH, "PyTorch, CPU"): without_tree,
        (SEARCH, "Open3D's tree, checked, CPU"): lambda: nearest_points(centres, coord, NEIGHBOURS),
    }
    if torch.cuda.is_available():
        on_gpu, centres_on_gpu = coord.cuda(), centres.cuda()

        # Copied back, which waits for the GPU.
        def sample() -> Tensor:
            return farthest_points(on_gpu, SAMPLED).cpu()

        def search() -> Tensor:
            return nearest_points(centres_on_gpu, on_gpu, NEIGHBOURS)[0].cpu()

        def without_kernels(run: Callable[[], Tensor]) -> Tensor:
            with mock.patch.object(neighbours, "_kernels", return_value=None):
                return run()

        gpu = torch.cuda.get_device_name()
        for task, run in ((SAMPLING, sample), (SEARCH, search)):
            methods[task, f"PyTorch, {gpu}"] = partial(without_kernels, run)
            if neighbours._kernels(on_gpu.device):
                methods[task, f"Triton, {gpu}"] = run
    return methods


def measure(rounds: int) -> dict:
    """Return the contents of the result file."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    room = torch.tensor([8.0, 6.0, 3.0])  # metres
    methods = make_methods(torch.rand(CLOUDS, POINTS, 3) * room)
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in methods}
    for _ in range(rounds + 1):
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for (task, method), (_, *taken) in seconds.items():
        rows.append({"task": task, "method": method, "seconds": quartiles(taken)})
    return {
        "title": f"Farthest-point sampling and neighbour search of {CLOUDS} clouds at once.",
        **origin("tools/benchmarks/sampling_time.py", ["open3d"], "cpu"),
        "columns": list(rows[0]),
        "rows": rows,
        "notes": (
            f"Median (quartiles) of {rounds} turns that the methods took. PyTorch samples "
            "in float32, all clouds in one loop, and returns indices in the order of selection; "
            "Open3D samples in double precision, one cloud after the other, and returns points in "
            "the order of the cloud. Both ways of searching return the same indices."
        ),
        "seconds": {", ".join(name): taken for name, (_, *taken) in seconds.items()},
    }


def main() -> None:
    """Write results/sampling_time.json and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "results/sampling_time.json")
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    print(markdown_table(result["columns"], result["rows"]))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
