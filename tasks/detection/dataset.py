"""Objects in images, listed in COCO files that are checked before anything is trained on them."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from dr2net.openmmlab.random_state import sample_random_state

from .annotations import (
    BadInputError,
    Finding,
    category_ids,
    check_mode,
    clean,
    read_coco,
    settle,
    size_of,
)
from .class_names import METAINFO


@DATASETS.register_module()
class SmallObjectDataset(CocoDataset):
    """Dataset over a COCO file; items as mmdet's ``CocoDataset`` has them, except:

    - What is wrong with the file or its images ends the run or is left out with a message; see
      ``bad_input``. ``CocoDataset`` passes over it in silence.
    - Boxes narrower than a pixel are kept, and so are crowd and ignored ones: they have
      ``ignore_flag=1`` (``PackDetInputs`` puts them into ``ignored_instances``), and the label -1
      where their category is one of ``ignored_classes``.
    - Labels follow the order of the classes, not that of the file's categories.

    Args:
        *args: The arguments of ``CocoDataset``.
        metainfo: The name of a set in ``class_names.METAINFO``, or a dict with ``classes`` and, if
            there are any, ``ignored_classes``. Annotations of categories in neither are left out
            and counted in the log.
        bad_input: ``"strict"``: raise over what is wrong, naming it by file and id. ``"skip"``:
            leave out exactly that, and log what and how many.
        allow_empty: Whether training takes images without objects; otherwise they are bad input,
            unless ``filter_cfg=dict(filter_empty_gt=True)`` takes them out. Tests always take them,
            since detections in them count as false.
        check_images: Read the header of every image file once, at the start, for missing and
            damaged files and wrong sizes. Not done where ``backend_args`` are given.
        **kwargs: The arguments of ``CocoDataset``.

    Attributes:
        findings: All that was left out, in the order of the file.

    Raises:
        FileNotFoundError: There is no annotation file.
        BadInputError: The annotation file is not a COCO file or has no category of a class, no
            image is left, or something is wrong in it and ``bad_input`` is strict.
    """

    def __init__(
        self,
        *args: object,
        metainfo: str | Mapping = "coco",
        bad_input: str = "strict",
        allow_empty: bool = False,
        check_images: bool = True,
        **kwargs: object,
    ) -> None:
        if isinstance(metainfo, str):
            if metainfo not in METAINFO:
                raise ValueError(f"metainfo names none of {', '.join(METAINFO)}: {metainfo!r}")
            metainfo = METAINFO[metainfo]
        check_mode(bad_input)
        self.bad_input = bad_input
        self.allow_empty = allow_empty
        self.check_images = check_images
        self.findings: list[Finding] = []
        super().__init__(*args, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read and check the annotation file; return what is right in it, an item per image."""
        path = Path(self.ann_file)
        with get_local_path(self.ann_file, backend_args=self.backend_args) as local:
            coco = read_coco(Path(local), annotated=not self.test_mode)
        self.cat_ids = category_ids(coco, self.metainfo["classes"], path)
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        ignored = self.metainfo.get("ignored_classes", ())
        self.ignored_categories = {c["id"] for c in coco["categories"] if c["name"] in ignored}

        filtered = (self.filter_cfg or {}).get("filter_empty_gt", False)
        objects = None if self.allow_empty or self.test_mode or filtered else self.cat2label
        folder = None
        if self.check_images and self.backend_args is None:
            folder = Path(self.data_prefix["img"])
        coco, self.findings = clean(coco, folder, objects)
        settle(self.findings, self.bad_input, path, size_of(coco))
        self._report_what_is_odd(coco)

        annotations = defaultdict(list)
        self.cat_img_map = {category: set() for category in self.cat_ids}
        for annotation in coco["annotations"]:
            category = annotation["category_id"]
            if category in self.cat2label:
                self.cat_img_map[category].add(annotation["image_id"])
            if category in self.cat2label or category in self.ignored_categories:
                annotations[annotation["image_id"]].append(annotation)
        return [
            self.parse_data_info(
                {
                    "raw_img_info": {**image, "img_id": image["id"]},
                    "raw_ann_info": annotations[image["id"]],
                }
            )
            for image in coco["images"]
        ]

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Return the item of an image; all of its annotations are right."""
        item = super().parse_data_info({**raw_data_info, "raw_ann_info": []})
        for annotation in raw_data_info["raw_ann_info"]:
            x, y, width, height = annotation["bbox"]
            category = annotation["category_id"]
            ignored = (
                category in self.ignored_categories
                or annotation["iscrowd"]
                or annotation.get("ignore", False)
            )
            instance = {
                "bbox": [x, y, x + width, y + height],
                "bbox_label": self.cat2label.get(category, -1),
                "ignore_flag": int(bool(ignored)),
            }
            if annotation.get("segmentation"):
                instance["mask"] = annotation["segmentation"]
            item["instances"].append(instance)
        return item

    def filter_data(self) -> list[dict]:
        """Filter as ``filter_cfg`` says, and log how many images that takes."""
        kept = super().filter_data()
        if len(kept) < len(self.data_list):
            left_out = len(self.data_list) - len(kept)
            print_log(
                f"filter_cfg={self.filter_cfg} leaves out {left_out} of {len(self.data_list)} "
                f"images of {self.ann_file}",
                logger="current",
            )
        if not kept:
            raise BadInputError(f"no image of {self.ann_file} is left to be used", self.findings)
        return kept

    def __getitem__(self, index: int) -> dict:
        """One image after the pipeline, whose random numbers are those of the sampler's seed."""
        with sample_random_state(index):
            return super().__getitem__(int(index))

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the labels of the objects in an image, for samplers that balance classes."""
        instances = self.get_data_info(idx)["instances"]
        return [instance["bbox_label"] for instance in instances if not instance["ignore_flag"]]

    def _report_what_is_odd(self, coco: dict) -> None:
        """Log what is legal and kept, or asked for, but may not be meant."""
        names = {category["id"]: category["name"] for category in coco["categories"]}
        images = {image["id"]: image for image in coco["images"]}
        others: Counter[str] = Counter()
        cut, too_large = [], []
        for annotation in coco["annotations"]:
            category = annotation["category_id"]
            if category not in self.cat2label and category not in self.ignored_categories:
                others[names[category]] += 1
                continue
            x, y, width, height = annotation["bbox"]
            image = images[annotation["image_id"]]
            if min(x, y) < 0 or x + width > image["width"] or y + height > image["height"]:
                cut.append(annotation["id"])
            # A hundredth for files that round coordinates and areas.
            if annotation["area"] > 1.01 * width * height + 1:
                too_large.append(annotation["id"])
        lines = []
        if others:
            counts = ", ".join(f"{name}: {count}" for name, count in others.most_common())
            lines.append(f"not among the classes, left out: {counts}")
        if cut:
            lines.append(f"boxes partly outside their image, kept: {len(cut)}, first id {cut[0]}")
        if too_large:
            lines.append(
                f"area larger than the box, which misleads AP by size, kept: {len(too_large)}, "
                f"first id {too_large[0]}"
            )
        if lines:
            print_log("\n  ".join([f"{self.ann_file}:", *lines]), logger="current")
