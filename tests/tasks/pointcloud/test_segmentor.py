import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
import tasks.pointcloud  # noqa: F401  # isort: skip

import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, TRANSFORMS

import dr2net
from tasks.pointcloud import IGNORE, PointCloudSample

BACKBONE = {"type": "PointViT", "embed_dims": 32, "depth": 2, "num_heads": 2, "group_size": 8}
MODEL = {
    "type": "PointCloudSegmentor",
    "backbone": BACKBONE,
    "decode_head": {
        "type": "FeaturePropagationHead",
        "in_channels": (7, 16, 32),
        "num_classes": 5,
        "channels": 24,
    },
    "label_smoothing": 0.2,
}
DR2NET = {"backbone": {"type": "Dr2NetBackbone", "backbone": BACKBONE}}


def build(**options):
    return MODELS.build(MODEL | options)


def packed(name="Area_1_office_1", points=64):
    sample = PointCloudSample(metainfo={"name": name})
    sample.gt_segment = torch.randint(0, 5, (points,))
    return {
        "inputs": {"coord": torch.rand(points, 3), "feat": torch.randn(points, 4)},
        "data_samples": sample,
    }


def batch(*clouds):
    return pseudo_collate([*clouds] or [packed(), packed("Area_1_office_2")])


def logits_of(model, data):
    return model(**model.data_preprocessor(data), mode="tensor")


@pytest.mark.parametrize("options", [{}, DR2NET], ids=["conventional", "Dr²Net"])
def test_a_model_learns_its_batch_by_heart(options):
    head = MODEL["decode_head"] | {"dropout": 0.0}
    model, data = build(label_smoothing=0.0, decode_head=head, **options).train(), batch()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=3e-3))
    losses = [model.train_step(data, optimizer)["loss"].item() for _ in range(60)]
    assert losses[-1] < losses[0] / 3


def test_logits_are_of_clouds_classes_and_points():
    assert logits_of(build(), batch()).shape == (2, 5, 64)


def test_prediction_is_the_class_with_the_largest_logit():
    model, data = build().eval(), batch()
    logits = logits_of(model, data)
    for sample, expected in zip(model.val_step(data), logits, strict=True):
        assert torch.equal(sample.pred_logits, expected)
        assert torch.equal(sample.pred_segment, expected.argmax(0))
        assert sample.pred_segment.dtype == torch.int64


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_network_that_returns_no_numbers_predicts_nothing(value):
    model = build().eval()
    with torch.no_grad():
        next(model.decode_head.parameters()).fill_(value)
    with pytest.raises(ValueError, match="Area_1_office_1: the network returned NaN or infinity"):
        model.val_step(batch())


@pytest.mark.parametrize("class_weight", [None, [1.0, 2.0, 0.5, 1.0, 3.0]])
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_is_the_cross_entropy_of_labelled_points(class_weight, ignored):
    model, data = build(class_weight=class_weight).eval(), batch()
    if ignored:
        data["data_samples"][0].gt_segment[10:] = IGNORE
    loss = model(**model.data_preprocessor(data), mode="loss")["loss_segment"]
    expected = F.cross_entropy(
        logits_of(model, data),
        torch.stack([sample.gt_segment for sample in data["data_samples"]]),
        None if class_weight is None else torch.tensor(class_weight),
        ignore_index=IGNORE,
        label_smoothing=0.2,
    )
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    model, data = build(), batch()
    for sample in data["data_samples"]:
        sample.gt_segment[:] = IGNORE
    loss = model(**model.data_preprocessor(data), mode="loss")["loss_segment"]
    loss.backward()
    assert loss == 0
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


def test_class_weights_are_moved_with_the_model_and_not_saved():
    model = build(class_weight=[1.0] * 5)
    assert model.to(torch.float64).class_weight.dtype == torch.float64
    assert "class_weight" not in model.state_dict()


def test_clouds_of_different_sizes_are_named():
    data = batch(packed(points=64), packed("Area_2_hallway_1", points=65))
    with pytest.raises(ValueError, match=r"\(Area_1_office_1 64, Area_2_hallway_1 65\): crop them"):
        build().data_preprocessor(data)


def test_clouds_of_different_sizes_are_one_batch_each():
    model = build().eval()
    assert [len(model.val_step(batch(packed(points=n)))[0].pred_segment) for n in (64, 65)] == [
        64,
        65,
    ]


@pytest.mark.parametrize("options", [{}, DR2NET], ids=["conventional", "Dr²Net"])
def test_groups_found_by_the_pipeline_change_no_bit(monkeypatch, options):
    model, clouds = build(**options).eval(), [packed(), packed("Area_1_office_2")]
    expected = logits_of(model, batch(*clouds))
    group = TRANSFORMS.build({"type": "GroupPoints", "group_size": 8})
    grouped = [group(cloud) for cloud in clouds]
    monkeypatch.delattr("tasks.pointcloud.point_vit.group_points")  # the network finds none
    assert torch.equal(logits_of(model, batch(*grouped)), expected)


def test_wrong_number_of_class_weights_is_refused():
    with pytest.raises(ValueError, match="class_weight has 4 weights for 5 classes"):
        build(class_weight=[1.0] * 4)


@pytest.mark.parametrize("mode", ["loss", "predict", "other"])
def test_modes_that_cannot_run_are_refused(mode):
    model, data = build(), batch()
    inputs = model.data_preprocessor(data)["inputs"]
    samples = data["data_samples"] if mode == "other" else None
    with pytest.raises(ValueError, match=f"got mode='{mode}'"):
        model(inputs, samples, mode=mode)


def test_a_step_in_mixed_precision_is_close_to_one_without():
    model, data = build(**DR2NET).eval(), batch()
    expected = logits_of(model, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits_of(model, data)
        loss = model(**model.data_preprocessor(data), mode="loss")["loss_segment"]
    assert loss.dtype == torch.float32
    loss.backward()
    # bfloat16 has 8 bits.
    assert (found - expected).norm() < 2**-4 * expected.norm()


def test_verification_of_a_step_passes():
    model, data = build(**DR2NET).train(), batch()
    prepared = model.data_preprocessor(data)
    dr2net.verify_step(model, lambda: model(**prepared, mode="loss")["loss_segment"])
