from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[4] / "shared/data/real/detection"


@pytest.fixture(autouse=True)
def scope_of_mmdetection():
    """As ``default_scope`` in the configs, whatever other tests have left."""
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture(scope="module")
def photographs():
    """A batch of two real aerial photographs with their boxes, 160 pixels wide."""
    if not FOLDER.is_dir():
        pytest.skip(f"no real photographs in {FOLDER}")
    from mmdet.datasets import CocoDataset
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    samples = []
    for name, category in (("terrain1", "human"), ("terrain2", "car")):
        dataset = CocoDataset(
            ann_file=str(FOLDER / f"{name}_coco.json"),
            data_prefix={"img": str(FOLDER)},
            metainfo={"classes": (category,)},
            pipeline=[
                {"type": "LoadImageFromFile"},
                {"type": "LoadAnnotations", "with_bbox": True},
                {"type": "Resize", "scale": (160, 160), "keep_ratio": True},
                {"type": "PackDetInputs"},
            ],
        )
        samples.append(dataset[0])
    assert [len(sample["data_samples"].gt_instances) for sample in samples] == [7, 5]
    return pseudo_collate(samples)
