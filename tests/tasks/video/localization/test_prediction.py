"""tools/predict.py on a localizer: ActivityNet's submission format, and a timeline."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
import tasks.video.localization  # noqa: F401  # isort: skip

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from tasks.video.localization import prediction
from tests.localization import CONFIGS
from tests.video_clips import write_clip
from tools.predict import main

CONFIG = CONFIGS / "demo/dr2net_vit_tiny_motion.py"
SHARED = CONFIGS.parents[3] / "shared/data/real/video"
# Windows of 4 seconds.
SHORT = {
    "test_dataloader.dataset.window.num_frames": 16,
    "test_dataloader.dataset.pipeline.1.num_frames": 16,
}
SECONDS = 9.0


@pytest.fixture(scope="module")
def config():
    config = Config.fromfile(CONFIG)
    config.merge_from_dict(SHORT)
    return config


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmaction")


@pytest.fixture(scope="module")
def model(config):
    init_default_scope("mmaction")
    torch.manual_seed(0)
    model = MODELS.build(config.model).eval()
    # Scores and ends of random weights that are not alike everywhere.
    torch.nn.init.normal_(model.head.cls_out.weight, std=0.5)
    torch.nn.init.constant_(model.head.reg_out.bias, 2.0)
    return model


@pytest.fixture
def predict(model, tmp_path):
    """Run tools/predict.py in this process; return what was wrong with inputs."""
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    options = [f"{name}={value}" for name, value in SHORT.items()]

    def run(*inputs):
        arguments = [CONFIG, tmp_path / "weights.pth", *inputs, "--out", tmp_path / "out"]
        return main([*map(str, arguments), "--device", "cpu", "--cfg-options", *options])

    return run


@pytest.fixture
def dataset(config, tmp_path):
    """The test data set of one annotated video."""
    write_clip(tmp_path / "clip.mp4", frames=int(SECONDS * 25))
    names = [f"class {label}" for label in range(8)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    actions = [{"label": "class 3", "segment": [1.0, 3.0]}]
    entry = {"subset": "validation", "duration": SECONDS, "annotations": actions}
    (tmp_path / "annotations.json").write_text(json.dumps({"database": {"clip": entry}}))
    settings = {**config.test_dataloader.dataset, "data_root": str(tmp_path)}
    return DATASETS.build({**settings, "data_prefix": {"video": ""}})


def read(folder, name):
    return json.loads((folder / f"out/{name}.json").read_text(encoding="utf-8"))


def test_a_video_gets_the_actions_that_a_test_submits(predict, model, config, dataset, tmp_path):
    assert predict(tmp_path / "clip.mp4") == []
    found = read(tmp_path, "clip")
    files = {"ann_file": f"{tmp_path}/annotations.json", "outfile": f"{tmp_path}/submission.json"}
    metric = METRICS.build({**config.test_evaluator, **files})
    metric.dataset_meta = dataset.metainfo
    assert len(dataset) == 4
    with torch.no_grad():
        for item in dataset:
            samples = model.test_step(pseudo_collate([item]))
            metric.process({}, [sample.to_dict() for sample in samples])
    metric.evaluate(len(dataset))
    submitted = json.loads((tmp_path / "submission.json").read_text())
    assert found["results"] == submitted["results"]
    assert len(found["results"]["clip"]) > 10
    assert max(action["segment"][1] for action in found["results"]["clip"]) > 4
    assert {key: found[key] for key in ("version", "external_data")} == {
        key: submitted[key] for key in ("version", "external_data")
    }
    assert found["seconds"] == SECONDS
    assert found["frames"] == SECONDS * 25
    with Image.open(tmp_path / "out/clip.png") as picture:
        assert picture.width > 1000


def test_a_damaged_video_is_named_and_the_others_go_on(predict, tmp_path):
    whole = write_clip(tmp_path / "in/good.mp4", frames=50).read_bytes()
    (tmp_path / "in/broken.mp4").write_bytes(whole[:200])
    (problem,) = predict(tmp_path / "in")
    assert problem.startswith(f"{tmp_path}/in/broken.mp4: it cannot be read")
    assert read(tmp_path, "good")["seconds"] == 2.0
    assert not (tmp_path / "out/broken.json").exists()


@pytest.mark.parametrize("name", ["test.avi", "test_video_structuralize.mp4"])
def test_a_real_clip_has_a_timeline_within_it(name, predict, tmp_path):
    file = SHARED / name
    if not file.is_file():
        pytest.skip(f"no real clip {file}")
    assert predict(file) == []
    found = read(tmp_path, file.stem)
    actions = found["results"][file.stem]
    assert actions
    end = found["seconds"] + 1e-3  # which are rounded
    assert all(0 <= a["segment"][0] <= a["segment"][1] <= end for a in actions)
    assert (tmp_path / f"out/{file.stem}.png").is_file()


def test_no_prediction_is_made_of_nan(model, config, tmp_path):
    file = write_clip(tmp_path / "clip.mp4", frames=50)
    find = prediction.finder(model, config, None)
    bias = model.head.cls_out.bias
    before = bias.detach().clone()
    try:
        bias.data.fill_(float("inf"))
        model.head.reg_out.bias.data.fill_(float("nan"))
        with pytest.raises(ValueError, match="NaN or infinity"):
            find(file, 2.0)
    finally:
        bias.data.copy_(before)
        model.head.reg_out.bias.data.fill_(2.0)


@pytest.mark.parametrize(
    ("classes", "count", "names"),
    [
        (["jump", "run"], 2, ["jump", "run"]),
        (["jump"], 3, ["jump", "class 1", "class 2"]),
        (None, 2, ["class 0", "class 1"]),
        # Of ActivityNet, where classes come from elsewhere.
        (["jump", "run"], 1, ["action"]),
        (["jump"], 1, ["jump"]),
    ],
)
def test_labels_have_names(classes, count, names):
    assert prediction.class_names(classes, count) == names


@pytest.mark.parametrize(
    ("class_agnostic", "names"), [(False, ["jump", "jump"]), (True, ["action", "action"])]
)
def test_drawn_actions_have_names_also_where_all_are_of_the_first_class(class_agnostic, names):
    instances = InstanceData(labels=torch.tensor([0, 0]), segments=torch.tensor([[0.0, 1], [2, 3]]))
    sample = SimpleNamespace(class_agnostic=class_agnostic)
    found = prediction._actions(instances, sample, ["jump", "run"])
    assert [action["label"] for action in found] == names


def test_evaluators_in_a_list_merge_alike(model, config, tmp_path):
    write_clip(tmp_path / "clip.mp4", frames=50)
    listed = config.copy()
    listed.test_evaluator = [config.test_evaluator]
    found = (
        prediction.finder(model, given, None)(tmp_path / "clip.mp4", 2.0)
        for given in (config, listed)
    )
    assert next(found) == next(found)


def test_items_and_tested_windows_are_drawn(model, dataset, tmp_path):
    item = dataset[0]
    classes = list(dataset.metainfo["classes"])
    prediction.draw_item(item, classes, tmp_path / "item.1")
    batch = pseudo_collate([item])
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    assert prediction.name_of(sample) == "clip_0.0s"
    prediction.draw_tested(sample, batch, 0, classes, tmp_path / "tested")
    for name in ("item.1.png", "tested.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
