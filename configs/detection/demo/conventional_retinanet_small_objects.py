"""Finetune the demo's tiny Swin detector conventionally: what the others are compared with.

    make demo-detection  # once, for the images and the pretrained weights
    python tools/train.py configs/detection/demo/conventional_retinanet_small_objects.py

Recipe: that of pretrain_retinanet_small_objects.py.
"""

_base_ = "./pretrain_retinanet_small_objects.py"

model = dict(
    detector=dict(
        backbone=dict(
            _delete_=True,
            type="Dr2NetBackbone",
            backbone={{_base_.model.detector.backbone}},
            # The network itself.
            alpha=1.0,
            beta=0.0,
        )
    )
)

data_root = "data/small_objects/finetune"
metainfo = dict(classes=("ring", "cross", "corner", "crescent"))
images = dict(metainfo=metainfo, data_root=data_root)
# Of two images, in steps of two tiles.
train_dataloader = dict(batch_size=2, dataset=dict(dataset=images))
val_dataloader = dict(dataset=images)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root}/val.json")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=4, val_interval=4)

# What "make demo-detection" keeps of the pretrained network: everything but the layer that says
# which class it is.
load_from = "work_dirs/demo_detection/runs/pretrained.pth"
