"""DINO's schedule of 12 epochs with ViTDet's learning rates for ViT-B, smaller layer by layer.

Values: dino_12e.py; get_vit_lr_decay_rate of detectron2/modeling/backbone/vit.py and
projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py of
https://github.com/facebookresearch/detectron2. Norms and positions have no weight decay there.
"""

_base_ = "./dino_12e.py"

# The last of 12 blocks learns at 0.7 of the rate, each before it at 0.7 of the next one's, and the
# embeddings as a block before the first.
depth, rate = 12, 0.7
optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "backbone": dict(lr_mult=rate ** (depth + 1)),
            "backbone.vit.pos_embed": dict(lr_mult=rate ** (depth + 1), decay_mult=0.0),
            "backbone.vit.norm": dict(decay_mult=0.0),
            **{
                f"backbone.vit.blocks.{i}.": dict(lr_mult=rate ** (depth - i)) for i in range(depth)
            },
            **{
                f"backbone.vit.blocks.{i}.norm": dict(lr_mult=rate ** (depth - i), decay_mult=0.0)
                for i in range(depth)
            },
        },
    )
)
