"""The built-in specs: the paper's facts (METHOD.md), and that each can be read, planned and installed."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from prepkit.families.registry import architecture, built_in_registry
from prepkit.training._plan import plan
from prepkit.training._schedule import factor
from prepkit.training._start import Start
from prepkit.training._values import Keep, Range
from prepkit.training.spec import load_spec, spec_names

ROOT = Path(__file__).parents[3]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
TASKS = {
    "cifar10": {
        "kind": "images",
        "dataset": "uoft-cs/cifar10",
        **IMAGENET,
        "split": {"validation": 10_000, "last": True, "test": "test"},
        "augmentation": {"crop_padding": 4, "horizontal_flip": True},
    },
    "tiny_imagenet": {
        "kind": "images",
        "dataset": "zh-plus/tiny-imagenet",
        **IMAGENET,
        "split": {"seed": 0, "validation": 20_000, "test": "valid"},
        "augmentation": {"crop_padding": 8, "horizontal_flip": True},
    },
}
DATASETS = tuple(TASKS)


def counts(spec):
    """`{network: (train, validation, test)}`."""
    return {
        name.partition("@")[0]: tuple(of.get(split, 0) for split in ("train", "validation", "test"))
        for name, of in spec.instances.items()
    }


def rates(training, epochs):
    """The learning rate of each epoch, where it is one number."""
    assert training.learning_rate.low == training.learning_rate.high
    return [training.learning_rate.low * factor(training.schedule, epoch, epochs) for epoch in range(epochs)]


def test_the_specs_that_are_built_in():
    names = {f"{data}_{kind}" for data in (*DATASETS, "digits") for kind in ("single", "multi", "unseen")}
    names |= {"chairs", "chairs_mini", "cifar10_single_strong"}
    assert set(spec_names()) == names | {
        "digits_shared",
        "digits_multi_shared",
        "chairs_fitted",
        "digits_single_strong",
    }


@pytest.mark.parametrize("name", spec_names())
def test_a_spec_is_named_like_its_file_and_can_be_planned(name):
    spec = load_spec(name)
    assert spec.name == name
    assert len(plan(spec).jobs) == sum(map(sum, counts(spec).values()))
    assert spec.description.endswith(".")
    assert spec.license in ("mit", "other")


@pytest.mark.parametrize("name", spec_names())
def test_class_ids_are_those_of_the_built_in_registry(name):
    spec = load_spec(name)
    registry = built_in_registry(spec.architectures[0].partition("@")[2])
    if "_single" not in name and name != "digits_shared":
        assert list(spec.architectures) == list(registry.class_ids)
    parameters = [architecture(name).num_parameters for name in spec.architectures]
    assert parameters == sorted(parameters)
    assert spec.teacher is None or spec.teacher.architecture == registry.teacher.name


@pytest.mark.parametrize("name", spec_names())
def test_a_spec_can_be_tried_in_one_epoch(name):
    for job in plan(load_spec(name).with_sizes(instances=1, epochs=1)).jobs:
        assert (job.epochs, job.kept_epochs) == (1, (1,))


# The paper ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "height"), [("cifar10", 8), ("tiny_imagenet", 16)])
def test_the_papers_single_architecture_zoos(data, height):
    spec = load_spec(f"{data}_single")
    (training,) = spec.training.values()
    assert counts(spec) == {"resnet8": (100, 16, 16)}
    assert (spec.height, spec.width, spec.task) == (height, 10_000, TASKS[data])
    assert (training.optimizer, training.weight_decay, training.batch_size) == ("adam", Range(0, 0), 128)
    assert set(rates(training, 600)) == {1e-4}
    assert (training.epochs.candidates[0], training.epochs.last, training.keep) == (1, 600, Keep("last"))
    assert len(training.epochs.candidates) == 100 + 50 + 20 + 10 + 4 + 2


def check_sgd(training):
    assert (training.optimizer, training.batch_size, training.epochs.candidates) == ("sgd", 128, (300,))
    assert (training.momentum, training.weight_decay) == (Range(0.9, 0.9), Range(5e-4, 5e-4))
    expected = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 90
    assert rates(training, 300) == pytest.approx(expected)
    assert training.keep == Keep("best_validation", after=200, judged_every=10)
    judged = [epoch for epoch in range(1, 301) if training.keep.judges(epoch, 300)]
    assert judged == [210, 220, 230, 240, 250, 260, 270, 280, 290, 300]  # the reference counts from 0: 209 to 299


@pytest.mark.parametrize("data", DATASETS)
@pytest.mark.parametrize(
    ("kind", "instances"),
    [
        ("multi", {"lenet_like": 60, "vanilla_cnn": 50, "resnet8": 60, "resnet32": 100}),
        ("unseen", {"lenet_like": 40, "resnet32": 80}),
    ],
)
def test_the_papers_multi_architecture_zoos(data, kind, instances):
    spec = load_spec(f"{data}_{kind}")
    assert counts(spec) == {name: (train, 16, 16) for name, train in instances.items()}
    assert len(spec.architectures) == 4
    assert (spec.height, spec.width, spec.task) == (88, 10_000, TASKS[data])
    for training in spec.training.values():
        check_sgd(training)


@pytest.mark.parametrize("name", [f"{data}_{kind}" for data in DATASETS for kind in ("single", "multi", "unseen")])
def test_the_papers_teachers(name):
    teacher = load_spec(name).teacher
    assert teacher.architecture.startswith("resnet56@")
    check_sgd(teacher.training)


@pytest.mark.parametrize("name", [f"{data}_{kind}" for data in DATASETS for kind in ("single", "multi", "unseen")])
def test_resnets_start_as_in_the_reference_and_the_other_networks_as_in_pytorch(name):
    spec = load_spec(name)
    trained = [*spec.training.items(), (spec.teacher.architecture, spec.teacher.training)]
    for network, training in trained:
        expected = "kaiming_fan_out" if network.startswith("resnet") else "builder"
        assert training.initialisation == expected, network


def test_the_strong_zoo_has_the_epochs_of_the_references_lists_and_is_else_the_papers():
    strong, whole = load_spec("cifar10_single_strong"), load_spec("cifar10_single")
    ((network, training),) = strong.training.items()
    candidates = training.epochs.candidates
    assert (len(candidates), candidates[0], candidates[-1]) == (132, 43, 599)
    assert sorted(job.epochs for job in plan(strong).jobs) == list(candidates)
    possible = {*range(43, 100), *range(101, 200, 2), *range(204, 300, 5), *range(309, 400, 10)}
    assert set(candidates) < possible | {424, 449, 474, 499, 549, 599}
    assert replace(training, epochs=whole.training[network].epochs) == whole.training[network]
    assert (strong.task, strong.teacher, strong.instances) == (whole.task, whole.teacher, whole.instances)


def test_the_papers_sine_networks():
    spec = load_spec("chairs")
    (training,) = spec.training.values()
    assert (counts(spec), spec.teacher) == ({"sine_mlp": (1000, 0, 0)}, None)
    assert (spec.height, spec.width, spec.task["count"]) == (8, 10_000, 1000)
    assert (training.optimizer, training.batch_size) == ("adam", 20_000)
    steps = spec.task["steps_per_epoch"]
    by_step = [rate for rate in rates(training, training.epochs.last) for _ in range(steps)]
    assert by_step == pytest.approx([1e-4 * 0.9 ** (step // 1000) for step in range(10_000)])


# In miniature -------------------------------------------------------------------------------------------------


def test_the_miniatures_have_the_papers_splits():
    assert counts(load_spec("digits_single")) == {"resnet8": (100, 16, 16)}
    assert counts(load_spec("digits_multi")) == dict.fromkeys(
        ("lenet_like", "vanilla_cnn", "resnet8", "resnet14"), (60, 16, 16)
    )
    assert counts(load_spec("digits_unseen")) == {"lenet_like": (40, 16, 16), "resnet14": (80, 16, 16)}
    assert counts(load_spec("chairs_mini")) == {"sine_mlp": (128, 0, 16)}


def test_the_same_digits_for_all_three():
    single, multi, unseen = (load_spec(f"digits_{kind}") for kind in ("single", "multi", "unseen"))
    assert single.task == multi.task == unseen.task
    assert multi.teacher == unseen.teacher
    assert multi.training["resnet14@digits"] == unseen.training["resnet14@digits"]


def test_a_zoo_of_one_shared_start_differs_from_its_base_in_nothing_else():
    found, other = load_spec("digits_shared"), load_spec("digits_single")
    assert {training.start for training in found.training.values()} == {Start("shared", count=1)}
    assert {key: replace(each, start=Start()) for key, each in found.training.items()} == other.training
    keys = ("architectures", "task", "instances", "teacher", "width", "height", "seed")
    assert [getattr(found, key) for key in keys] == [getattr(other, key) for key in keys]


def test_a_zoo_of_several_architectures_with_a_start_each():
    """Its instances differ in their epochs, as those of equal epochs were too alike to be told apart."""
    found, other = load_spec("digits_multi_shared"), load_spec("digits_multi")
    keys = ("architectures", "task", "instances", "teacher", "width", "height", "seed")
    assert [getattr(found, key) for key in keys] == [getattr(other, key) for key in keys]
    (training,) = set(found.training.values())
    assert training.start == Start("shared", count=1)
    assert training.epochs.candidates == (*range(1, 21), *range(23, 40, 3), *range(46, 60, 6))


def test_chairs_that_are_tuned_from_a_fitted_start():
    """A quarter of the steps and of the rate, the same points, and 16 chairs by which settings may be chosen."""
    found, other = load_spec("chairs_fitted"), load_spec("chairs_mini")
    (training,), (base,) = found.training.values(), other.training.values()
    assert counts(found) == {"sine_mlp": (128, 16, 16)}
    assert training.learning_rate == Range(base.learning_rate.low / 4, base.learning_rate.high / 4)
    assert replace(training, start=Start(), epochs=base.epochs, learning_rate=base.learning_rate) == base
    assert (training.start.kind, training.epochs.last * found.task["steps_per_epoch"]) == ("fitted", 500)
    assert {**found.task, "count": 144} == other.task
    assert found.task["count"] == 160


def test_a_zoo_of_digits_without_weak_networks():
    found, other = load_spec("digits_single_strong"), load_spec("digits_single")
    (training,), (base,) = found.training.values(), other.training.values()
    # The reference's lists begin with epoch 43 of 600, and 43 / 600 of 80 is 5.7.
    assert training.epochs.candidates == tuple(count for count in base.epochs.candidates if count >= 80 * 43 / 600)
    assert replace(training, epochs=base.epochs) == base
    assert (found.task, found.instances, found.teacher) == (other.task, other.instances, other.teacher)


def test_most_of_digits_single_is_trained_for_few_epochs():
    epochs = [job.epochs for job in plan(load_spec("digits_single")).jobs]
    assert min(epochs) == 1
    assert sum(count <= 10 for count in epochs) > 132 / 3
    assert sum(epochs) < 2700  # about four minutes, one network after another on one core


def test_the_chairs_in_miniature_take_2000_steps():
    spec = load_spec("chairs_mini")
    (training,) = spec.training.values()
    assert training.epochs.last * spec.task["steps_per_epoch"] == 2000
    assert (training.batch_size, spec.task["points"]["pool"]) == (512, 65_536)


# Installing ---------------------------------------------------------------------------------------------------


def test_the_wheel_holds_every_package_and_every_spec():
    """pyproject.toml names the packages one by one; a new one must not be forgotten."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for package in ("prepkit", "netspace")
        for file in (ROOT / package).rglob("*.py")
    }
    here = {name for name in told["packages"] if (ROOT / name.partition(".")[0]).is_dir()}  # prepkit stands alone too
    assert here == found | {"prepkit.zoo_specs"}
    assert told["package-dir"] == {"prepkit.zoo_specs": "zoo_specs"}
    assert {file.suffix for file in (ROOT / "zoo_specs").iterdir()} == {".toml"}
    assert told["package-data"]["prepkit.zoo_specs"] == ["*.toml"]
