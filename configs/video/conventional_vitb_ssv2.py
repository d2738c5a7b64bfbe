"""VideoMAE's ViT-B finetuned conventionally on Something-Something V2.

    python tools/train.py configs/video/conventional_vitb_ssv2.py
    tools/dist_train.sh configs/video/conventional_vitb_ssv2.py 8
    python tools/test.py configs/video/conventional_vitb_ssv2.py CHECKPOINT

Recipe: scripts/ssv2/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_2400/finetune.sh of
https://github.com/MCG-NJU/VideoMAE, on 64 processes of 6 videos; 70.6 top-1 there with fp16.
"""

_base_ = [
    "../_base_/models/videomae_vitb.py",
    "../_base_/datasets/ssv2.py",
    "../_base_/schedules/videomae_finetune_75e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    cls_head=dict(num_classes=174),
    data_preprocessor=dict(
        blending=dict(
            augments=[
                dict(type="MixupBlending", alpha=0.8, num_classes=174),
                dict(type="CutmixBlending", alpha=1.0, num_classes=174),
            ]
        )
    ),
)
train_cfg = dict(max_epochs=30)

# The pretraining checkpoint (SSv2, ViT-B, 2400 epochs) of VideoMAE's model zoo, MODEL_ZOO.md; as it
# is downloaded, or in mmaction2's names. From scratch: --cfg-options load_from=None
load_from = "checkpoints/videomae_vitb_ssv2_pretrain_2400e.pth"
