"""Reading real weights from the ONNX file of a package, and real images from packages."""

import numpy as np
import pytest
import torch

from tools.experiments import image_sets, pretrained

onnx = pytest.importorskip("onnx")

WIDTH, DEPTH = 12, 2


def exported(path, positions=True):
    """Write a file as the export of transformers' Dinov2Model is: linear weights are anonymous."""
    drawn = np.random.default_rng(0)
    arrays, nodes = {}, []

    def add(name, *shape):
        arrays[name] = drawn.normal(size=shape).astype(np.float32)

    def linear(name, inputs, outputs):
        anonymous = f"onnx::MatMul_{len(arrays)}"
        add(anonymous, inputs, outputs)
        add(f"backbone.{name}.bias", outputs)
        node = f"/backbone/{name.replace('.', '/')}/MatMul".replace("layer/", "layer.")
        nodes.append(onnx.helper.make_node("MatMul", ["x", anonymous], ["x"], name=node))

    add("backbone.embeddings.cls_token", 1, 1, WIDTH)
    add("backbone.embeddings.patch_embeddings.projection.weight", WIDTH, 3, 14, 14)
    add("backbone.embeddings.patch_embeddings.projection.bias", WIDTH)
    if positions:
        add("patches", 1, 9, WIDTH)
        add("onnx::Concat_7", 1, 1, WIDTH)
    for part in ("weight", "bias"):
        add(f"backbone.layernorm.{part}", WIDTH)
    for index in range(DEPTH):
        layer = f"encoder.layer.{index}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.attention.{name}", WIDTH, WIDTH)
        linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        linear(f"{layer}.mlp.fc1", WIDTH, 4 * WIDTH)
        linear(f"{layer}.mlp.fc2", 4 * WIDTH, WIDTH)
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                add(f"backbone.{layer}.{name}.{part}", WIDTH)
        for part in (1, 2):
            add(f"backbone.{layer}.layer_scale{part}.lambda1", WIDTH)
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "g", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), str(path))
    return arrays


def test_weights_are_read_under_timms_names(tmp_path):
    import timm

    arrays = exported(tmp_path / "a.onnx")
    found = pretrained.dinov2_weights(tmp_path / "a.onnx")
    model = timm.create_model(
        "vit_small_patch14_dinov2", img_size=42, embed_dim=WIDTH, depth=DEPTH, num_heads=3
    )
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert not missing
    assert not unexpected
    # The query of the first layer is the first anonymous matrix, transposed.
    first = next(array for name, array in arrays.items() if name.startswith("onnx::MatMul"))
    assert torch.equal(model.blocks[0].attn.qkv.weight[:WIDTH], torch.from_numpy(first.T))
    token = torch.from_numpy(arrays["onnx::Concat_7"])
    assert torch.equal(model.pos_embed[:, :1], token)


def test_a_file_of_something_else_is_named(tmp_path):
    exported(tmp_path / "a.onnx", positions=False)
    with pytest.raises(ValueError, match=r"a\.onnx: the positions of its tokens are not found"):
        pretrained.dinov2_weights(tmp_path / "a.onnx")
    empty = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(empty), str(tmp_path / "b.onnx"))
    with pytest.raises(ValueError, match=r"b\.onnx holds no DINOv2"):
        pretrained.dinov2_weights(tmp_path / "b.onnx")


def test_a_package_that_is_not_there_is_named_with_what_to_do():
    with pytest.raises(FileNotFoundError, match=r"requirements/experiments\.txt"):
        pretrained.packaged_file("no-such-package", "a.onnx")


@pytest.mark.parametrize("name", ["fashion_mnist", "emoji"])
def test_sets_are_disjoint_repeatable_and_of_all_classes(name):
    draw = getattr(image_sets, name)
    try:
        found = draw(0, 100, 50, 200)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    again, other = draw(0, 100, 50, 200), draw(1, 100, 50, 200)
    assert torch.equal(found.test.images, again.test.images)
    assert not torch.equal(found.train.labels, other.train.labels)
    parts = (found.train, found.validation, found.test)
    assert [len(part) for part in parts] == [100, 50, 200]
    pictures = [image.numpy().tobytes() for part in parts for image in part.images]
    assert len(set(pictures)) == len(pictures)
    classes = 10 if name == "fashion_mnist" else 6
    assert set(found.test.labels.tolist()) == set(range(classes))
    inputs = image_sets.as_input(found.train.images, 42)
    assert inputs.shape == (100, 3, 42, 42)
    assert -2.2 < inputs.min() < inputs.max() < 2.7


def test_more_images_than_there_are_is_an_error():
    part = image_sets.Part(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3).long())
    with pytest.raises(ValueError, match="4 images are asked for, of 3"):
        image_sets._drawn(part, 0, 2, 2)


def test_missing_sets_name_their_package(monkeypatch, tmp_path):
    monkeypatch.setattr(image_sets, "FASHION_MNIST", tmp_path)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        image_sets.fashion_mnist(0, 1, 1, 1)
    monkeypatch.setattr(image_sets, "NOTO_EMOJI", tmp_path / "font.ttf")
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-noto-color-emoji"):
        image_sets.emoji(0, 1, 1, 1)
