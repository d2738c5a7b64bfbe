import numpy as np
import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
import torch

from dr2net.diagnostics import bytes_kept
from tasks.pointcloud.decoder import (
    FeaturePropagation,
    FeaturePropagationHead,
    interpolate,
    interpolation,
)
from tasks.pointcloud.point_vit import PointViT


def test_interpolation_is_the_mean_of_three_neighbours_by_inverse_distance():
    coord, source, values = torch.rand(2, 20, 3), torch.rand(2, 9, 3), torch.randn(2, 9, 5)
    found = interpolate(values, *interpolation(coord, source)).numpy()
    for cloud in range(2):
        distance = np.linalg.norm(coord[cloud, :, None] - source[cloud], axis=2)
        for point in range(20):
            nearest = np.argsort(distance[point])[:3]
            weights = 1 / distance[point][nearest]
            expected = weights @ values[cloud].numpy()[nearest] / weights.sum()
            np.testing.assert_allclose(found[cloud, point], expected, rtol=1e-4, atol=1e-5)


def test_a_point_among_the_sources_keeps_its_values():
    source, values = torch.rand(1, 9, 3), torch.randn(1, 9, 5)
    # The other two neighbours weigh 1e-8 by their distance.
    torch.testing.assert_close(
        interpolate(values, *interpolation(source, source)), values, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("sources", [1, 2])
def test_fewer_than_three_sources_serve(sources):
    values = torch.ones(1, sources, 5)
    found = interpolate(values, *interpolation(torch.rand(1, 6, 3), torch.rand(1, sources, 3)))
    torch.testing.assert_close(found, torch.ones(1, 6, 5))


def test_values_get_their_gradients():
    coord, source = torch.rand(1, 6, 3).double(), torch.rand(1, 4, 3).double()
    values = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    weights = interpolate(torch.eye(4, dtype=torch.float64)[None], *interpolation(coord, source))
    gradient = torch.randn(1, 6, 2, dtype=torch.float64)
    interpolate(values, *interpolation(coord, source)).backward(gradient)
    torch.testing.assert_close(values.grad, weights.transpose(1, 2) @ gradient)


def test_propagation_mixes_in_the_skipped_features():
    propagation = FeaturePropagation(5, 2, 8)
    coord, source, values = torch.rand(1, 6, 3), torch.rand(1, 4, 3), torch.randn(1, 4, 5)
    skip = torch.randn(1, 6, 2, requires_grad=True)
    propagation(skip, values, *interpolation(coord, source)).square().sum().backward()
    assert (skip.grad.abs().amax(2) > 0).all()


def make():
    backbone = PointViT(embed_dims=32, depth=1, num_heads=2, group_size=8)
    head = FeaturePropagationHead((7, 16, 32), num_classes=5, channels=24, hidden_channels=16)
    return backbone.eval(), head.eval()


def test_every_point_gets_logits():
    backbone, head = make()
    assert head(*backbone(torch.rand(2, 100, 3), torch.rand(2, 100, 4))).shape == (2, 5, 100)


@pytest.mark.parametrize("part", ["point", "stage", "token", "class token", "other point"])
def test_logits_of_a_point_depend_on_every_part(part):
    backbone, head = make()
    coords, features, class_token = backbone(torch.rand(1, 100, 3), torch.rand(1, 100, 4))
    inputs = [value.detach().requires_grad_() for value in (*features, class_token)]
    # Through interpolation a token reaches the points around it, through the maximum all.
    head(coords, inputs[:3], inputs[3])[0, 0, 0].backward()
    point, stage, token, class_token = (value.grad.abs() for value in inputs)
    reached = {
        "point": point[0, 0],
        "stage": stage,
        "token": token,
        "class token": class_token,
        "other point": point[0, 1:],
    }
    assert reached[part].max() > 0


def test_dropout_is_on_in_training():
    backbone, head = make()
    inputs = backbone(torch.rand(1, 100, 3), torch.rand(1, 100, 4))
    assert torch.equal(head(*inputs), head(*inputs))
    head.train()
    assert not torch.equal(head(*inputs), head(*inputs))


def test_a_decoder_computed_again_keeps_less_and_has_the_same_gradients():
    backbone, head = make()
    coords, features, class_token = backbone(torch.rand(2, 400, 3), torch.rand(2, 400, 4))
    inputs = [value.detach() for value in (*features, class_token)]
    gradients, kept = [], []
    for head.checkpoint_propagation in (False, True):
        head.zero_grad()
        head(coords, inputs[:3], inputs[3]).sin().sum().backward()
        gradients.append([value.grad.clone() for value in head.parameters()])
        kept.append(bytes_kept(lambda: head(coords, inputs[:3], inputs[3])))
    for one, other in zip(*gradients, strict=True):
        # They are summed over the clouds in another order.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())
    assert kept[1] < kept[0] / 2
