import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
from mmengine.registry import MODELS
from mmengine.registry import TRANSFORMS as TRANSFORMS_REGISTRY
from torch import nn

import tasks.pointcloud  # noqa: F401
from tasks.pointcloud import PointCloudSample
from tasks.pointcloud.full_resolution import vote

SHARED = Path(__file__).parents[4] / "shared/data/real/pointcloud/scannet_scene0000_00.bin"
TRANSFORMS = [{"type": "CenterOnFloor"}, {"type": "PackPoints"}]


@MODELS.register_module()
class LinearBackbone(nn.Module):
    """Features by a random matrix of colour and height; counts what it was given."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(4, classes)
        self.sizes = []

    def forward(self, coord, feat):
        self.sizes.append(tuple(coord.shape))
        assert coord[..., 2].min() == 0  # by CenterOnFloor
        return (self.layer(feat).transpose(1, 2),)


@MODELS.register_module()
class PassingHead(nn.Module):
    num_classes = 13

    def forward(self, logits):
        return logits


def build(**settings):
    segmentor = {
        "type": "PointCloudSegmentor",
        "backbone": {"type": "LinearBackbone", "classes": 13},
        "decode_head": {"type": "PassingHead"},
    }
    torch.manual_seed(0)
    config = {"type": "FullResolutionSegmentor", "segmentor": segmentor, "transforms": TRANSFORMS}
    return MODELS.build(config | settings).eval()


def make_room(count=3000, seed=0):
    random = np.random.default_rng(seed)
    coord = random.uniform((10, 20, 1), (14, 23, 4), (count, 3)).astype(np.float32)
    color = random.integers(0, 256, (count, 3)).astype(np.float32)
    return {"coord": coord, "color": color, "height": coord[:, 2] - coord[:, 2].min()}


def as_batch(*rooms):
    inputs = {key: [torch.from_numpy(room[key]) for room in rooms] for key in rooms[0]}
    samples = [PointCloudSample(metainfo={"name": f"room {n}"}) for n in range(len(rooms))]
    return {"inputs": inputs, "data_samples": samples}


def direct(model, room):
    """The class of every point by one pass of all of them."""
    color = room["color"] / 255
    mean, std = (0.5136457, 0.49523646, 0.44921124), (0.18308958, 0.18415008, 0.19252081)
    feat = np.column_stack([(color - mean) / std, room["height"]]).astype(np.float32)
    with torch.no_grad():
        return model.backbone.layer(torch.from_numpy(feat)).softmax(dim=1).T


def test_every_point_of_a_real_room_is_predicted():
    if not SHARED.is_file():
        pytest.skip(f"no real room at {SHARED}")
    values = np.fromfile(SHARED, np.float32).reshape(-1, 6)
    coord = values[:, :3].copy()
    room = {
        "coord": coord,
        "color": values[:, 3:].copy(),
        "height": coord[:, 2] - coord[:, 2].min(),
    }
    model = build(voxel_size=0.1, max_points=4000, batch_size=4)
    with torch.no_grad():
        votes = vote(model, room)
        (sample,) = model.test_step(as_batch(room))
    assert votes.shape == (13, 40_684)
    # Each pass or sphere that a point is in adds probabilities, which sum to 1.
    times = votes.sum(dim=0)
    assert times.min() > 0.99
    assert torch.allclose(times, times.round(), atol=1e-3)
    assert sample.pred_segment.shape == (40_684,)
    assert sample.pred_segment.dtype == torch.int64
    assert sample.full_resolution
    # The stand-in sees single points: votes change none of its predictions.
    assert torch.equal(sample.pred_segment, direct(model, room).argmax(dim=0))


def test_voting_is_direct_prediction_where_every_voxel_has_one_point():
    model, room = build(voxel_size=1e-4), make_room(500)
    results = room
    for config in TRANSFORMS:
        results = TRANSFORMS_REGISTRY.build(config)(results)
    inputs = {key: values[None] for key, values in results["inputs"].items()}
    with torch.no_grad():
        votes, logits = vote(model, room), model(inputs, mode="tensor")
    # To the last bit, also for networks that the order of the points matters to.
    assert torch.equal(votes, logits[0].softmax(dim=0))
    assert model.backbone.sizes == [(1, 500, 3)] * 2


def test_votes_are_the_sum_of_probabilities_over_passes():
    room = make_room()
    with torch.no_grad():
        model = build(voxel_size=0.5)
        votes, probabilities = vote(model, room), direct(model, room)
    times = votes.sum(dim=0)
    assert times.max() > 2
    assert torch.allclose(votes, probabilities * times, atol=1e-4)


def test_a_crowded_voxel_multiplies_nothing_and_every_point_is_predicted(monkeypatch):
    said = []
    monkeypatch.setattr(
        "tasks.pointcloud.full_resolution.print_log", lambda text, **_: said.append(text)
    )
    room, calls = make_room(), []
    count = len(room["coord"])
    crowd = {key: np.zeros((2000, *values.shape[1:]), np.float32) for key, values in room.items()}
    crowd["color"][:] = np.random.default_rng(1).integers(0, 256, 3)
    both = {key: np.concatenate([crowd[key], values]) for key, values in room.items()}
    for some in (room, both):
        model = build(voxel_size=0.5, max_points=None)
        with torch.no_grad():
            (sample,) = model.test_step(as_batch(some))
        calls.append(len(model.backbone.sizes))
        # The stand-in for a network sees single points.
        assert torch.equal(sample.pred_segment, direct(model, some).argmax(dim=0))
    assert sample.pred_segment.shape == (2000 + count,)
    assert calls[0] == calls[1] < 100
    (message,) = said
    assert message.startswith(f"room 0: {2000 - calls[1]} points are not tested themselves")
    assert "in voxels of 0.5 m with more than" in message


def test_passes_larger_than_the_network_takes_are_divided():
    model, room = build(voxel_size=0.2, max_points=400), make_room()
    with torch.no_grad():
        votes = vote(model, room)
    assert {size[1] for size in model.backbone.sizes} == {400}
    assert votes.sum(dim=0).min() > 0.99


@pytest.mark.parametrize("max_points", [None, 400])
def test_the_batch_size_changes_nothing_but_the_number_of_calls(max_points):
    room, found, calls = make_room(), [], []
    for size in (1, 3):
        model = build(voxel_size=0.3, max_points=max_points, batch_size=size)
        with torch.no_grad():
            found.append(vote(model, room))
        calls.append(len(model.backbone.sizes))
        assert max(shape[0] for shape in model.backbone.sizes) == size
    assert torch.allclose(*found, atol=1e-5)
    assert calls[1] == -(-calls[0] // 3)


def test_every_room_of_a_batch_is_predicted_alone():
    model, rooms = build(voxel_size=0.3), [make_room(2000), make_room(1000, seed=1)]
    with torch.no_grad():
        together = model.test_step(as_batch(*rooms))
        alone = [model.test_step(as_batch(room))[0] for room in rooms]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.pred_segment, other.pred_segment)


def test_validation_is_of_the_subsampled_cloud():
    model, room = build(), make_room(100)
    feat = torch.zeros(100, 4)
    coord = torch.from_numpy(room["coord"] - room["coord"].min(axis=0))
    sample = PointCloudSample(metainfo={"name": "room"})
    batch = {"inputs": {"coord": [coord], "feat": [feat]}, "data_samples": [sample]}
    (found,) = model.val_step(batch)
    assert found.pred_segment.shape == (100,)
    assert "full_resolution" not in found


def test_validation_of_whole_rooms_is_a_test():
    model, room = build(voxel_size=0.3), make_room(500)
    with torch.no_grad():
        validated, tested = model.val_step(as_batch(room)), model.test_step(as_batch(room))
    assert torch.equal(validated[0].pred_segment, tested[0].pred_segment)
    assert validated[0].full_resolution


def test_inputs_that_are_subsampled_already_are_no_test():
    model = build()
    batch = {"inputs": {"coord": [torch.zeros(9, 3)], "feat": [torch.zeros(9, 4)]}}
    with pytest.raises(ValueError, match="the test pipeline is AddHeight and PackRoom, but its"):
        model.test_step(batch | {"data_samples": [PointCloudSample()]})


def test_a_room_that_the_network_refuses_is_named(monkeypatch):
    def refuse(*_):
        raise ValueError("takes clouds of at least 128 points, got 40")

    model = build()
    monkeypatch.setattr(model.backbone, "forward", refuse)
    with pytest.raises(ValueError, match="room 0: takes clouds of at least 128 points, got 40"):
        model.test_step(as_batch(make_room(40)))


def test_a_network_that_returns_no_numbers_predicts_nothing():
    model = build()
    with torch.no_grad():
        model.backbone.layer.bias[3] = torch.nan
    with pytest.raises(ValueError, match="room 0: the network returned NaN or infinity"):
        model.test_step(as_batch(make_room()))


def test_parameters_keep_their_names_and_copies_their_kind():
    model = build(voxel_size=0.3)
    plain = MODELS.build(
        {
            "type": "PointCloudSegmentor",
            "backbone": {"type": "LinearBackbone", "classes": 13},
            "decode_head": {"type": "PassingHead"},
        }
    )
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(model, type(plain))
    room = make_room(500)
    with torch.no_grad():
        expected = vote(model, room)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(other) is type(model)
            assert torch.equal(vote(other, room), expected)


def test_a_setting_that_does_not_exist_is_an_error():
    with pytest.raises(TypeError, match="voxels"):
        build(voxels=0.04)
