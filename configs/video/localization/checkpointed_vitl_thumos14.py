"""ActionFormer over VideoMAE's ViT-L trained end to end on THUMOS14, checkpointed.

    python tools/train.py configs/video/localization/checkpointed_vitl_thumos14.py
    tools/dist_train.sh configs/video/localization/checkpointed_vitl_thumos14.py 2
    python tools/test.py configs/video/localization/checkpointed_vitl_thumos14.py CHECKPOINT

Recipe: that of conventional_vitl_thumos14.py; each block of the backbone is computed again in
backward, as OpenTAD trains.
"""

_base_ = "./conventional_vitl_thumos14.py"

model = dict(backbone=dict(with_cp=True))
