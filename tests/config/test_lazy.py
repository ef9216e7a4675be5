"""LazyCall and instantiate."""

import dataclasses
from collections import OrderedDict
from typing import Any

import attrs
import pytest
from omegaconf import DictConfig, OmegaConf

from cosmos_predict.config.lazy import LazyCall, LazyDict, instantiate, lazy_dict
from cosmos_predict.errors import ConfigError


class Net:
    def __init__(self, width: int = 8, depth: int = 2, scale: float = 1.0, activation=len, head: object = None) -> None:
        self.width, self.depth, self.scale, self.activation, self.head = width, depth, scale, activation, head


def build(net, *rest, name="x", **options):
    return net, rest, name, options


@dataclasses.dataclass
class Size:
    height: int = 4
    width: int = 6


@attrs.frozen
class Pair:
    _items: Any


def test_lazy_call_holds_defaults_keywords_and_target():
    call = LazyCall(Net)(depth=3)
    assert isinstance(call, DictConfig) and LazyDict is DictConfig
    # a default that a file cannot hold (a callable) is left to the target
    assert dict(call) == {"width": 8, "depth": 3, "scale": 1.0, "head": None, "_target_": Net}


def test_a_name_is_not_imported_and_captures_nothing():
    call = LazyCall("no.such.package.Thing")(max_iter=1)
    assert dict(call) == {"max_iter": 1, "_target_": "no.such.package.Thing"}


def test_unknown_keyword_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Net takes no keyword 'widht': did you mean 'width'\?"):
        LazyCall(Net)(widht=4)
    call = LazyCall(f"{__name__}.Net")(widht=4)
    with pytest.raises(ConfigError, match=r"takes no keyword 'widht' \(config key model\): did you mean 'width'"):
        instantiate(lazy_dict({"model": call}).model)


def test_a_target_must_be_callable_or_a_name():
    with pytest.raises(ConfigError, match=r"needs a callable or its dotted name, not 3"):
        LazyCall(3)  # pyright: ignore[reportArgumentType]


def test_instantiate_is_recursive_through_mappings_and_lists():
    tree = lazy_dict({"nets": [LazyCall(Net)(width=1), {"inner": LazyCall(Net)(head=LazyCall(Net)(width=5))}, 7]})
    built = instantiate(tree)
    assert type(built) is dict and type(built["nets"]) is list
    first, second, third = built["nets"]
    assert (first.width, second["inner"].head.width, third) == (1, 5, 7)
    assert first.activation is len


def test_call_time_arguments_win_and_their_children_are_not_built():
    call = LazyCall(build)(net=LazyCall("no.such.Net")(), name="config", extra=1)
    assert instantiate(call, net="given", name="call") == ("given", (), "call", {"extra": 1})
    assert instantiate(LazyCall(build)(name="n"), "net", 2) == ("net", (2,), "n", {})


def test_recursive_false_passes_children_through():
    call = LazyCall(build)(net=LazyCall(Net)(), _recursive_=False)
    net = instantiate(call)[0]
    assert isinstance(net, DictConfig) and net["_target_"] is Net


def test_plain_dicts_work_and_other_values_pass():
    assert instantiate({"_target_": f"{__name__}.Net", "width": 3}).width == 3
    assert instantiate([1, "a", None]) == [1, "a", None]
    assert instantiate(None) is None


def test_structured_nodes_become_their_object():
    assert instantiate(OmegaConf.structured(Size(height=9))) == Size(9, 6)
    call = LazyCall(build)(net=Size(width=1), name=Pair(("a", 1)))
    assert call.net == {"_target_": f"{__name__}.Size", "height": 4, "width": 1}
    assert instantiate(call)[:3:2] == (Size(4, 1), Pair(["a", 1]))
    assert instantiate(lazy_dict({"net": OmegaConf.structured(Size(height=9))})) == {"net": Size(9, 6)}
    assert LazyCall(Size)(height=2)["_target_"] == f"{__name__}.Size"
    assert instantiate(LazyCall(Size)(height=2)) == Size(2, 6)


def test_interpolations_resolve_in_their_tree():
    tree = lazy_dict({"size": 5, "net": LazyCall(Net)(width="${size}")})
    assert instantiate(tree.net).width == 5


def test_what_cannot_be_called_says_why():
    with pytest.raises(ConfigError, match=r"cannot be called: missing a required argument: 'net'"):
        instantiate(LazyCall(build)())
    with pytest.raises(ConfigError, match=r"config key net.width has no value \(\?\?\?\)"):
        instantiate(lazy_dict({"net": LazyCall(Net)(width="???")}))
    with pytest.raises(ConfigError, match=r"has no _target_"):
        instantiate(lazy_dict({"width": 1}), 2)
    with pytest.raises(ConfigError, match=r"expected a mapping with _target_, got None"):
        instantiate(None, model=1)
    with pytest.raises(ConfigError, match=r"not callable: 3"):
        instantiate({"_target_": 3})


def test_wrong_names_of_targets():
    with pytest.raises(ConfigError, match=r"has no 'Nte' .*did you mean 'Net'"):
        instantiate({"_target_": f"{__name__}.Nte"})
    with pytest.raises(ConfigError, match=r"'a..b' is no name of an object"):
        instantiate({"_target_": "a..b"})
    with pytest.raises(ConfigError, match=r"no module for 'nowhere.Thing'"):
        instantiate({"_target_": "nowhere.Thing"})


def test_an_error_inside_the_call_keeps_its_type_and_gains_the_place():
    with pytest.raises(TypeError) as caught:
        instantiate(lazy_dict({"a": {"b": LazyCall(OrderedDict)(x=1)}}).a.b, 3)
    assert "while building collections.OrderedDict (config key a.b)" in caught.value.__notes__
