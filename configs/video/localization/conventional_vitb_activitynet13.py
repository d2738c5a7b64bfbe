"""ActionFormer over VideoMAE's ViT-B trained end to end on ActivityNet-1.3, conventionally.

    python tools/train.py configs/video/localization/conventional_vitb_activitynet13.py
    tools/dist_train.sh configs/video/localization/conventional_vitb_activitynet13.py 4
    python tools/test.py configs/video/localization/conventional_vitb_activitynet13.py CHECKPOINT

Recipe: configs/adatad/anet/e2e_anet_videomae_s_192x4_160_fullft.py of
https://github.com/sming256/OpenTAD (AdaTAD, arXiv 2311.17241), 16 videos an iteration. AdaTAD
reports 38.4 mAP with adapters in this backbone.
"""

_base_ = [
    "../../_base_/models/actionformer_videomae_vitb.py",
    "../../_base_/datasets/activitynet13.py",
    "../../_base_/schedules/adatad_activitynet13.py",
    "../../_base_/localization_runtime.py",
]

model = dict(
    # 4 frames a position
    positions=192,
    pyramid=dict(channels=256, input_dropout=0.2, position_embedding=True),
    head=dict(
        num_classes=1, channels=256, label_smoothing=0.1, regression_weight=2.0, normalizer=200
    ),
)

# ViT-B finetuned on Kinetics-400 (1600 epochs of pretraining), of VideoMAE's MODEL_ZOO.md; as it is
# downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vitb_k400_finetune.pth"
