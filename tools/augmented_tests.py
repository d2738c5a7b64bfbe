"""What ``tools/test.py --tta`` changes of a config."""

from mmengine.config import Config

from dr2net.openmmlab.loaders import innermost


def augment_tests(config: Config) -> None:
    """Test on augmented inputs, by the config's ``tta_model`` and ``tta_pipeline``.

    Where a detector's config has none, the image and its mirror image are tested, and their
    detections go through NMS at an IoU of 0.5 together.

    Raises:
        ValueError: The config has none, and its model is no detector.
    """
    if "tta_model" not in config or "tta_pipeline" not in config:
        if config.get("default_scope") != "mmdet":
            raise ValueError(
                "--tta: the config has no tta_model and tta_pipeline. Tests of videos average "
                "clips and crops, and those of rooms passes, without it: num_clips of the test "
                "pipeline says how many, and model.voxel_size"
            )
        config.tta_model = {
            "type": "DetTTAModel",
            "tta_cfg": {
                "nms": {"type": "nms", "iou_threshold": 0.5},
                "max_per_img": _most_detections(config.model),
            },
        }
        config.tta_pipeline = _with_mirror(next(innermost(config.test_dataloader)).pipeline)
    config.model = {**config.tta_model, "module": config.model}
    for dataset in innermost(config.test_dataloader):
        dataset.pipeline = config.tta_pipeline


def _with_mirror(pipeline: list[dict]) -> list[dict]:
    """A test pipeline of mmdetection for an image and its mirror image."""
    steps = [dict(step) for step in pipeline]
    load, *between, pack = steps
    if not pack["type"].endswith("PackDetInputs"):
        raise ValueError(f"--tta: the test pipeline ends in {pack['type']}, not PackDetInputs")
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pack["meta_keys"] = (*pack.get("meta_keys", meta), "flip", "flip_direction")
    # Flipped last of all, but before annotations are loaded, which stay those of the file.
    images = [step for step in between if not step["type"].endswith("LoadAnnotations")]
    annotations = [step for step in between if step["type"].endswith("LoadAnnotations")]
    mirrors = [{"type": "RandomFlip", "prob": 0.0}, {"type": "RandomFlip", "prob": 1.0}]
    views = [*([step] for step in images), mirrors, *([step] for step in annotations), [pack]]
    return [load, {"type": "TestTimeAug", "transforms": views}]


def _most_detections(model: dict) -> int:
    """How many detections of an image a detector keeps."""
    if "max_detections" in model:
        return model["max_detections"]
    settings = model.get("detector", model).get("test_cfg") or {}
    settings = settings.get("rcnn", settings)
    return settings.get("max_per_img", 100)
