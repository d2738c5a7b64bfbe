import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch

from tasks.video.localization import ActionFormerPyramid
from tasks.video.localization.pyramid import LocalAttention


def everything(positions, windows=1):
    return torch.ones(windows, positions, dtype=torch.bool)


def one_position_at_a_time(attention, x, mask):
    """What ``attention`` computes, by a loop over positions and heads."""

    def shaped(shape):
        conv, norm, project = shape
        return project(norm(conv(x) * mask[:, None]))

    query, key, value = (shaped(s)[0].T for s in (attention.query, attention.key, attention.value))
    width = x.shape[1] // attention.heads
    reach = len(query) if attention.window is None else attention.window // 2
    rows = []
    for place in range(len(query)):
        near = [
            other
            for other in range(len(query))
            if abs(other - place) <= reach and (mask[0, other] or other == place)
        ]
        row = []
        for head in range(attention.heads):
            part = slice(head * width, (head + 1) * width)
            weights = (key[near][:, part] @ query[place, part] / width**0.5).softmax(0)
            row.append(weights @ value[near][:, part])
        rows.append(torch.cat(row))
    return attention.proj(torch.stack(rows).T[None]) * mask[:, None]


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_attention_is_its_definition(window, stride):
    attention = LocalAttention(8, 2, window, stride).double()
    x, mask = torch.randn(1, 8, 16).double(), everything(16 // stride)
    mask[0, -3:] = False
    expected = one_position_at_a_time(attention, x, mask)
    torch.testing.assert_close(attention(x, mask), expected)


@pytest.mark.parametrize("window", [0, 4, -1])
def test_an_even_window_is_refused(window):
    with pytest.raises(ValueError, match="window is an odd number of positions or None"):
        LocalAttention(8, 2, window, 1)


def build(**options):
    return ActionFormerPyramid(6, channels=8, positions=32, levels=4, heads=2, **options)


def test_levels_halve_positions_and_masks():
    mask = everything(32)
    mask[:, 20:] = False
    features, masks = build()(torch.randn(1, 6, 32), mask)
    assert [x.shape for x in features] == [(1, 8, count) for count in (32, 16, 8, 4)]
    assert [m.sum().item() for m in masks] == [20, 10, 5, 3]


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"position_embedding": True}])
def test_padding_does_not_reach_what_is_not(options):
    pyramid = build(**options).eval()
    x, mask = torch.randn(1, 6, 32), everything(32)
    mask[:, 24:] = False
    x[:, :, 24:] = 0
    features, masks = pyramid(x, mask)
    other = x.clone()
    other[:, :, 26:] = 100
    changed, _ = pyramid(other, mask)
    for a, b, valid in zip(features, changed, masks, strict=True):
        assert torch.equal(a[..., valid[0]], b[..., valid[0]])


def test_local_windows_see_less():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 32)
    far = x.clone()
    far[:, :, -1] += 10
    for window, same in ((3, True), (None, False)):
        pyramid = build(window=window).eval()
        (before, *_), _ = pyramid(x, everything(32))
        (after, *_), _ = pyramid(far, everything(32))
        assert torch.equal(before[..., 0], after[..., 0]) == same


def test_windows_of_levels_may_differ():
    windows = [block.attn.window for block in build(window=[7, 5, 3, None]).branch]
    assert windows == [5, 3, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 36}, "positions 36 have to be a multiple of 8"),
        ({"window": [3, 3]}, "window: expected one for each of 4 levels"),
        ({"heads": 3}, "channels 8 have to be a multiple of heads 3"),
    ],
)
def test_settings_that_do_not_fit_are_named(options, message):
    settings = {"positions": 32, "levels": 4, "heads": 2, **options}
    with pytest.raises(ValueError, match=message):
        ActionFormerPyramid(6, channels=8, **settings)
