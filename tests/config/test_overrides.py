"""The override grammar: values, forms, errors."""

import math

import pytest

from cosmos_predict.config.overrides import Leaf, apply_leaf, parse_overrides, parse_value
from cosmos_predict.config.schema import Config, config_tree
from cosmos_predict.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("3", 3),
        ("-2", -2),
        ("1_000", 1000),
        ("2.5", 2.5),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("None", None),
        ("null", None),
        ("", ""),
        ("adamw8bit", "adamw8bit"),
        ("a=b=c", "a=b=c"),
        ("/data/x y/v.mp4", "/data/x y/v.mp4"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("A robot: it turns # left", "A robot: it turns # left"),
        ("- dash", "- dash"),
        ("2025-01-02", "2025-01-02"),
        ("'1e-6'", "1e-6"),
        ("'None'", "None"),
        ('"a, b"', "a, b"),
        ("[1, 2e-3, None, x=y]", [1, 2e-3, None, "x=y"]),
        ("{a: 1, b: [null, c]}", {"a": 1, "b": [None, "c"]}),
        ("[]", []),
        ("${trainer.max_iter}", "${trainer.max_iter}"),
        ("*star", "*star"),
        ("50%", "50%"),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("text", ["[1, 2", "{a: 1", "'open", "[a]] b"])
def test_broken_flow(text):
    with pytest.raises(ConfigError, match=r"is not valid YAML flow .*: put quotes around text"):
        parse_value(text)


def test_kinds_are_sorted_and_leaves_keep_their_order():
    arguments = ["a.b=1", "callbacks=[ema,speed]", "~c.d", "debug=true", "optimizer=sgd", "experiment=x", "+e.f=[1]"]
    parsed = parse_overrides(arguments, {"optimizer", "callbacks"})
    assert parsed.experiment == "x" and parsed.debug
    assert parsed.groups == [("callbacks", "ema"), ("callbacks", "speed"), ("optimizer", "sgd")]
    assert [(leaf.action, leaf.key, leaf.value) for leaf in parsed.leaves] == [
        ("set", "a.b", 1),
        ("remove", "c.d", None),
        ("add", "e.f", [1]),
    ]


def test_null_on_a_group_sets_the_node():
    leaf = parse_overrides(["optimizer=null"], {"optimizer"}).leaves[0]
    assert (leaf.key, leaf.value) == ("optimizer", None)


@pytest.mark.parametrize("argument", ["key", "=3", "+a", "~a=3", "a..b=1", ".a=1", "~", "+=1", ""])
def test_forms_that_cannot_be_read(argument):
    with pytest.raises(ConfigError, match=r"cannot read the override .*: expected experiment=NAME, group=name"):
        parse_overrides([argument], ())


def test_debug_is_a_boolean():
    with pytest.raises(ConfigError, match=r"debug=maybe: expected true or false"):
        parse_overrides(["debug=maybe"], ())
    assert not parse_overrides(["debug=false"], ()).debug


def tree() -> dict:
    return {
        **config_tree(Config()),
        "model": {
            "_target_": "cosmos_predict.randomness.derive_seed",
            "net": {"blocks": 28, "rate": 0.1, "flag": False, "name": "dit", "ids": [1, 2], "none": None},
            "frames": {0: 0.5, 1: 0.5},
        },
    }


def put(*arguments: str) -> dict:
    result = tree()
    for leaf in parse_overrides(arguments, ()).leaves:
        apply_leaf(result, leaf)
    return result


def test_set_add_remove():
    result = put(
        "model.net.blocks=2", "model.net.ids=[3]", "+model.net.new.deep=1", "~model.net.flag", "model.net.none=x"
    )
    assert result["model"]["net"] == {
        "blocks": 2, "rate": 0.1, "name": "dit", "ids": [3], "none": "x", "new": {"deep": 1},
    }  # fmt: skip


def test_items_of_lists_and_integer_keys():
    result = put("model.net.ids.1=7", "model.frames.0=0.25", "~model.frames.1")
    assert result["model"]["net"]["ids"] == [1, 7] and result["model"]["frames"] == {0: 0.25}


def test_a_mapping_sets_its_keys_one_by_one():
    result = put("model.net={blocks: 3, flag: true}", "trainer={max_iter: 5}")
    assert result["model"]["net"]["blocks"] == 3 and result["model"]["net"]["rate"] == 0.1
    assert result["trainer"]["max_iter"] == 5 and result["trainer"]["seed"] == 0
    with pytest.raises(ConfigError, match=r"unknown config key 'trainer.max_iters': did you mean 'trainer.max_iter'"):
        put("trainer={max_iters: 5}")


def test_text_fields_take_text_as_typed():
    result = put("job.name=001", "job.group=1e3", "checkpoint.load_path=null", "job.project='2'")
    assert (result["job"]["name"], result["job"]["group"], result["job"]["project"]) == ("001", "1e3", "2")
    assert result["checkpoint"]["load_path"] is None


def test_a_keyword_of_the_target_need_not_be_spelled_out():
    assert put("model.seed=4")["model"]["seed"] == 4  # a parameter of derive_seed


def test_interpolation_may_replace_any_leaf():
    assert put("model.net.blocks=${trainer.seed}")["model"]["net"]["blocks"] == "${trainer.seed}"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.max_iters=3", r"unknown config key 'trainer.max_iters': did you mean 'trainer.max_iter'.*\+trainer"),
        ("max_iter=3", "unknown config key 'max_iter': did you mean 'trainer.max_iter'"),
        ("model.net.block=3", "did you mean 'model.net.blocks'"),
        ("model.nte.blocks=3", "unknown config key 'model.nte.blocks': did you mean 'model.net.blocks'"),
        ("model.sede=3", "unknown config key 'model.sede': did you mean .*'model.seed'"),
        ("model.net.ids.2=3", "unknown config key 'model.net.ids.2'"),
        ("model.net.blocks.deep=3", "unknown config key"),
        ("~model.net.rat", "unknown config key 'model.net.rat': did you mean 'model.net.rate'"),
        (r"+model.net.rate=1", r"\+model.net.rate: the key exists already; write model.net.rate=..."),
        ("+model.net.rate.x=1", "cannot add 'model.net.rate.x': 'model.net.rate' is not a mapping"),
        ("model.net.blocks={a: 1}", "model.net.blocks={a: 1}: expected a single value, as 28 is"),
        ("model.net.blocks=many", "model.net.blocks=many: expected a number, as 28 is"),
        ("model.net.rate=true", "model.net.rate=true: expected a number, as 0.1 is"),
        ("model.net.flag=ture", "model.net.flag=ture: expected true or false, as False is"),
        ("model.net.ids=3", r"model.net.ids=3: expected a list \(\[a,b\]\), as \[1, 2\] is"),
        ("model.net=3", r"model.net=3: expected a mapping \(set its keys one by one\)"),
        ("model.net={}", "would change nothing: remove the key with ~model.net"),
        ("trainer=3", "trainer=3: expected a mapping"),
        ("trainer.max_iter={a: 1}", "trainer.max_iter={'a': 1}: expected a whole number, got dict"),
        ("trainer.max_iter=ten", "trainer.max_iter='ten': expected a whole number, got str"),
        ("job.name=null", "job.name=None: expected text"),
        ("optimizer=adamw", "optimizer='adamw': expected a mapping"),
    ],
)
def test_errors(argument, message):
    with pytest.raises(ConfigError, match=message):
        put(argument)


def test_unknown_key_suggests_groups():
    with pytest.raises(ConfigError, match=r"unknown config key 'callback': did you mean .*'callbacks'"):
        apply_leaf(tree(), Leaf("set", "callback", "ema", "ema"), {"callbacks"})
