from pathlib import Path

import pytest


@pytest.fixture
def shared_videos():
    """The folder of real clips that lies beside the checkout."""
    folder = Path(__file__).parents[4] / "shared/data/real/video"
    if not folder.is_dir():
        pytest.skip(f"no real clips in {folder}")
    return folder
