"""VideoMAE's ViT-S finetuned conventionally on Kinetics-400: what Dr²Net is compared with.

    python tools/train.py configs/video/conventional_vits_k400.py
    tools/dist_train.sh configs/video/conventional_vits_k400.py 8
    python tools/test.py configs/video/conventional_vits_k400.py CHECKPOINT

Recipe: scripts/kinetics/videomae_vit_small_patch16_224_tubemasking_ratio_0.9_epoch_1600/finetune.sh
of https://github.com/MCG-NJU/VideoMAE, on 32 processes of 12 videos.
"""

_base_ = "./conventional_vitb_k400.py"

model = dict(backbone=dict(embed_dims=384, num_heads=6), cls_head=dict(in_channels=384))
train_dataloader = dict(batch_size=12)
train_cfg = dict(max_epochs=150)

# The pretraining checkpoint (K400, ViT-S, 1600 epochs) of VideoMAE's model zoo, MODEL_ZOO.md; as it
# is downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vits_k400_pretrain_1600e.pth"
