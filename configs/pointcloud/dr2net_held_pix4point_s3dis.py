"""Pix4Point-S finetuned on S3DIS as a Dr²Net with (α, β) held.

    python tools/train.py configs/pointcloud/dr2net_held_pix4point_s3dis.py
    tools/dist_train.sh configs/pointcloud/dr2net_held_pix4point_s3dis.py 2
    python tools/test.py configs/pointcloud/dr2net_held_pix4point_s3dis.py CHECKPOINT

Recipe: that of conventional_pix4point_s3dis.py, with (α, β) at (7/8, 1/8), on the line
α = 1 − β near the pretrained network, throughout. The paper's schedule: dr2net_pix4point_s3dis.py
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
