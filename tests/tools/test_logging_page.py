import re
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
from mmengine.config import Config, DictAction
from mmengine.registry import VISBACKENDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/logging.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path",
    [
        "video/dr2net_vitb_k400.py",
        "detection/dr2net_retinanet_swint_coco.py",
        "pointcloud/dr2net_pix4point_s3dis.py",
    ],
)
def test_options_of_the_page_exchange_tensorboard_for_another(path):
    config = Config.fromfile(ROOT / "configs" / path)
    assert [backend.type for backend in config.visualizer.vis_backends] == [
        "mmengine.LocalVisBackend",
        "mmengine.TensorboardVisBackend",
    ]
    options = re.findall(r"^ +(visualizer\.\S+)=(\S+)", PAGE, re.MULTILINE)
    config.merge_from_dict({key: DictAction._parse_int_float_bool(v) for key, v in options})
    backend = config.visualizer.vis_backends[1]
    assert backend == {
        "type": "mmengine.WandbVisBackend",
        "init_kwargs": {"project": "gestures"},
    }
    assert VISBACKENDS.get(backend.type) is not None


def test_backends_that_the_page_names_are_there():
    for name in re.findall(r"`?(\w+VisBackend)", PAGE):
        assert VISBACKENDS.get(name) is not None, name
