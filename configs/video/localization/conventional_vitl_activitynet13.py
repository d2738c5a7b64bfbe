"""ActionFormer over VideoMAE's ViT-L trained end to end on ActivityNet-1.3, conventionally.

    python tools/train.py configs/video/localization/conventional_vitl_activitynet13.py
    tools/dist_train.sh configs/video/localization/conventional_vitl_activitynet13.py 4
    python tools/test.py configs/video/localization/conventional_vitl_activitynet13.py CHECKPOINT

Recipe: configs/adatad/anet/e2e_anet_videomae_s_192x4_160_fullft.py of
https://github.com/sming256/OpenTAD (AdaTAD, arXiv 2311.17241), 16 videos an iteration. AdaTAD
reports 39.2 mAP with adapters in this backbone.
"""

_base_ = "./conventional_vitb_activitynet13.py"

model = dict(
    backbone=dict(embed_dims=1024, depth=24, num_heads=16),
    pyramid=dict(in_channels=1024),
)

# ViT-L finetuned on Kinetics-400 (1600 epochs of pretraining), of VideoMAE's MODEL_ZOO.md; as it is
# downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vitl_k400_finetune.pth"
