"""DINO with four levels over DINOv3's ViT-B finetuned on AI-TOD-v2 as a Dr²Net, held.

    python tools/train.py configs/detection/dr2net_held_dino4scale_vitb_dinov3_aitod.py
    tools/dist_train.sh configs/detection/dr2net_held_dino4scale_vitb_dinov3_aitod.py 8
    python tools/test.py configs/detection/dr2net_held_dino4scale_vitb_dinov3_aitod.py CHECKPOINT

Recipe: that of conventional_dino4scale_vitb_dinov3_aitod.py, with (α, β) at
(7/8, 1/8), on the line α = 1 − β near the pretrained network, throughout.
"""

_base_ = "./conventional_dino4scale_vitb_dinov3_aitod.py"

custom_hooks = [dict(type="Dr2NetHook")]
