"""How many kernels a GPU is sent for PointViT's forward on a crop of 24,000 points."""

import contextlib
from collections import Counter

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
pytest.importorskip("triton")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.pointcloud import PointViT, kernels, neighbours

MOST = 300
# As configs/_base_/models/pix4point_s.py.
PIX4POINT_S = {"checkpoint_embedding": True}
# What launches no kernel on a GPU: allocations and views.
LAUNCHES_NOTHING = {
    "_unsafe_view", "detach", "empty", "expand", "new_empty", "permute", "select", "slice", "split",
    "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip
# Sorting the places of the points: several kernels of a radix sort, and what fills their buffers.
SEVERAL = {"sort": 16}


class Launches(TorchDispatchMode):
    """Counts the operations that launch something on a GPU, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in LAUNCHES_NOTHING:
            self.counts[name] += SEVERAL.get(name, 1)
        return function(*args, **(kwargs or {}))


def stand_ins(monkeypatch, launches):
    """Has a CPU go the way of a GPU, but for three kernels: each counts as one launch."""

    class StandIn:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return self

        def __call__(self, *arguments, **options):
            launches.counts[self.name] += 1
            for values in arguments:
                # The indices that are returned, among others; by no operation of torch.
                if isinstance(values, torch.Tensor) and values.dtype == torch.int64:
                    values.numpy()[:] = 0

    for name in ("_place", "_sample", "_search"):
        monkeypatch.setattr(kernels, name, StandIn(name))
    monkeypatch.setattr(neighbours, "_kernels", lambda _: kernels)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: contextlib.nullcontext())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_crop_takes_at_most_300_launches(monkeypatch, training):
    model = PointViT(**PIX4POINT_S).train(training)
    coord, feat = torch.rand(1, 24_000, 3), torch.rand(1, 24_000, 4)
    launches = Launches()
    stand_ins(monkeypatch, launches)
    with torch.set_grad_enabled(training), launches:
        model(coord, feat)
    assert [launches.counts[name] for name in ("_place", "_sample", "_search")] == [1, 1, 2]
    # One wait for the GPU: whether coordinates are finite.
    assert launches.counts["_local_scalar_dense"] == 1
    print(launches.counts.total(), launches.counts)
    assert launches.counts.total() <= MOST


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_gpu_is_sent_at_most_300_kernels(training):
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    model = PointViT(**PIX4POINT_S).cuda().train(training)
    coord, feat = torch.rand(1, 24_000, 3).cuda(), torch.rand(1, 24_000, 4).cuda()
    with torch.set_grad_enabled(training):
        model(coord, feat)  # what is compiled and tried once
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            model(coord, feat)
            torch.cuda.synchronize()
    sent = Counter(e.name for e in profiler.events() if e.device_type == DeviceType.CUDA)
    print(sent.total(), sent)
    assert 0 < sent.total() <= MOST
