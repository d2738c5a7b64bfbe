"""VideoMAE's ViT-S finetuned on Kinetics-400 as a Dr²Net, the paper's way.

    python tools/train.py configs/video/dr2net_paper_vits_k400.py
    tools/dist_train.sh configs/video/dr2net_paper_vits_k400.py 8
    python tools/test.py configs/video/dr2net_paper_vits_k400.py CHECKPOINT

Recipe: that of conventional_vits_k400.py (VideoMAE's); coefficients and memory options as in
dr2net_paper_vitb_k400.py.
"""

_base_ = "./dr2net_paper_vitb_k400.py"

model = dict(
    backbone=dict(backbone=dict(embed_dims=384, num_heads=6)), cls_head=dict(in_channels=384)
)
train_dataloader = dict(batch_size=12)
train_cfg = dict(max_epochs=150)

# The pretraining checkpoint (K400, ViT-S, 1600 epochs) of VideoMAE's model zoo, MODEL_ZOO.md; as it
# is downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vits_k400_pretrain_1600e.pth"
