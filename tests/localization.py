"""A small localizer, and configs of configs/video/localization/ in small on a few short videos."""

import json
from pathlib import Path

from mmaction.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

CONFIGS = Path(__file__).parents[1] / "configs/video/localization"
FRAMES = 32  # of a small window, in chunks of 4

VIT = {
    "type": "ChunkViT",
    "img_size": 32,
    "patch_size": 16,
    "embed_dims": 24,
    "depth": 3,
    "num_heads": 2,
    "num_frames": 4,
    "drop_path_rate": 0.2,
}
PYRAMID = {
    "type": "ActionFormerPyramid",
    "in_channels": 24,
    "channels": 16,
    "levels": 4,
    "heads": 2,
    "window": 5,
}
HEAD = {
    "type": "ActionFormerHead",
    "num_classes": 3,
    "channels": 16,
    "ranges": [(0, 4), (4, 8), (8, 16), (16, 1000)],
}


def build_localizer(backbone=VIT, **options):
    """A localizer of 32 positions, with the same weights whatever the backbone's wrapper."""
    init_default_scope("mmaction")
    return MODELS.build(
        {
            "type": "ActionLocalizer",
            "backbone": backbone,
            "pyramid": PYRAMID,
            "head": HEAD,
            "positions": FRAMES,
            **options,
        }
    )


def write_database(path, videos, labels=("jump", "run")):
    """Write annotations of ``videos`` (name to seconds), training and validation alike."""
    database = {}
    for number, (name, seconds) in enumerate(videos.items()):
        annotations = [
            {"label": labels[number % len(labels)], "segment": [0.1 * seconds, 0.5 * seconds]},
            {"label": labels[-1], "segment": [0.6 * seconds, 0.9 * seconds]},
        ]
        for subset in ("training", "validation"):
            entry = {"subset": subset, "duration": seconds, "annotations": annotations}
            # One file can be of both subsets by two names.
            database[name if subset == "training" else name + "_val"] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"database": database}))
    return path


def small_config(name, folder, videos, work_dir):
    """The config with every size small and ``videos``, name to (file, seconds), for its set's."""
    config = Config.fromfile(CONFIGS / f"{name}.py")
    write_database(folder / "annotations.json", {key: s for key, (_, s) in videos.items()})
    (folder / "classes.txt").write_text("jump\nrun\n")
    (folder / "blocked.json").write_text("[]")
    for key, (file, _) in videos.items():
        for link in (f"{key}.video", f"{key}_val.video"):
            if not (folder / link).exists():
                (folder / link).symlink_to(file)
    scores = {f"{key}_val": [0.7, 0.3] for key in videos}
    (folder / "scores.json").write_text(json.dumps({"class": ["jump", "run"], "results": scores}))

    model = config.model
    backbone = model.backbone.get("backbone", model.backbone)
    backbone.update(embed_dims=24, depth=3, num_heads=2, num_frames=4, img_size=32)
    model.pyramid.update(in_channels=24, channels=16, levels=4, heads=2)
    model.head.update(channels=16, ranges=HEAD["ranges"])
    model.head.num_classes = min(model.head.num_classes, 2)
    model.positions = model.positions * FRAMES // 768
    if model.positions < FRAMES:  # so that it can be halved three times
        model.positions = 8
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.update(
            data_root=None,
            ann_file=str(folder / "annotations.json"),
            class_file=str(folder / "classes.txt"),
            data_prefix={"video": str(folder)},
            file_name="{}.video",
            block_list=None,
        )
        if "window" in loader.dataset:
            loader.dataset.window.num_frames = FRAMES
        for step in loader.dataset.pipeline:
            if step.type.startswith("Sample"):
                step.update(num_frames=FRAMES, chunk_frames=4)
            elif step.type == "Resize":
                step.scale = (-1, 40) if step.scale[0] == -1 else (32, 32)
            elif step.type == "CenterCrop":
                step.crop_size = 32
    for evaluator in (config.val_evaluator, config.test_evaluator):
        evaluator.ann_file = str(folder / "annotations.json")
        evaluator.nms.min_score = 0.0  # else nothing is found by random weights
        if "block_list" in evaluator:
            evaluator.block_list = str(folder / "blocked.json")
            evaluator.video_classes.file = str(folder / "scores.json")
    config.model.score_threshold = 0.0
    config.load_from = None
    config.work_dir, config.experiment_name = str(work_dir), work_dir.name
    config.train_cfg.update(max_epochs=2, val_begin=1, val_interval=1)
    config.visualizer.vis_backends = [{"type": "mmengine.LocalVisBackend"}]
    return config
