"""DINO with five feature levels over Swin-L finetuned on COCO, reversible as a whole.

    python tools/train.py configs/detection/dr2net_whole_dino5scale_swinl_coco.py
    tools/dist_train.sh configs/detection/dr2net_whole_dino5scale_swinl_coco.py 8
    python tools/test.py configs/detection/dr2net_whole_dino5scale_swinl_coco.py CHECKPOINT

Recipe: that of conventional_dino5scale_swinl_coco.py, with the layers of encoder and decoder chains
like the backbone's stages, MLPs in slices, and (α, β) held at (7/8, 1/8). With many feature levels
most of a detector's activations are the encoder's (docs/detection.md).
"""

_base_ = "./conventional_dino5scale_swinl_coco.py"

custom_hooks = [dict(type="Dr2NetHook", modules="", mlp_tokens=2048)]
