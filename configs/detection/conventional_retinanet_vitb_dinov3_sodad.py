"""RetinaNet over DINOv3's ViT-B finetuned conventionally on SODA-D.

    python tools/train.py configs/detection/conventional_retinanet_vitb_dinov3_sodad.py
    tools/dist_train.sh configs/detection/conventional_retinanet_vitb_dinov3_sodad.py 8
    python tools/test.py configs/detection/conventional_retinanet_vitb_dinov3_sodad.py CHECKPOINT

Recipe: that of conventional_retinanet_vitb_dinov3_coco.py.
docs/detection.md says how to prepare the data.
"""

_base_ = [
    "../_base_/models/retinanet_vitb_dinov3.py",
    "../_base_/datasets/sodad.py",
    "../_base_/schedules/vitdet_b_12e.py",
    "../_base_/detection_runtime.py",
]

model = dict(
    _delete_=True,
    type="TiledDetector",
    detector=dict(
        _base_.model,
        bbox_head=dict(
            _base_.model.bbox_head,
            num_classes=9,
            # From 16 pixels on instead of 32.
            anchor_generator=dict(_base_.model.bbox_head.anchor_generator, octave_base_scale=2),
        ),
        train_cfg=dict(
            _base_.model.train_cfg,
            # Anchors that lie half in an ignored box are no background.
            assigner=dict(_base_.model.train_cfg.assigner, ignore_iof_thr=0.5),
        ),
        test_cfg=dict(_base_.model.test_cfg, max_per_img=300),
    ),
    tile_size=800,
    overlap=150,
    scale_factor=1.5,
    # All that the metric may take: 1,000 of each class.
    max_detections=9 * 1000,
)

# Random weights: --cfg-options model.detector.backbone.pretrained=False
