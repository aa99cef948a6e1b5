"""Tests of look-ups, ClassIds and registries; the texts of errors are part of the contract."""

import json
import subprocess
import sys
import textwrap

import pytest
from registry_samples import NAMES, message, small

from prepkit.errors import PrepkitError, RegistryError
from prepkit.families.registry import (
    Architecture,
    Registry,
    architecture,
    built_in_registry,
    default_class_id,
)


def test_the_registry_and_its_facts_come_without_torch():
    code = textwrap.dedent("""
        import sys
        import prepkit.families.registry as registry
        for name in registry.architectures():
            one = registry.architecture(name)
            print(name, one.family, one.input_shape, one.num_parameters, one.num_trainable, one.config)
        for name in ("cifar10", "tiny_imagenet", "digits", "sdf", "sdf_small"):
            print(registry.built_in_registry(name).class_ids, registry.built_in_registry(name).teacher)
        assert "torch" not in sys.modules, "torch was imported"
        assert "numpy" not in sys.modules, "numpy was imported"
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resnet56@cifar10 resnet (3, 32, 32) 853642 855770" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_architecture_by_name(name):
    one = architecture(name)
    assert one.name == name
    assert architecture(name) is one
    assert one.num_parameters == one.layout.num_parameters
    assert one.num_trainable == sum(parameter.numel() for parameter in one.build().parameters())
    assert one.signature == one.layout.sha256


@pytest.mark.parametrize(
    ("asked", "suggestion"),
    [
        ("resnet88", " Did you mean 'resnet8@cifar10'?"),
        ("resnet8", " Did you mean 'resnet8@cifar10'?"),
        ("resnet20", " Did you mean 'resnet20@digits'?"),
        ("resnet8@cifar", " Did you mean 'resnet8@cifar10'?"),
        ("sine_mlp", " Did you mean 'sine_mlp@sdf'?"),
        ("zzz", ""),
    ],
)
def test_unknown_architecture_lists_the_choices_and_the_nearest(asked, suggestion):
    with pytest.raises(RegistryError) as error:
        architecture(asked)
    assert message(error) == (
        f"unknown architecture '{asked}'. Registered: lenet_like@cifar10, vanilla_cnn@cifar10, resnet8@cifar10, "
        f"resnet32@cifar10, resnet56@cifar10, lenet_like@tiny_imagenet and 11 more.{suggestion}"
    )


def test_unknown_registry():
    with pytest.raises(RegistryError) as error:
        built_in_registry("cifar")
    assert message(error) == (
        "unknown registry 'cifar'. Registered: cifar10, tiny_imagenet, digits, sdf, sdf_small. Did you mean 'cifar10'?"
    )


@pytest.mark.parametrize(
    ("dataset", "names", "teacher"),
    [
        ("cifar10", ["lenet_like", "vanilla_cnn", "resnet8", "resnet32"], "resnet56"),
        ("tiny_imagenet", ["lenet_like", "vanilla_cnn", "resnet8", "resnet32"], "resnet56"),
        ("digits", ["lenet_like", "vanilla_cnn", "resnet8", "resnet14"], "resnet20"),
        ("sdf", ["sine_mlp"], None),
        ("sdf_small", ["sine_mlp"], None),
    ],
)
def test_built_in_registries(dataset, names, teacher):
    built_in = built_in_registry(dataset)
    full = [f"{name}@{dataset}" for name in names]
    assert [one.name for one in built_in] == full
    assert len(built_in) == len(full)
    assert [built_in.class_id(name) for name in full] == list(range(len(full)))
    assert [built_in.by_class_id(class_id).name for class_id in range(len(full))] == full
    sizes = [one.num_parameters for one in built_in]
    assert sizes == sorted(sizes)
    assert (built_in.teacher.name if built_in.teacher else None) == (f"{teacher}@{dataset}" if teacher else None)
    assert Registry(built_in.architectures, built_in.others) == built_in  # the table's ids are the ascending ones


def test_teacher_is_a_member_without_class_id():
    cifar10 = built_in_registry("cifar10")
    assert "resnet56@cifar10" in cifar10
    assert cifar10["resnet56@cifar10"] is architecture("resnet56@cifar10")
    assert cifar10.class_id("resnet56@cifar10") is None
    assert "resnet56@cifar10" not in [one.name for one in cifar10]


def test_default_class_id_is_that_of_the_dataset():
    assert [default_class_id(name) for name in NAMES] == [
        built_in_registry(name.partition("@")[2]).class_id(name) for name in NAMES
    ]
    assert default_class_id("resnet56@cifar10") is None
    assert default_class_id("mine") is None


def test_class_ids_ascend_in_packed_parameters_whatever_the_order_given():
    large, middle, least = small("a", 9), small("b", 5), small("c", 2)
    assert Registry([large, least, middle]).class_ids == {"c": 0, "b": 1, "a": 2}
    assert Registry([middle, large, least]) == Registry([large, least, middle])


def test_equal_sizes_are_ordered_by_name():
    assert Registry([small("b"), small("a")]).class_ids == {"a": 0, "b": 1}


def test_given_class_ids_win():
    given = Registry([small("a", 9), small("b", 2)], class_ids={"a": 0, "b": 1})
    assert [one.name for one in given] == ["a", "b"]
    assert given != Registry([small("a", 9), small("b", 2)])


@pytest.mark.parametrize(
    ("class_ids", "text"),
    [
        ({"a": 0}, "ClassIds are missing for b; give all of them or none."),
        ({"a": 0, "b": 1, "c": 2}, "ClassIds are given for c, which the registry does not hold."),
        ({"a": 0, "b": 0}, "ClassIds must be 0 to 1, each once; given: a: 0, b: 0."),
        ({"a": 1, "b": 2}, "ClassIds must be 0 to 1, each once; given: a: 1, b: 2."),
        ({"a": -1, "b": 0}, "ClassIds must be 0 to 1, each once; given: a: -1, b: 0."),
    ],
)
def test_conflicting_class_ids(class_ids, text):
    with pytest.raises(RegistryError) as error:
        Registry([small("a"), small("b")], class_ids=class_ids)
    assert message(error) == text


@pytest.mark.parametrize(
    ("members", "others"), [((small("a"), small("a", 9)), ()), ((small("a"), small("b")), (small("a"),))]
)
def test_a_name_stands_once(members, others):
    with pytest.raises(RegistryError) as error:
        Registry(members, others)
    assert message(error) == "a registry holds each name once; found twice: a."


def test_failed_look_ups_in_a_registry():
    pair = Registry([small("first"), small("second", 9)])
    with pytest.raises(RegistryError) as error:
        pair["frist"]
    assert message(error) == "unknown architecture 'frist'. Registered: first, second. Did you mean 'first'?"
    with pytest.raises(RegistryError) as error:
        pair.class_id("third")
    assert "unknown architecture 'third'" in message(error)
    for wrong in (2, -1):
        with pytest.raises(RegistryError) as error:
            pair.by_class_id(wrong)
        assert message(error) == f"unknown ClassId {wrong}; this registry has 2: first, second."


def test_two_members_without_class_id_leave_the_teacher_open():
    several = Registry([small("a")], [small("b"), small("c")])
    with pytest.raises(RegistryError) as error:
        several.teacher  # noqa: B018
    assert message(error) == "which is the teacher? Without ClassId are b, c."


@pytest.mark.parametrize("dataset", ["cifar10", "digits", "sdf"])
def test_registry_survives_json(dataset):
    original = built_in_registry(dataset)
    data = json.loads(json.dumps(original.to_dict()))
    again = Registry.from_dict(data)
    assert again == original
    assert again.to_dict() == original.to_dict()
    assert again.class_ids == original.class_ids
    assert again.teacher == original.teacher
    assert [one.layout for one in again] == [one.layout for one in original]


def test_given_class_ids_survive_json_and_unknown_keys_are_ignored():
    given = Registry([small("a", 9), small("b", 2)], class_ids={"a": 0, "b": 1})
    data = given.to_dict()
    data["architectures"][0] |= {"height": 4, "fused": True}
    data["else"] = 1
    assert Registry.from_dict(data) == given


def test_registries_differ_in_members_ids_teacher_and_layout():
    first = Registry([small("a")], [small("t")])
    assert first == Registry([small("a")], [small("t")])
    assert hash(first) == hash(Registry([small("a")], [small("t")]))
    assert first != Registry([small("a")])
    assert first != Registry([small("a", 9)], [small("t")])
    assert first != Registry([small("b")], [small("t")])
    changed = small("a").to_dict()
    changed["layout"]["slots"][0]["name"] = "other"
    assert Architecture.from_dict(changed) != small("a")


DAMAGE = [
    (lambda d: d.pop("architectures"), "zoo.json: 'architectures' is missing; expected a list."),
    (lambda d: d.update(architectures=3), "zoo.json, architectures: expected a list; found 3."),
    (lambda d: d["architectures"].append(7), "zoo.json, architectures[2]: expected a table; found 7."),
    (lambda d: d["architectures"][1].pop("name"), "zoo.json, architectures[1]: 'name' is missing; expected text."),
    (
        lambda d: d["architectures"][1].update(class_id="1"),
        "zoo.json, architectures[1].class_id: expected a whole number; found '1'.",
    ),
    (
        lambda d: d["architectures"][1].update(class_id=True),
        "zoo.json, architectures[1].class_id: expected a whole number; found true.",
    ),
    (
        lambda d: d["architectures"][1].update(class_id=0),
        "zoo.json: ClassIds must be 0 to 1, each once; given: a: 0, b: 0.",
    ),
    (lambda d: d["architectures"][1].update(name="a"), "zoo.json: a registry holds each name once; found twice: a."),
    (
        lambda d: d["architectures"][0].update(num_parameters=5),
        "zoo.json, architectures[0]: num_parameters is 5, but its layout has 21.",
    ),
    (
        lambda d: d["architectures"][0].update(input_shape=[0]),
        "zoo.json, architectures[0]: 'a': [0] is not an input shape; give whole numbers such as 3x32x32.",
    ),
    (
        lambda d: d["architectures"][0].update(config=None),
        "zoo.json, architectures[0].config: expected a table of builder, arguments, folded_arguments; found None.",
    ),
    (
        lambda d: d["architectures"][0]["config"].update(builder=5),
        "zoo.json, architectures[0].config.builder: expected text; found 5.",
    ),
    (
        lambda d: d["architectures"][0]["config"].update(folded_arguments=5),
        "zoo.json, architectures[0].config.folded_arguments: expected a table; found 5.",
    ),
    (
        lambda d: d["architectures"][0]["layout"]["slots"][0].update(shape=[-1]),
        "zoo.json, architectures[0].layout.slots[0].shape: expected whole numbers, found [-1].",
    ),
]


@pytest.mark.parametrize(("damage", "text"), DAMAGE)
def test_a_damaged_registry_is_refused_with_its_place(damage, text):
    data = json.loads(json.dumps(Registry([small("a"), small("b", 9)]).to_dict()))
    damage(data)
    with pytest.raises(PrepkitError) as error:
        Registry.from_dict(data, "zoo.json")
    assert message(error) == text
