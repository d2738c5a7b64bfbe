"""Finetune the demo's tiny PointViT conventionally on offices: what the others are compared with.

    make demo-pointcloud  # once, for the rooms and the pretrained weights
    python tools/train.py configs/pointcloud/demo/conventional_point_vit_tiny_rooms.py

Recipe: that of pretrain_point_vit_tiny_rooms.py at half its learning rate.
"""

_base_ = "./pretrain_point_vit_tiny_rooms.py"

model = dict(
    segmentor=dict(
        backbone=dict(
            _delete_=True,
            type="Dr2NetBackbone",
            backbone={{_base_.model.segmentor.backbone}},
            # The network itself.
            alpha=1.0,
            beta=0.0,
        )
    )
)

data_root = "data/rooms/finetune/rooms"
# Eight rooms.
train_dataloader = dict(dataset=dict(data_root=data_root, areas=[1]))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))

train_cfg = dict(max_epochs=4, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=1e-3))

# What "make demo-pointcloud" keeps of the pretrained network: all of it.
load_from = "work_dirs/demo_pointcloud/runs/pretrained.pth"
