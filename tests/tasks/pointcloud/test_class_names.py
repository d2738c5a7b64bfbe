import pytest

pytest.importorskip("mmengine")
from tasks.pointcloud.class_names import CLASS_ORDERS, CLASSES, COLORS, named_order


def test_both_orders_have_the_same_classes():
    assert all(sorted(order) == sorted(CLASSES) for order in CLASS_ORDERS.values())
    assert len(set(CLASS_ORDERS.values())) == 2


def test_the_orders_differ_in_the_labels_7_to_10():
    one, other = CLASS_ORDERS["mmdetection3d"], CLASS_ORDERS["openpoints"]
    assert [n for n in range(13) if one[n] != other[n]] == [7, 8, 9, 10]
    assert one[7:11] == ("table", "chair", "sofa", "bookcase")
    assert other[7:11] == ("chair", "table", "bookcase", "sofa")


def test_ours_is_that_of_pointcept_whose_layout_is_written():
    assert CLASS_ORDERS["pointcept"] == CLASSES


def test_classes_have_different_colours():
    assert list(COLORS) == list(CLASSES)
    assert len({*COLORS.values(), (255, 255, 255)}) == 14


def test_an_order_is_called_by_whose_it_is():
    assert named_order(CLASS_ORDERS["kpconv"]) == "the order of openpoints and kpconv"
    assert named_order(["wall", "floor"]) == "the order wall, floor"
