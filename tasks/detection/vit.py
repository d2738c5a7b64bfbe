"""Plain vision transformers as backbones of detectors: DINOv2, DINOv3 and others of timm.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet),
https://arxiv.org/abs/2203.16527. DINOv2: https://arxiv.org/abs/2304.07193; DINOv3:
https://arxiv.org/abs/2508.10104.

ViTDet restricts most blocks to windows, to save memory. Here attention is global, as in the
pretraining, so that the network is the pretrained one: fused attention keeps no matrix of weights,
and a reversible chain no activations.
"""

import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.models import eva, vision_transformer
from torch import Tensor

__all__ = ["TimmViT"]


@MODELS.register_module()
class TimmViT(BaseModule):
    """A plain ViT of timm; its patches' features after the last block and norm are the one output.

    Classifiers that normalise pooled features (some of EVA-02) have no norm there.

    The stride of the output is the size of the patches. That of DINOv2 is 14, and nothing is
    resized to make it 16: resized images or features lose detail of small objects, and positions
    of features would not be whole strides apart. Heads with anchors are told the strides there
    are (7, 14, 28, ...), which mmdetection's take as any others.

    Images come in whole patches: ``pad_size_divisor`` of the data preprocessor has them padded
    where the head knows of it (DINO's masks, the sizes in the data samples).

    Args:
        name: of the model in timm, with the tag of its weights: one of timm's classes
            ``VisionTransformer`` (DINOv2, CLIP, SigLIP, ...) and ``Eva`` (DINOv3, EVA-02, ...).
        pretrained: True for timm's weights of this name, from the Hugging Face Hub; the path of a
            file in timm's layout or that of DINOv2, DINOv3 and other repositories that timm reads;
            False for random weights. Loaded by ``init_weights``.
        with_cp: compute each block again in backward instead of keeping its activations.
        options: further arguments of the model, such as ``drop_path_rate``.

    Raises:
        ValueError: timm has no plain ViT of this name; on a call, for images not in whole patches.
    """

    def __init__(
        self, name: str, pretrained: bool | str = True, with_cp: bool = False, **options: Any
    ) -> None:
        super().__init__()
        if not timm.models.is_model_in_modules(name, ("vision_transformer", "eva")):
            raise ValueError(
                f"TimmViT(name={name!r}): not a plain ViT of timm. Give a model of its "
                "vision_transformer.py or eva.py, such as vit_base_patch16_dinov3.lvd1689m; "
                "timm.list_models(module='eva') lists them."
            )
        self.name = name
        self.pretrained = pretrained
        self.options = options
        self.vit = self._build()
        self.vit.set_grad_checkpointing(with_cp)

    def _build(self, **source: Any) -> Any:
        vit = timm.create_model(self.name, dynamic_img_size=True, **self.options, **source)
        vit.prune_intermediate_layers(1)  # without head and pooling
        return vit

    def init_weights(self) -> None:
        """Loads the pretrained weights, if any; random ones are those from the construction.

        Raises:
            RuntimeError: timm could not get them, or they are of another network.
        """
        if not self.pretrained:
            return
        source = {}
        if isinstance(self.pretrained, str):
            # Here, so that a published network has this file and does without dr2net.
            from dr2net.openmmlab.checkpoint import read_checkpoint

            source["pretrained_cfg_overlay"] = {"state_dict": read_checkpoint(self.pretrained)}
        try:
            loaded = self._build(pretrained=True, **source)
        # Of the network: from whatever the Hub's client is built on.
        except Exception as error:
            raise RuntimeError(
                f"no pretrained weights for {self.name} from "
                f"{self.pretrained if source else 'the Hugging Face Hub'}: {error}\n"
                "The Hub needs a network once. Without one, copy the file of these weights here "
                "and give its path, --cfg-options model.backbone.pretrained=PATH (of a Dr²Net "
                "model.backbone.backbone.pretrained); random weights are pretrained=False."
            ) from error
        self.vit.load_state_dict(loaded.state_dict())

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Takes (N, 3, H, W); returns one map, (N, channels, H / patch, W / patch)."""
        size, patch = images.shape[2:], self.vit.patch_embed.patch_size
        if any(side % step for side, step in zip(size, patch, strict=True)):
            raise ValueError(
                f"{self.name} has patches of {patch[0]} × {patch[1]} pixels, of which images of "
                f"{size[0]} × {size[1]} are no multiple: set pad_size_divisor of the model's "
                f"data_preprocessor to a multiple of {patch[0]}."
            )
        tokens = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        grid = self.vit.patch_embed.dynamic_feat_size(size)
        return (tokens.transpose(1, 2).unflatten(2, grid).contiguous(),)


# Of what a ViT calls, bicubic interpolation alone has no deterministic backward on a GPU. By it
# timm brings learned positions (DINOv2's) to the grid of an image. It is linear and the same for
# every channel: a matrix from tokens to tokens, whose transpose is the backward.


class _Resampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, resample: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.resample, ctx.tokens = resample, positions.shape[1]
        return resample(positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        identity = torch.eye(ctx.tokens, dtype=gradient.dtype, device=gradient.device)
        matrix = ctx.resample(identity[None])[0]
        return matrix.T @ gradient, None


@functools.wraps(vision_transformer.resample_abs_pos_embed)
def _resample_abs_pos_embed(positions: Tensor, *args: Any, **options: Any) -> Tensor:
    def resample(positions: Tensor) -> Tensor:  # (1, tokens, channels)
        return _resample_abs_pos_embed.__wrapped__(positions, *args, **options)

    if not torch.are_deterministic_algorithms_enabled():
        return resample(positions)
    return _Resampling.apply(positions, resample)


vision_transformer.resample_abs_pos_embed = _resample_abs_pos_embed
eva.resample_abs_pos_embed = _resample_abs_pos_embed
