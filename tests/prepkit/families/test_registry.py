"""Look-ups, ClassIds, detection, plug-ins and builders from outside; the texts of errors are part of the contract."""

import json
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import nn

from prepkit.errors import FusionError, PrepkitError, RegistryError
from prepkit.families.architecture import floating_shapes
from prepkit.families.detection import Detection, detect, explain_mismatch
from prepkit.families.registry import (
    Architecture,
    Registry,
    architecture,
    architecture_from_callable,
    architectures,
    built_in_registry,
    default_class_id,
)

NAMES = architectures()


def small(name: str, width: int = 4) -> Architecture:
    """A cheap architecture with 5 * width + 1 parameters."""
    return Architecture(
        name,
        "sine_mlp",
        (3,),
        "prepkit.families.sine_mlp:SineMLP",
        {"sizes": [3, width, 1], "omega": 30.0},
        {},
    )


def message(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Light imports ------------------------------------------------------------------------------------------------


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


# Look-ups -----------------------------------------------------------------------------------------------------


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


# Registries ---------------------------------------------------------------------------------------------------


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


# Architectures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../evil", ".hidden", "a/b", "a b", "a\n", "é", "a" * 101, "-x"])
def test_names_that_cannot_be_file_names_are_refused(name):
    with pytest.raises(RegistryError, match="cannot name an architecture: use up to 100 letters, digits and _ "):
        small(name)


@pytest.mark.parametrize("shape", [(), (3, 0), (-1,), (3.0,), (True,), ("3",)])
def test_input_shapes_are_whole_numbers(shape):
    with pytest.raises(RegistryError, match="is not an input shape; give whole numbers such as 3x32x32"):
        replace(small("a"), input_shape=shape)


@pytest.mark.parametrize("arguments", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}])
def test_arguments_are_json(arguments):
    with pytest.raises(RegistryError, match="'a': the builder's arguments are not JSON: "):
        replace(small("a"), arguments=arguments)


def test_config_is_a_copy_and_enough_to_rebuild():
    one = architecture("resnet8@digits")
    config = one.config
    assert config["builder"] == "prepkit.families.resnet:ResNet"
    config["arguments"]["widths"][0] = 99
    assert one.config["arguments"]["widths"] == [4, 8, 16]
    again = Architecture.from_dict(json.loads(json.dumps(one.to_dict())))
    assert floating_shapes(again.build().state_dict()) == floating_shapes(one.build().state_dict())
    assert again == one
    assert again != "resnet8@digits"


def test_example_input_is_seeded_and_leaves_the_global_generator_alone():
    one = architecture("resnet8@cifar10")
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    first, second = one.example_input(batch=4, seed=1), one.example_input(batch=4, seed=1)
    assert first.shape == (4, 3, 32, 32)
    assert torch.equal(first, second)
    assert not torch.equal(first, one.example_input(batch=4, seed=2))
    assert torch.equal(torch.rand(5), expected)


def test_layouts_and_counts_leave_the_global_generator_alone():
    fresh = small("fresh")
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    assert fresh.layout.total == fresh.num_parameters == fresh.num_trainable == 21
    assert fresh.trainable_shapes == fresh.folded_shapes
    assert torch.equal(torch.rand(5), expected)


def test_architectures_and_registries_can_be_pickled():
    for original in (architecture("resnet8@digits"), built_in_registry("digits")):
        assert pickle.loads(pickle.dumps(original)) == original


def test_build_follows_the_global_generator():
    one = architecture("lenet_like@digits")
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(torch.cat([parameter.flatten() for parameter in one.build().parameters()]))
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


# Detection ----------------------------------------------------------------------------------------------------


def reversed_order(tensors):
    return dict(reversed(tensors.items()))


@pytest.mark.parametrize("name", NAMES)
def test_detect_trainable_and_folded_in_any_order(name):
    one = architecture(name)
    trainable, folded = one.build().state_dict(), one.build_folded().state_dict()
    has_batch_norm = len(trainable) != len(folded)
    assert detect(trainable) == detect(reversed_order(trainable)) == Detection(one, folded=not has_batch_norm)
    assert detect(folded) == detect(reversed_order(folded)) == Detection(one, folded=True)


def test_detect_ignores_integer_buffers_and_dtypes():
    tensors = architecture("resnet8@cifar10").build().state_dict()
    without = {name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()}
    assert len(without) < len(tensors)
    assert detect(without) == Detection(architecture("resnet8@cifar10"), folded=False)
    assert detect({**without, "step": torch.tensor(3)}) == Detection(architecture("resnet8@cifar10"), folded=False)


def test_detect_tells_datasets_apart_by_shapes():
    cifar10, tiny_imagenet = architecture("resnet8@cifar10"), architecture("resnet8@tiny_imagenet")
    assert list(cifar10.trainable_shapes) == list(tiny_imagenet.trainable_shapes)
    for one in (cifar10, tiny_imagenet):
        found = detect(one.build().state_dict())
        assert found is not None
        assert found.architecture is one


def without(tensors, part):
    return {name: tensor for name, tensor in tensors.items() if part not in name}


# What is done to the folded tensors, or (the last two) to those with BatchNorm.
NEAR_MISSES = {
    "missing": lambda folded, _: without(folded, "linear.bias"),
    "extra": lambda folded, _: {**folded, "extra": torch.zeros(1)},
    "renamed": lambda folded, _: {**without(folded, "linear.bias"), "fc.bias": folded["linear.bias"]},
    "other axes": lambda folded, _: {**folded, "linear.bias": folded["linear.bias"].reshape(2, 5)},
    "resized": lambda folded, _: {**folded, "linear.bias": folded["linear.bias"][:9]},
    "transposed": lambda folded, _: {**folded, "conv.weight": folded["conv.weight"].transpose(0, 1)},
    "empty": lambda folded, _: {},
    "no running statistics": lambda _, trainable: without(trainable, "running"),
    "half folded": lambda _, trainable: without(trainable, "stages.0.0.bn1"),
}


@pytest.mark.parametrize("what", NEAR_MISSES)
def test_detect_refuses_near_misses(what):
    one = architecture("resnet8@digits")
    assert detect(NEAR_MISSES[what](one.build_folded().state_dict(), one.build().state_dict())) is None


def test_detect_among_candidates():
    one, twin = small("one"), small("twin")
    tensors = one.build().state_dict()
    assert detect(tensors) is None
    assert detect(tensors, [small("other", 9), one]) == Detection(one, folded=True)
    assert detect(tensors, []) is None
    with pytest.raises(RegistryError) as error:
        detect(tensors, [one, twin])
    assert message(error) == "these tensors fit several architectures: one, twin. Name the one that is meant."


def test_detect_among_the_members_of_a_file_needs_no_builder():
    data = small("mine").to_dict()
    data["config"]["builder"] = "no_such_module:net"
    mine = Architecture.from_dict(data)
    assert detect(small("mine").build().state_dict(), [mine]) == Detection(mine, folded=True)


def test_explain_mismatch_names_what_differs():
    one = architecture("resnet8@digits")
    folded = one.build_folded().state_dict()
    assert explain_mismatch(folded, one) == "the tensors fit resnet8@digits with BatchNorm folded."
    del folded["linear.bias"]
    folded["head.bias"] = torch.zeros(10)
    folded["conv.weight"] = torch.zeros(4, 3, 3, 3)
    assert explain_mismatch(folded, one) == (
        "the tensors do not fit resnet8@digits with BatchNorm folded: 1 missing (linear.bias); "
        "1 unexpected (head.bias); 1 of another shape (conv.weight is [4, 3, 3, 3], expected [4, 1, 3, 3])."
    )


def test_explain_mismatch_compares_with_the_nearer_form():
    one = architecture("resnet8@digits")
    trainable = one.build().state_dict()
    assert explain_mismatch(trainable, one) == "the tensors fit resnet8@digits with BatchNorm."
    del trainable["bn.weight"]
    assert explain_mismatch(trainable, one) == (
        "the tensors do not fit resnet8@digits with BatchNorm: 1 missing (bn.weight)."
    )


def test_explain_mismatch_lists_a_few_and_counts_all():
    one = architecture("lenet_like@digits")
    assert explain_mismatch({}, one) == (
        "the tensors do not fit lenet_like@digits: 10 missing (convs.0.weight, convs.0.bias, convs.1.weight, "
        "convs.1.bias, hidden.0.weight, hidden.0.bias and 4 more)."
    )


# Builders from outside ----------------------------------------------------------------------------------------

COUNTER = count()
NETS = """
import torch
from torch import nn

def plain(width=2):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3))

def normalised():
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))

def draws():
    nn.Linear(2, 2)
    torch.tensor(3.0).item()
    return plain()

def raising():
    raise ValueError("no data\\nfor you.")

def leaving():
    raise SystemExit(3)

def needs(argument):
    return plain()

def lazy():
    return nn.Sequential(nn.LazyLinear(3))

number = 5
dictionary = dict
network = plain()

class Nets:
    @staticmethod
    def inner():
        return plain()
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """The name of a fresh importable module with the builders above."""
    name = f"nets{next(COUNTER)}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize("builder", ["plain", "draws", "Nets.inner"])
def test_architecture_from_callable(nets, builder):
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    one = architecture_from_callable(f"{nets}:{builder}", (1, 8, 8))
    assert (one.name, one.family, one.input_shape) == (f"{nets}.{builder}", builder, (1, 8, 8))
    assert one.num_parameters == one.num_trainable == one.layout.total == 20 + 219
    assert torch.equal(torch.rand(5), expected)
    assert one.build_folded()(one.example_input()).shape == (2, 3)
    assert detect(one.build().state_dict(), [one]) == Detection(one, folded=True)


def test_architecture_from_callable_takes_arguments_and_a_name(nets):
    one = architecture_from_callable(f"{nets}:plain", [1, 8, 8], name="wide@digits", arguments={"width": 3})
    assert one.name == "wide@digits"
    assert one.num_trainable == 30 + 327
    assert one.build()[0].out_channels == 3


def test_the_name_made_from_a_callable_can_be_a_file_name(tmp_path, monkeypatch):
    module = "a" * 120 + "\u00fc"
    (tmp_path / f"{module}.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    one = architecture_from_callable(f"{module}:plain", (1, 8, 8))
    assert one.name == "a" * 93 + "_.plain"
    with pytest.raises(RegistryError, match="'x/y' cannot name an architecture"):
        architecture_from_callable(f"{module}:plain", (1, 8, 8), name="x/y")


def test_batch_norm_of_a_foreign_network_is_folded(nets):
    one = architecture_from_callable(f"{nets}:normalised", (1, 8, 8))
    assert one.num_trainable == 18 + 4 + 219
    assert one.num_parameters == 18 + 2 + 219
    assert [slot.name for slot in one.layout] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert detect(one.build().state_dict(), [one]) == Detection(one, folded=False)
    assert detect(one.build_folded().state_dict(), [one]) == Detection(one, folded=True)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("{nets}", "'{nets}' does not name a network builder; write module:callable."),
        ("{nets}:", "'{nets}:' does not name a network builder; write module:callable."),
        ("", "'' does not name a network builder; write module:callable."),
        (":plain", "':plain' does not name a network builder; write module:callable."),
        (
            "no_such_module:plain",
            "'no_such_module:plain': module 'no_such_module' cannot be imported: "
            "ModuleNotFoundError: No module named 'no_such_module'.",
        ),
        ("{nets}:plane", "'{nets}:plane': there is no 'plane' in it. Did you mean 'plain'?"),
        ("{nets}:number", "'{nets}:number' is of type int, not a callable that builds a network."),
        ("{nets}:raising", "'{nets}:raising' failed to build '{nets}.raising': ValueError: no data for you."),
        ("{nets}:leaving", "'{nets}:leaving' failed to build '{nets}.leaving': SystemExit: 3."),
        (
            "{nets}:needs",
            "'{nets}:needs' failed to build '{nets}.needs': "
            "TypeError: needs() missing 1 required positional argument: 'argument'. "
            "Give what it needs with arguments={{...}}.",
        ),
        ("{nets}:dictionary", "'{nets}:dictionary' returned an object of type dict, not a torch.nn.Module."),
        ("{nets}:network", "'{nets}:network' is a network already; name the function or class that builds it."),
        ("{nets}:lazy", "'{nets}:lazy' returned lazy layers; run the network once before returning it."),
    ],
)
def test_builders_that_do_not_build(nets, spec, text):
    with pytest.raises(RegistryError) as error:
        architecture_from_callable(spec.format(nets=nets), (1, 8, 8))
    assert message(error) == text.format(nets=nets)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'."),
        ("raise SystemExit(2)", "SystemExit: 2."),
        ("1 +", "SyntaxError: invalid syntax "),
    ],
)
def test_modules_that_do_not_import(tmp_path, monkeypatch, source, text):
    (tmp_path / "broken_nets.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RegistryError) as error:
        architecture_from_callable("broken_nets:net", (1,))
    assert message(error).startswith(f"'broken_nets:net': module 'broken_nets' cannot be imported: {text}")


# A file's builder is not imported -----------------------------------------------------------------------------


def test_a_builder_that_only_a_file_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_nets.py").write_text(
        f"open({str(tmp_path / 'touched')!r}, 'w').close()\nfrom prepkit.families.sine_mlp import SineMLP\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = small("mine").to_dict()
    data["config"]["builder"] = "evil_nets:SineMLP"

    one = Registry.from_dict({"architectures": [{"class_id": 0, **data}]})["mine"]
    assert one.layout == small("mine").layout
    assert one.num_parameters == one.num_trainable == 21
    for build in (one.build, one.build_folded):
        with pytest.raises(RegistryError) as error:
            build()
        assert message(error) == (
            "'mine' is built by 'evil_nets:SineMLP', which a file names and nothing here registers, so it is not "
            "imported. Install the package that registers it, or read the file with trust_code=True."
        )
    assert not (tmp_path / "touched").exists()
    assert "evil_nets" not in sys.modules

    trusted = Registry.from_dict({"architectures": [{"class_id": 0, **data}]}, trust_code=True)["mine"]
    assert isinstance(trusted.build(), nn.Module)
    assert (tmp_path / "touched").exists()


# Plug-ins -----------------------------------------------------------------------------------------------------


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Put a distribution with entry points and a module `<name>_plugin` on sys.path."""

    def install(name: str, entries: dict[str, str], source: str) -> None:
        root = tmp_path / name
        info = root / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (info / "entry_points.txt").write_text(f"[prepkit.architectures]\n{lines}")
        (root / f"{name}_plugin.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(root)

    return install


WORKING = """
from torch import nn
from prepkit.families.registry import Architecture

calls = []
ready = Architecture("ready@toy", "toy", (3,), "{name}_plugin:net", {{"width": 5}}, {{}})

def made():
    calls.append(1)
    return Architecture("made@toy", "toy", (3,), "{name}_plugin:net", {{"width": 7}}, {{}})

def net(width):
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))
"""


def test_plugins_are_found_by_name_and_by_tensors(distribution):
    name = "goodnets"
    distribution(
        name, {"ready@toy": "goodnets_plugin:ready", "made@toy": "goodnets_plugin:made"}, WORKING.format(name=name)
    )
    assert architectures() == [*NAMES, "made@toy", "ready@toy"]
    assert "goodnets_plugin" not in sys.modules  # a list does not import

    assert architecture("resnet8@cifar10") is built_in_registry("cifar10")["resnet8@cifar10"]
    assert "goodnets_plugin" not in sys.modules

    ready, made = architecture("ready@toy"), architecture("made@toy")
    assert (ready.num_parameters, made.num_parameters) == (26, 36)
    assert architecture("made@toy") is made
    assert sys.modules["goodnets_plugin"].calls == [1]
    assert detect(made.build().state_dict()) == Detection(made, folded=True)
    assert detect(ready.build().state_dict()) == Detection(ready, folded=True)
    with pytest.raises(RegistryError, match="Did you mean 'made@toy'"):
        architecture("mode@toy")
    assert Registry([made, ready, architecture("lenet_like@digits")]).class_ids == {
        "ready@toy": 0,
        "made@toy": 1,
        "lenet_like@digits": 2,
    }


def test_a_plugin_that_cannot_be_folded_is_not_in_the_way_of_others(distribution):
    source = """
        from torch import nn
        from prepkit.families.registry import Architecture

        ready = Architecture("ready@toy", "toy", (3,), "stiffnets_plugin:net", {})

        def net():
            return nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1, track_running_stats=False))
    """
    distribution("stiffnets", {"ready@toy": "stiffnets_plugin:ready"}, source)
    assert detect({"unknown": torch.zeros(3)}) is None
    with pytest.raises(FusionError):
        architecture("ready@toy").build_folded()


def test_a_file_may_name_the_builder_that_a_plugin_registers(distribution):
    distribution("filenets", {"ready@toy": "filenets_plugin:ready"}, WORKING.format(name="filenets"))
    data = architecture("ready@toy").to_dict()
    assert isinstance(Architecture.from_dict(data).build(), nn.Module)
    data["config"]["arguments"] = {"width": 6}
    with pytest.raises(RegistryError, match="which a file names and nothing here registers"):
        Architecture.from_dict(data).build()


def test_a_name_clash_with_a_built_in_architecture(distribution):
    distribution("clashnets", {"resnet8@cifar10": "clashnets_plugin:ready"}, WORKING.format(name="clashnets"))
    for look_up in (architectures, lambda: architecture("resnet8@cifar10")):
        with pytest.raises(RegistryError) as error:
            look_up()
        assert message(error) == (
            "architecture 'resnet8@cifar10' is registered by prepkit itself and by distribution 'clashnets 1.2'; "
            "uninstall one."
        )
    assert architecture("resnet32@cifar10").num_parameters == 465_674  # others are not in the way
    assert "clashnets_plugin" not in sys.modules


def test_a_name_clash_between_two_distributions(distribution):
    for name in ("firstnets", "secondnets"):
        distribution(name, {"ready@toy": f"{name}_plugin:ready"}, WORKING.format(name=name))
    for look_up in (architectures, lambda: architecture("ready@toy")):
        with pytest.raises(RegistryError) as error:
            look_up()
        assert "architecture 'ready@toy' is registered by distribution" in message(error)
        assert "firstnets 1.2" in message(error)
        assert "secondnets 1.2" in message(error)
    with pytest.raises(RegistryError, match="architecture 'ready@toy' is registered by"):
        detect({"unknown": torch.zeros(3)})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "module_that_is_gone:net",
            "architecture 'toy@toy' of distribution '{name} 1.2' (module_that_is_gone:net) cannot be loaded: "
            "ModuleNotFoundError: No module named 'module_that_is_gone'. Fix or uninstall it.",
        ),
        (
            "{name}_plugin:gone",
            "architecture 'toy@toy' of distribution '{name} 1.2' ({name}_plugin:gone) cannot be loaded: "
            "AttributeError: module '{name}_plugin' has no attribute 'gone'. Fix or uninstall it.",
        ),
        (
            "{name}_plugin:raising",
            "architecture 'toy@toy' of distribution '{name} 1.2' ({name}_plugin:raising) cannot be loaded: "
            "OSError: no disk. Fix or uninstall it.",
        ),
        (
            "{name}_plugin:number",
            "architecture 'toy@toy' of distribution '{name} 1.2' ({name}_plugin:number) is of type int, "
            "not a prepkit Architecture.",
        ),
        (
            "{name}_plugin:ready",
            "distribution '{name} 1.2' registers 'toy@toy', but {name}_plugin:ready is named 'ready@toy'; "
            "give both the same name.",
        ),
    ],
)
def test_broken_plugins_name_their_distribution_when_looked_at(distribution, request, value, text):
    name = f"broken{request.node.callspec.indices['value']}nets"
    source = WORKING.format(name=name) + "\nnumber = 5\n\ndef raising():\n    raise OSError('no disk')\n"
    distribution(name, {"toy@toy": value.format(name=name)}, source)

    assert architectures()[-1] == "toy@toy"
    assert architecture("resnet8@cifar10").name == "resnet8@cifar10"
    assert detect(architecture("resnet8@digits").build().state_dict()) is not None

    for look_up in (lambda: architecture("toy@toy"), lambda: detect({"unknown": torch.zeros(3)})):
        with pytest.raises(RegistryError) as error:
            look_up()
        assert message(error) == text.format(name=name)
