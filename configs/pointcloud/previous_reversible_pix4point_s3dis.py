"""Pix4Point-S finetuned on S3DIS as earlier reversible methods do.

    python tools/train.py configs/pointcloud/previous_reversible_pix4point_s3dis.py
    tools/dist_train.sh configs/pointcloud/previous_reversible_pix4point_s3dis.py 2
    python tools/test.py configs/pointcloud/previous_reversible_pix4point_s3dis.py CHECKPOINT

Recipe: that of conventional_pix4point_s3dis.py; the backbone is reversible, (0, 1), from the first
step.
"""

_base_ = "./conventional_pix4point_s3dis.py"

model = dict(
    segmentor=dict(
        backbone=dict(
            _delete_=True,
            type="Dr2NetBackbone",
            backbone={{_base_.model.segmentor.backbone}},
            alpha=0.0,
            beta=1.0,
            arithmetic="float",
        )
    )
)
