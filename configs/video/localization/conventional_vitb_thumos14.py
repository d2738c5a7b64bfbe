"""ActionFormer over VideoMAE's ViT-B trained end to end on THUMOS14, conventionally.

    python tools/train.py configs/video/localization/conventional_vitb_thumos14.py
    tools/dist_train.sh configs/video/localization/conventional_vitb_thumos14.py 2
    python tools/test.py configs/video/localization/conventional_vitb_thumos14.py CHECKPOINT

Recipe: configs/adatad/thumos/e2e_thumos_videomae_s_768x1_160_fullft.py of
https://github.com/sming256/OpenTAD (AdaTAD, arXiv 2311.17241), 2 windows an iteration. AdaTAD
reports 71.1 mAP with adapters in this backbone.
"""

_base_ = [
    "../../_base_/models/actionformer_videomae_vitb.py",
    "../../_base_/datasets/thumos14.py",
    "../../_base_/schedules/adatad_thumos14.py",
    "../../_base_/localization_runtime.py",
]

# ViT-B finetuned on Kinetics-400 (1600 epochs of pretraining), of VideoMAE's MODEL_ZOO.md; as it is
# downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vitb_k400_finetune.pth"
