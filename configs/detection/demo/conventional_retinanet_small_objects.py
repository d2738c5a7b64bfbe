"""Finetune the demo's tiny Swin detector conventionally: what the others are compared with.

    make demo-detection  # once, for the images and the pretrained weights
    python tools/train.py configs/detection/demo/conventional_retinanet_small_objects.py

Recipe: that of pretrain_retinanet_small_objects.py at a quarter of its learning rate, in half the
batch, over 2 epochs.
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
# Of two images, in steps of two tiles.
train_dataloader = dict(batch_size=2, dataset=dict(dataset=dict(data_root=data_root)))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root}/val.json")
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=2, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
warm_up = dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=5)
param_scheduler = [warm_up, {{_base_.decay}}]

# What "make demo-detection" keeps of the pretrained network: all of it.
load_from = "work_dirs/demo_detection/runs/pretrained.pth"
