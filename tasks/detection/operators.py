"""mmcv's compiled operators in PyTorch, torchvision and Triton, for an mmcv that lacks them.

Deformable attention (Zhu et al., https://arxiv.org/abs/2010.04159), sigmoid focal loss (Lin et al.,
https://arxiv.org/abs/1708.02002), NMS and RoIAlign (He et al., https://arxiv.org/abs/1703.06870)
are what mmdetection's DINO, RetinaNet and Faster R-CNN call. Here are bodies for them with the
arguments of ``mmcv._ext``, so that mmcv's modules, parameter names and autograd functions stay as
they are. An mmcv with compiled operators keeps its own. The backward bodies differentiate the
forward computed anew: as in mmcv, only an operator's inputs are kept for backward.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision.ops
from mmcv.ops import multi_scale_deform_attn
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmengine.logging import print_log
from torch import Tensor

from dr2net.openmmlab import compatibility

from .deformable_attention import attend, ms_deform_attn_backward, ms_deform_attn_forward
from .recompute import gradients

__all__ = ["OPERATORS", "install"]

LOSSES = 2**22  # computed at once: 16 MB of float32 for each step of the formula


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
    for boxes in _parts(logits):
        output[boxes] = _focal_loss(logits[boxes], target[boxes], weight, gamma, alpha)


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the derivative of every element's loss by its logit into ``grad_input``."""
    for boxes in _parts(logits):
        part, of_part = logits[boxes], target[boxes]
        loss = functools.partial(
            _focal_loss, target=of_part, weight=weight, gamma=gamma, alpha=alpha
        )
        (grad_input[boxes],) = gradients(loss, (part,), torch.ones_like(part))


def _parts(logits: Tensor) -> Iterator[slice]:
    """Boxes at a time, so that what is computed on the way stays small beside the logits."""
    # Whole vectors of a CPU's instructions, which round otherwise than what is left over.
    step = 64 * max(1, LOSSES // max(64 * logits.size(1), 1))
    for start in range(0, len(logits), step):
        yield slice(start, start + step)


def _focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    of_class = target[:, None] == torch.arange(logits.size(1), device=target.device)
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
    (gradient,) = gradients(align, (torch.zeros_like(grad_features),), grad_output)
    grad_features.copy_(gradient)


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

    So is mmcv's own PyTorch for deformable attention, which it calls on a CPU and for bfloat16, and
    which keeps all samples of all levels for backward.

    The first call of one of them says so in the log: that of the run, which begins after this.
    """
    missing = compatibility.provide_operators(
        {name: _announcing(operator) for name, operator in OPERATORS.items()}
    )
    if missing:
        multi_scale_deform_attn.multi_scale_deformable_attn_pytorch = _announcing(attend)
    return missing


def _announcing(operator: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operator)
    def announced(*args: Any, **kwargs: Any) -> Any:
        _announce()
        return operator(*args, **kwargs)

    return announced


@functools.cache
def _announce() -> None:
    print_log(
        "this mmcv has no compiled operators; PyTorch, torchvision and Triton take the place of "
        + ", ".join(OPERATORS),
        logger="current",
    )
