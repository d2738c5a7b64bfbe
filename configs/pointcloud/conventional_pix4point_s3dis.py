"""Pix4Point-S finetuned conventionally on S3DIS: what Dr²Net is compared with.

    python tools/train.py configs/pointcloud/conventional_pix4point_s3dis.py
    tools/dist_train.sh configs/pointcloud/conventional_pix4point_s3dis.py 2
    python tools/test.py configs/pointcloud/conventional_pix4point_s3dis.py CHECKPOINT

Recipe: openpoints' for Pix4Point (arXiv 2208.12259), put together from the two files that
_base_/schedules/pix4point_100e.py names, on crops of 24,000 points, 2 processes of 8 crops; Areas
1, 2, 3, 4 and 6 for training, Area 5 at full resolution for testing.
"""

_base_ = [
    "../_base_/models/pix4point_s.py",
    "../_base_/datasets/s3dis.py",
    "../_base_/schedules/pix4point_100e.py",
    "../_base_/pointcloud_runtime.py",
]

# DeiT-S of https://github.com/facebookresearch/deit, pretrained on ImageNet: its blocks. Any ViT-S
# of timm, DeiT, MAE or DINOv2 loads (docs/pointcloud.md). From scratch:
# --cfg-options load_from=None
load_from = "checkpoints/deit_small_patch16_224-cd65a155.pth"
