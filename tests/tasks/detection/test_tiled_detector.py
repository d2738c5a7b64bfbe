import json
import pickle
from copy import deepcopy

import numpy as np
import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

import cv2
import torch
from mmdet.datasets.transforms import PackDetInputs, Resize
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from dr2net.openmmlab.checkpoint import load_state_dict
from tasks.detection.tiled_detector import TiledDetector


class DetectorInTests(BaseDetector):
    """Finds boxes without a network: ``find`` gives them in the coordinates of its input."""

    def __init__(self):
        super().__init__({"type": "mmdet.DetDataPreprocessor"})

    def predict(self, batch_inputs, batch_data_samples):
        self.batches = [*getattr(self, "batches", []), tuple(batch_inputs.shape)]
        results = []
        for image, sample in zip(batch_inputs, batch_data_samples, strict=True):
            boxes, labels = self.find(image, sample)
            boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
            scores = torch.full((len(boxes),), 0.9)
            results.append(InstanceData(bboxes=boxes, scores=scores, labels=labels))
        return self.add_pred_to_datasample(batch_data_samples, results)

    def loss(self, batch_inputs, batch_data_samples):
        raise NotImplementedError

    _forward = extract_feat = loss


@MODELS.register_module()
class PerfectDetectorInTests(DetectorInTests):
    """Knows the boxes of the image and finds what the tile shows of them, however little."""

    def __init__(self, boxes, labels):
        super().__init__()
        self.boxes, self.labels = boxes, labels

    def find(self, image, sample):
        left, top, right, bottom = sample.tile
        shown = self.boxes.clamp(torch.tensor([left, top, left, top]))
        shown = shown.clamp(max=torch.tensor([right, bottom, right, bottom]))
        seen = (shown[:, 2:] > shown[:, :2]).all(dim=1)
        scale = torch.tensor(sample.scale_factor).repeat(2)
        return (shown[seen] - torch.tensor([left, top, left, top])) * scale, self.labels[seen]


@MODELS.register_module()
class BrightnessDetectorInTests(DetectorInTests):
    """Finds bright rectangles in the pixels it is given."""

    def find(self, image, sample):
        bright = (image.mean(dim=0) > 127).numpy().astype(np.uint8)
        regions = cv2.connectedComponentsWithStats(bright)[2][1:, :4]
        boxes = torch.from_numpy(regions).float()
        boxes[:, 2:] += boxes[:, :2]
        return boxes, torch.zeros(len(boxes), dtype=torch.long)


def scattered_boxes(count=1000, classes=9, width=4000, height=3000, smallest=8, largest=60):
    """Boxes at whole pixels, some at the corners; IoU at most 0.5 within a class.

    Two boxes of a class with a higher IoU are one object to NMS, wherever they were found.
    """
    random = np.random.default_rng(0)
    boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    while len(boxes) < count:
        size = random.integers(smallest, largest + 1, 2)
        corner = random.integers(0, (width, height) - size + 1)
        if len(boxes) < 4:
            corner = ((width, height) - size) * (len(boxes) % 2, len(boxes) // 2)
        box = torch.tensor([[*corner, *(corner + size)]], dtype=torch.float32)
        label = torch.tensor([random.integers(classes)])
        if (box_iou(box, boxes)[0, label == labels] <= 0.5).all():
            boxes, labels = torch.cat([boxes, box]), torch.cat([labels, label])
    return boxes, labels


def loaded_image(pixels):
    """What the test pipeline gives of one image, as a batch."""
    height, width = pixels.shape[-2:]
    shape = {"img_id": 7, "ori_shape": (height, width), "img_shape": (height, width)}
    return {"inputs": [pixels], "data_samples": [DetDataSample(metainfo=shape)]}


def average_precision(found, boxes, labels):
    """pycocotools' AP over all areas, of one image, with up to 1500 detections."""

    def annotations(boxes, labels, **scores):
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
        return [
            {
                "id": index + 1,
                "image_id": 7,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                **{name: values[index] for name, values in scores.items()},
            }
            for index, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True))
        ]

    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7}],
        "categories": [{"id": label} for label in labels.unique().tolist()],
        "annotations": annotations(boxes, labels),
    }
    truth.createIndex()
    scores = found.scores.tolist()
    detections = truth.loadRes(annotations(found.bboxes, found.labels, score=scores))
    evaluation = COCOeval(truth, detections, "bbox")
    evaluation.params.maxDets = [1500]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 0].mean()


@pytest.mark.parametrize(
    ("tile_size", "overlap", "scale_factor"),
    [(800, 150, 1.5), (1024, 60, 1), (512, 200, 1.25), (640, 61, 0.5)],
)
def test_perfect_detections_in_tiles_score_ap_1(tile_size, overlap, scale_factor):
    """The issue's: 4000 x 3000 pixels, 1,000 boxes of 8 to 60; the overlap is at least 60."""
    boxes, labels = scattered_boxes()
    detector = TiledDetector(
        {"type": "PerfectDetectorInTests", "boxes": boxes, "labels": labels},
        tile_size=tile_size,
        overlap=overlap,
        scale_factor=scale_factor,
    )
    pixels = torch.zeros((1, 1, 1), dtype=torch.uint8).expand(3, 3000, 4000)
    with torch.no_grad():
        (sample,) = detector.test_step(loaded_image(pixels))
    found = sample.pred_instances
    assert len(found) == 1000
    assert average_precision(found, boxes, labels) == 1.0


def test_nms_alone_leaves_parts_of_boxes():
    """Why the test above passes: without the rule for parts, their halves are false detections."""
    boxes, labels = scattered_boxes()
    detector = TiledDetector(
        {"type": "PerfectDetectorInTests", "boxes": boxes, "labels": labels}, cover_threshold=1.01
    )
    pixels = torch.zeros((1, 1, 1), dtype=torch.uint8).expand(3, 3000, 4000)
    (sample,) = detector.test_step(loaded_image(pixels))
    assert len(sample.pred_instances) > 1050
    assert average_precision(sample.pred_instances, boxes, labels) < 0.99


def bright_rectangles(width=300, height=220):
    """An image and the boxes of its rectangles, which do not touch."""
    pixels, boxes = torch.zeros((3, height, width), dtype=torch.uint8), []
    for top in range(0, height - 16, 18):
        for left in range(top % 7, width - 16, 19):
            right, bottom = left + 9 + left % 5, top + 8 + top % 4
            pixels[:, top:bottom, left:right] = 255
            boxes.append([left, top, right, bottom])
    return pixels, torch.tensor(boxes, dtype=torch.float32)


@pytest.mark.parametrize(("scale_factor", "error"), [(1, 0), (2, 0.5), (1.5, 1)])
@pytest.mark.parametrize("whole_image_scale", [None, (300, 220)])
def test_what_is_seen_in_the_pixels_of_tiles_is_found_at_its_place(
    scale_factor, error, whole_image_scale
):
    pixels, boxes = bright_rectangles()
    detector = TiledDetector(
        {"type": "BrightnessDetectorInTests"},
        tile_size=64,
        overlap=20,
        scale_factor=scale_factor,
        whole_image_scale=whole_image_scale,
    )
    (sample,) = detector.test_step(loaded_image(pixels))
    found = sample.pred_instances.bboxes
    distance = (found[:, None] - boxes).abs().amax(dim=-1)
    assert len(found) == len(boxes)
    assert (distance.amin(dim=0) <= error).all()
    assert sample.tiles[:2] == [(0, 0, 64, 64), (44, 0, 108, 64)]
    assert len(sample.tiles) == 7 * 5


def test_objects_larger_than_a_tile_are_found_whole_in_the_whole_image():
    pixels = torch.zeros((3, 200, 300), dtype=torch.uint8)
    pixels[:, 20:180, 30:270] = 255  # large
    pixels[:, 2:10, 60:70] = 255
    settings = {"tile_size": 64, "overlap": 20, "scale_factor": 1}
    only_tiles = TiledDetector({"type": "BrightnessDetectorInTests"}, **settings)
    both = TiledDetector(
        {"type": "BrightnessDetectorInTests"}, **settings, whole_image_scale=(300, 200)
    )
    only_whole = TiledDetector(
        {"type": "BrightnessDetectorInTests"}, tile_size=None, whole_image_scale=(150, 100)
    )
    found = only_tiles.test_step(loaded_image(pixels))[0].pred_instances.bboxes
    assert len(found) > 2
    for detector in (both, only_whole):
        (sample,) = detector.test_step(loaded_image(pixels))
        found = sample.pred_instances.bboxes
        assert sorted(map(tuple, found.tolist())) == [(30, 20, 270, 180), (60, 2, 70, 10)]
    assert only_whole.batches == [(1, 3, 100, 150)]
    assert sample.tiles == []


def test_tiles_go_through_the_detector_in_batches():
    pixels, _ = bright_rectangles()
    detector = TiledDetector(
        {"type": "BrightnessDetectorInTests"},
        tile_size=64,
        overlap=20,
        scale_factor=1.5,
        batch_size=16,
        whole_image_scale=(150, 150),
    )
    detector.val_step(loaded_image(pixels))
    tiles = [(16, 3, 96, 96), (16, 3, 96, 96), (3, 3, 96, 96)]
    assert detector.batches == [*tiles, (1, 3, 110, 150)]


def test_images_smaller_than_a_tile_are_resized_by_the_same_factor():
    pixels, boxes = bright_rectangles(60, 50)
    detector = TiledDetector(
        {"type": "BrightnessDetectorInTests"}, tile_size=80, overlap=20, scale_factor=2
    )
    (sample,) = detector.test_step(loaded_image(pixels))
    assert detector.batches == [(1, 3, 100, 120)]
    assert len(sample.pred_instances) == len(boxes)


def test_detections_below_the_score_threshold_and_beyond_the_limit_are_dropped():
    pixels, _ = bright_rectangles()
    settings = {"tile_size": 64, "overlap": 20, "scale_factor": 1}
    image = loaded_image(pixels)
    few = TiledDetector({"type": "BrightnessDetectorInTests"}, **settings, max_detections=10)
    assert len(few.test_step(image)[0].pred_instances) == 10
    none = TiledDetector({"type": "BrightnessDetectorInTests"}, **settings, score_threshold=0.91)
    assert len(none.test_step(image)[0].pred_instances) == 0


def test_boxes_in_half_precision_keep_their_place_in_a_large_image(monkeypatch):
    """Half precision resolves every pixel of a tile, but only every fourth of this image's end."""
    boxes = torch.tensor([[5001.0, 11, 5022, 33], [4995, 40, 5010, 55]])
    detector = TiledDetector(
        {"type": "PerfectDetectorInTests", "boxes": boxes, "labels": torch.zeros(2).long()},
        scale_factor=1,
    )
    find = detector.find
    monkeypatch.setattr(
        detector, "find", lambda *view: (find(*view)[0].half(), find(*view)[1]), raising=False
    )
    pixels = torch.zeros((1, 1, 1), dtype=torch.uint8).expand(3, 100, 5100)
    (sample,) = detector.test_step(loaded_image(pixels))
    assert sorted(sample.pred_instances.bboxes.tolist()) == sorted(boxes.tolist())


def test_the_annotation_comes_back_as_mmdets_preprocessor_leaves_it():
    """Metrics that read it expect tensors."""
    pixels, boxes = bright_rectangles()
    data = loaded_image(pixels)
    data["data_samples"][0].gt_instances = InstanceData(bboxes=HorizontalBoxes(boxes))
    detector = TiledDetector(
        {"type": "BrightnessDetectorInTests"}, tile_size=None, whole_image_scale=(300, 220)
    )
    (sample,) = detector.test_step(data)
    assert torch.equal(sample.gt_instances.bboxes, boxes)


def test_an_image_that_was_resized_before_is_refused():
    data = loaded_image(torch.zeros((3, 50, 60), dtype=torch.uint8))
    data["data_samples"][0].set_metainfo({"ori_shape": (100, 120), "img_path": "a.jpg"})
    detector = TiledDetector({"type": "BrightnessDetectorInTests"})
    with pytest.raises(ValueError, match=r"a\.jpg .* \(100, 120\) came as \(50, 60\)"):
        detector.test_step(data)


def test_nothing_to_test_on_is_refused():
    with pytest.raises(ValueError, match="neither tiles nor the whole image"):
        TiledDetector({"type": "BrightnessDetectorInTests"}, tile_size=None)
    with pytest.raises(ValueError, match="overlap=800"):
        TiledDetector({"type": "BrightnessDetectorInTests"}, overlap=800)


RETINANET = ConfigDict(
    {
        "type": "mmdet.RetinaNet",
        "data_preprocessor": {
            "type": "mmdet.DetDataPreprocessor",
            "mean": [120, 115, 100],
            "std": [58, 57, 56],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "out_indices": (1, 2, 3)},
        "neck": {"type": "FPN", "in_channels": [16, 32, 64], "out_channels": 8, "num_outs": 3},
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": 2,
            "in_channels": 8,
            "stacked_convs": 1,
            "feat_channels": 8,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": 1,
                "ratios": [1.0],
                "strides": [8, 16, 32],
            },
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
        },
        "test_cfg": {
            "nms_pre": 100,
            "score_thr": 0.0,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": 20,
        },
    }
)


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    # The scope of conftest.py is that of tests, which begin after what they share.
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = MODELS.build(RETINANET).eval()
    for parameter in detector.bbox_head.parameters():  # scores that differ
        torch.nn.init.normal_(parameter, std=0.3)
    return detector


def test_a_detector_keeps_its_parameter_names_and_loads_its_checkpoints(pretrained):
    tiled = TiledDetector(RETINANET)
    assert list(tiled.state_dict()) == list(pretrained.state_dict())
    load_state_dict(tiled, pretrained.state_dict(), strict=True)
    assert isinstance(tiled, type(pretrained))


def test_one_tile_is_detected_as_an_image_of_the_ordinary_test_pipeline(pretrained):
    """Bit for bit: the same pixels, the same meta information, the same rescaling of boxes."""
    tiled = TiledDetector(
        RETINANET, tile_size=64, overlap=0, scale_factor=1.5, score_threshold=0, iou_threshold=1
    ).eval()
    tiled.load_state_dict(pretrained.state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (60, 64, 3), np.uint8)
    results = {"img": pixels, "img_shape": (60, 64), "ori_shape": (60, 64)}
    resized = PackDetInputs()(Resize(scale_factor=1.5, keep_ratio=True)(dict(results)))
    loaded = PackDetInputs()(dict(results))

    def detect(detector, packed):
        with torch.no_grad():
            batch = {name: [part] for name, part in packed.items()}
            return detector.test_step(batch)[0].pred_instances

    expected, found = detect(pretrained, resized), detect(tiled, loaded)
    order = expected.scores.argsort(descending=True, stable=True)
    assert len(expected) == 20
    assert torch.equal(found.bboxes, expected.bboxes[order])
    assert torch.equal(found.scores, expected.scores[order])
    assert torch.equal(found.labels, expected.labels[order])


@pytest.mark.parametrize("copy", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_detector_test_on_tiles_too(copy):
    """mmengine's EMAHook, for one, tests a copy."""
    pixels, _ = bright_rectangles()
    copied = copy(TiledDetector(RETINANET, tile_size=64, overlap=20))
    assert copied.tiled_testing.tile_size == 64
    with torch.no_grad():
        (sample,) = copied.eval().test_step(loaded_image(pixels))
    assert len(sample.tiles) == 35


def test_a_runner_tests_on_tiles_and_counts_every_box_once(tmp_path):
    """Through mmengine's test loop and mmdet's metric, from a config and files."""
    pixels, boxes = bright_rectangles(200, 150)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 3, "file_name": "image.png", "height": 150, "width": 200}],
        "categories": [{"id": 1, "name": "rectangle"}],
        "annotations": [
            {
                "id": index + 1,
                "image_id": 3,
                "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for index, (x1, y1, x2, y2) in enumerate(boxes.tolist())
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth.dataset))
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs"},
    ]
    runner = Runner.from_cfg(
        Config(
            {
                "default_scope": "mmdet",
                "work_dir": str(tmp_path),
                "experiment_name": f"tiles_{tmp_path.name}",
                "log_level": "ERROR",
                "model": {
                    "type": "TiledDetector",
                    "detector": {"type": "BrightnessDetectorInTests"},
                    "tile_size": 64,
                    "overlap": 20,
                    "scale_factor": 1,
                },
                "test_dataloader": {
                    "batch_size": 1,
                    "num_workers": 0,
                    "sampler": {"type": "DefaultSampler", "shuffle": False},
                    "dataset": {
                        "type": "CocoDataset",
                        "data_root": str(tmp_path),
                        "ann_file": "truth.json",
                        "metainfo": {"classes": ("rectangle",)},
                        "data_prefix": {"img": ""},
                        "pipeline": pipeline,
                        "test_mode": True,
                    },
                },
                "test_cfg": {"type": "TestLoop"},
                "test_evaluator": {
                    "type": "CocoMetric",
                    "ann_file": str(tmp_path / "truth.json"),
                },
            }
        )
    )
    assert runner.test()["coco/bbox_mAP"] == 1.0
