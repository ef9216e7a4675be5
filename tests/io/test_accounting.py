"""How the tensors of a file and of a network differ, and how that is said."""

from __future__ import annotations

import torch

from cosmos_predict.io.accounting import compare, rows, shapes_of


def test_every_difference_has_its_place() -> None:
    found = shapes_of({"a": torch.zeros(2), "b": torch.zeros(3, 1), "c": torch.zeros(())})
    difference = compare(found, {"a": (2,), "b": (3, 2), "d": (4,)})
    assert difference.missing == ("d",) and difference.unexpected == ("c",)
    assert difference.wrong_shape == (("b", (3, 1), (3, 2)),)
    assert str(difference).splitlines() == [
        "missing from the file: 1",
        "  d",
        "not in the network: 1",
        "  c",
        "wrong shape: 1",
        "  b  file (3, 1), network (3, 2)",
    ]


def test_no_difference_is_false() -> None:
    assert not compare({"a": (2,)}, {"a": (2,)})


def test_long_lists_are_cut() -> None:
    assert rows(["x"] * 5, most=2) == ["  x", "  x", "  ... and 3 more"]
