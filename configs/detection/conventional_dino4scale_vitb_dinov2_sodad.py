"""DINO with four levels over DINOv2's ViT-B finetuned conventionally on SODA-D.

    python tools/train.py configs/detection/conventional_dino4scale_vitb_dinov2_sodad.py
    tools/dist_train.sh configs/detection/conventional_dino4scale_vitb_dinov2_sodad.py 8
    python tools/test.py configs/detection/conventional_dino4scale_vitb_dinov2_sodad.py CHECKPOINT

Recipe: that of conventional_dino4scale_vitb_dinov3_sodad.py.
"""

_base_ = "./conventional_dino4scale_vitb_dinov3_sodad.py"

# Patches of 14 pixels: levels have the strides 7, 14, 28 and so on.
model = dict(
    detector=dict(
        data_preprocessor=dict(pad_size_divisor=28),
        backbone=dict(name="vit_base_patch14_reg4_dinov2.lvd142m"),
    )
)
