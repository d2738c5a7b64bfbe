"""VideoMAE's ViT-B finetuned conventionally on Kinetics-400: what Dr²Net is compared with.

    python tools/train.py configs/video/conventional_vitb_k400.py
    tools/dist_train.sh configs/video/conventional_vitb_k400.py 8
    python tools/test.py configs/video/conventional_vitb_k400.py CHECKPOINT

Recipe: scripts/kinetics/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_1600/finetune.sh
of https://github.com/MCG-NJU/VideoMAE, on 64 processes of 6 videos; 80.9 top-1 there with fp16.
"""

_base_ = [
    "../_base_/models/videomae_vitb.py",
    "../_base_/datasets/kinetics400.py",
    "../_base_/schedules/videomae_finetune_75e.py",
    "../_base_/default_runtime.py",
]

# The pretraining checkpoint (K400, ViT-B, 1600 epochs) of VideoMAE's model zoo, MODEL_ZOO.md; as it
# is downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vitb_k400_pretrain_1600e.pth"
