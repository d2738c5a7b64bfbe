"""ActionFormer over VideoMAE's ViT-S trained end to end on THUMOS14, conventionally.

    python tools/train.py configs/video/localization/conventional_vits_thumos14.py
    tools/dist_train.sh configs/video/localization/conventional_vits_thumos14.py 2
    python tools/test.py configs/video/localization/conventional_vits_thumos14.py CHECKPOINT

Recipe: configs/adatad/thumos/e2e_thumos_videomae_s_768x1_160_fullft.py of
https://github.com/sming256/OpenTAD (AdaTAD, arXiv 2311.17241), 2 windows an iteration. AdaTAD
reports 69.0 mAP with adapters in this backbone.
"""

_base_ = "./conventional_vitb_thumos14.py"

model = dict(
    backbone=dict(embed_dims=384, depth=12, num_heads=6),
    pyramid=dict(in_channels=384),
)

# ViT-S finetuned on Kinetics-400 (1600 epochs of pretraining), of VideoMAE's MODEL_ZOO.md; as it is
# downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vits_k400_finetune.pth"
