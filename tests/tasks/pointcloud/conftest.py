from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def scope_of_mmengine():
    """As ``default_scope`` in the configs, whatever other tests have left."""
    if find_spec("mmengine") is None:  # as on machines with a GPU
        yield
        return
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmengine"):
        yield
