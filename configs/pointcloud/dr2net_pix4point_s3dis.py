"""Pix4Point-S finetuned on S3DIS as a Dr²Net.

    python tools/train.py configs/pointcloud/dr2net_pix4point_s3dis.py
    tools/dist_train.sh configs/pointcloud/dr2net_pix4point_s3dis.py 2
    python tools/test.py configs/pointcloud/dr2net_pix4point_s3dis.py CHECKPOINT

Recipe: that of conventional_pix4point_s3dis.py, held at (7/8, 1/8), on the line α = 1 − β,
throughout (docs/evidence.md). The paper's schedule: dr2net_paper_pix4point_s3dis.py

Dr2NetBackbone converts where the model is built, which Dr2NetHook does in a run alone: inferencers
and tools/predict.py know no hooks.
"""

_base_ = "./conventional_pix4point_s3dis.py"

model = dict(
    segmentor=dict(
        backbone=dict(
            _delete_=True,
            type="Dr2NetBackbone",
            backbone={{_base_.model.segmentor.backbone}},
            # alpha and beta are left out: β is 1/8 then, and α is 1 − β.
        )
    )
)

# Without arguments it holds the point, also where a checkpoint brings another, and logs it.
default_hooks = dict(coefficients=dict(type="CoefficientScheduleHook"))
