import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def scope_of_mmengine():
    """As ``default_scope`` in the configs, whatever other tests have left."""
    with DefaultScope.overwrite_default_scope("mmengine"):
        yield
