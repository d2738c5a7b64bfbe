"""VideoMAE's ViT-S finetuned on Something-Something V2 as a Dr²Net, the paper's way.

    python tools/train.py configs/video/dr2net_paper_vits_ssv2.py
    tools/dist_train.sh configs/video/dr2net_paper_vits_ssv2.py 8
    python tools/test.py configs/video/dr2net_paper_vits_ssv2.py CHECKPOINT

Recipe: that of conventional_vits_ssv2.py (VideoMAE's); coefficients and memory options as in
dr2net_paper_vitb_ssv2.py.
"""

_base_ = "./dr2net_paper_vitb_ssv2.py"

model = dict(
    backbone=dict(backbone=dict(embed_dims=384, num_heads=6)), cls_head=dict(in_channels=384)
)
train_dataloader = dict(batch_size=12)
train_cfg = dict(max_epochs=40)
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=0.7))

# The pretraining checkpoint (SSv2, ViT-S, 2400 epochs) of VideoMAE's model zoo, MODEL_ZOO.md; as it
# is downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vits_ssv2_pretrain_2400e.pth"
