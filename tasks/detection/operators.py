"""mmcv's compiled operators in PyTorch and torchvision, for an mmcv that lacks them.

Deformable attention (Zhu et al., https://arxiv.org/abs/2010.04159), sigmoid focal loss (Lin et al.,
https://arxiv.org/abs/1708.02002), NMS and RoIAlign (He et al., https://arxiv.org/abs/1703.06870)
are what mmdetection's DINO, RetinaNet and Faster R-CNN call. Here are bodies for them with the
arguments of ``mmcv._ext``, so that mmcv's modules, parameter names and autograd functions stay as
they are. An mmcv with compiled operators keeps its own. The backward bodies differentiate the
forward computed anew: as in mmcv, only an operator's inputs are kept for backward.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torchvision.ops
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import one_hot

from dr2net.openmmlab import compatibility

__all__ = ["OPERATORS", "install"]


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention by ``grid_sample``.

    Args:
        value: (batch, keys, heads, channels), the levels one after another.
        spatial_shapes: (levels, 2), height and width.
        level_start_index: not needed, ``spatial_shapes`` says it.
        sampling_locations: (batch, queries, heads, levels, points, 2), x and y from 0 to 1.
        attention_weights: (batch, queries, heads, levels, points).
        im2col_step: not needed, the batch is computed at once.

    Returns:
        (batch, queries, heads * channels), of the dtype of ``value``.
    """
    # As the compiled operator, which does not see autocast; one transfer for all sizes.
    with torch.autocast(value.device.type, enabled=False):
        return multi_scale_deformable_attn_pytorch(
            value, spatial_shapes.tolist(), sampling_locations, attention_weights
        )


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_locations: Tensor,
    grad_attention_weights: Tensor,
    im2col_step: int,
) -> None:
    """Writes the gradients of ``ms_deform_attn_forward``'s tensors into the ``grad_`` tensors."""

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn_forward(
            value, spatial_shapes, level_start_index, locations, weights, im2col_step
        )

    inputs = (value, sampling_locations, attention_weights)
    gradients = _gradients(attend, inputs, grad_output)
    for target, gradient in zip(
        (grad_value, grad_sampling_locations, grad_attention_weights), gradients, strict=True
    ):
        target.copy_(gradient)


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the focal loss of every box and class into ``output``.

    Args:
        logits, output: (boxes, classes).
        target: (boxes,), each box's class; the number of classes is background.
        weight: (classes,), by which a box of the class counts, or empty.
        gamma, alpha: of the paper's equation 5.
    """
    output.copy_(_focal_loss(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the derivative of every element's loss by its logit into ``grad_input``."""

    def loss(logits: Tensor) -> Tensor:
        return _focal_loss(logits, target, weight, gamma, alpha)

    (gradient,) = _gradients(loss, (logits,), torch.ones_like(logits))
    grad_input.copy_(gradient)


def _focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    classes = logits.size(1)
    of_class = one_hot(target, classes + 1)[:, :classes]
    with torch.autocast(logits.device.type, enabled=False):
        loss = py_sigmoid_focal_loss(logits, of_class, gamma=gamma, alpha=alpha, reduction="none")
    return loss * weight[target, None] if weight.numel() else loss


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that stay, best first.

    Args:
        boxes: (boxes, 4), left, top, right, bottom.
        scores: (boxes,).
        iou_threshold: a box that overlaps a better one by more goes.
        offset: 1 where right and bottom are a box's last pixels, 0 where they are its ends.
    """
    dtype = torch.promote_types(boxes.dtype, scores.dtype)  # torchvision wants one
    ends = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(ends.to(dtype), scores.to(dtype), iou_threshold)


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the features averaged over each part of each region into ``output``.

    Args:
        features: (images, channels, height, width).
        rois: (regions, 5), the number of the image, left, top, right, bottom.
        output: (regions, channels, aligned_height, aligned_width).
        argmax_y, argmax_x: of the mode "max", which is not there.
        spatial_scale: size of the features by size of the image.
        sampling_ratio: samples along each side of a part; 0 takes as many as there are pixels.
        pool_mode: 1, the mean.
        aligned: whether a pixel's centre lies half a pixel from its corner.

    Raises:
        RuntimeError: ``pool_mode`` is another.
    """
    if pool_mode != 1:
        raise RuntimeError(
            "RoIAlign with pool_mode='max' needs mmcv's compiled operators, which this mmcv lacks: "
            "install onedl-mmcv with them, or use pool_mode='avg'."
        )
    size = (aligned_height, aligned_width)
    with torch.autocast(features.device.type, enabled=False):
        output.copy_(
            torchvision.ops.roi_align(
                features, rois.to(features), size, spatial_scale, sampling_ratio, aligned
            )
        )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_features: Tensor,
    **options: Any,
) -> None:
    """Writes the gradient of the features into ``grad_features``."""

    def align(features: Tensor) -> Tensor:
        output = torch.empty_like(grad_output)
        roi_align_forward(features, rois, output, argmax_y, argmax_x, **options)
        return output

    # Linear in the features, so that their values, which mmcv has not kept, make no difference.
    (gradient,) = _gradients(align, (torch.zeros_like(grad_features),), grad_output)
    grad_features.copy_(gradient)


def _gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    return torch.autograd.grad(output, leaves, grad_output)


OPERATORS: dict[str, Callable[..., Any]] = {
    operator.__name__: operator
    for operator in (
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        nms,
        roi_align_forward,
        roi_align_backward,
    )
}


def install() -> bool:
    """Put ``OPERATORS`` in the place of missing ones; returns whether they were missing.

    The first call of one of them says so in the log: that of the run, which begins after this.
    """
    return compatibility.provide_operators(
        {name: _announcing(operator) for name, operator in OPERATORS.items()}
    )


def _announcing(operator: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operator)
    def announced(*args: Any, **kwargs: Any) -> Any:
        _announce()
        return operator(*args, **kwargs)

    return announced


@functools.cache
def _announce() -> None:
    print_log(
        "this mmcv has no compiled operators; PyTorch and torchvision take the place of "
        + ", ".join(OPERATORS),
        logger="current",
    )
