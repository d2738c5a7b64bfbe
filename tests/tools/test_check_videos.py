"""Videos that cannot be decoded are named before a training meets them."""

import pytest

pytest.importorskip("mmcv")
from tools.check_videos import main  # isort: skip

from tests.video_clips import write_kinetics
from tools.browse_dataset import main as browse


def test_missing_and_damaged_videos_are_named(make_config, tmp_path, capsys):
    data = write_kinetics(tmp_path / "data")
    config = str(make_config(data=data))
    assert main([config, "--processes", "1"]) == 0
    assert "0 of 8 videos cannot be decoded" in capsys.readouterr().out

    (data / "videos_train/class 0/clip_2.mp4").unlink()
    damaged = data / "videos_val/class 1/clip_1.mp4"
    damaged.write_bytes(damaged.read_bytes()[:300])
    assert main([config, "--processes", "1"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 of 8 videos cannot be decoded"
    assert any(
        "clip_2.mp4 (" in line and "line 3): there is no such file" in line for line in lines
    )
    assert any("clip_1.mp4 (" in line and "val_list_videos.txt, line 2)" in line for line in lines)
    assert main([config, "--processes", "1", "--lists", "val"]) == 1


def test_a_set_that_the_config_lacks_is_named(make_config, tmp_path, capsys):
    config, lacking = str(make_config()), ["--cfg-options", "val_dataloader=None"]
    with pytest.raises(SystemExit):
        main([config, *lacking])
    assert "has no val_dataloader: leave val out of --lists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        browse([config, "--split", "val", "--out", str(tmp_path), *lacking])
    assert "has no val_dataloader: choose another --split" in capsys.readouterr().err
