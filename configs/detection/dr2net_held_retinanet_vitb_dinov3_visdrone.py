"""RetinaNet over DINOv3's ViT-B finetuned on VisDrone-DET as a Dr²Net, held.

    python tools/train.py configs/detection/dr2net_held_retinanet_vitb_dinov3_visdrone.py
    tools/dist_train.sh configs/detection/dr2net_held_retinanet_vitb_dinov3_visdrone.py 8
    python tools/test.py configs/detection/dr2net_held_retinanet_vitb_dinov3_visdrone.py CHECKPOINT

Recipe: that of conventional_retinanet_vitb_dinov3_visdrone.py, with (α, β) at
(7/8, 1/8), on the line α = 1 − β near the pretrained network, throughout.
"""

_base_ = "./conventional_retinanet_vitb_dinov3_visdrone.py"

custom_hooks = [dict(type="Dr2NetHook")]
