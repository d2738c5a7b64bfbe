"""Deformable attention as its formula says, to compare with; needs PyTorch alone."""

import torch
from torch.nn.functional import grid_sample


def formula(value, shapes, locations, weights):
    """All samples of all levels at once, as mmcv's own PyTorch computes it."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    grids = 2 * locations.permute(3, 0, 2, 1, 4, 5).flatten(1, 2) - 1
    samples, sizes = [], shapes.tolist()
    parts = value.split([height * width for height, width in sizes], 1)
    for part, size, grid in zip(parts, sizes, grids, strict=True):
        pictures = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, *size)
        samples.append(grid_sample(pictures, grid, align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def results(inputs, shapes, grad_output):
    """The output, and the gradients of value, locations and weights, in float64 on a CPU."""
    value, locations, weights = (t.detach().cpu().double().requires_grad_() for t in inputs)
    output = formula(value, shapes.cpu(), locations, weights)
    leaves = (value, locations, weights)
    gradients = torch.autograd.grad(output, leaves, grad_output.cpu().double())
    return [output.detach(), *gradients]
