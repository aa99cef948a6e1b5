"""The rule by which a zoo's instances are stacked, what overrides it, and its record."""

import json
from types import SimpleNamespace

import pytest
import torch
from spec_samples import spec

from prepkit.errors import ZooError
from prepkit.families.registry import architecture
from prepkit.running.instances import activation_bytes
from prepkit.training import _engine as engine
from prepkit.training._engine import MOST_ON_GPU, STACK_ON_CPU, Engine, choose_engine, stack_size_for
from prepkit.training._plan import plan
from prepkit.training.spec import load_spec

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = {"lenet_like@digits": 9, "resnet8@digits": 7}  # instances in the sample spec


pytestmark = pytest.mark.usefixtures("one_thread")


def chosen(own, **asked):
    return choose_engine(own, plan(own), asked.pop("device", CPU), **asked)


def test_digits_are_stacked_on_a_cpu():
    own = load_spec("digits_multi")
    found = chosen(own)
    assert (found.device, found.threads) == ("cpu", torch.get_num_threads())
    assert found.stacks == dict.fromkeys(own.training, 32)
    assert STACK_ON_CPU == 32


def test_a_stack_is_no_larger_than_what_there_is_to_train():
    assert chosen(spec()).stacks == SMALL


def test_what_fills_a_cpu_is_trained_one_after_another():
    """LeNetLike takes 5.3e7 operations for 128 images of CIFAR-10, the others more than 1.5e8."""
    assert chosen(load_spec("cifar10_multi")).stacks == {
        "lenet_like@cifar10": 32,
        "vanilla_cnn@cifar10": 1,
        "resnet8@cifar10": 1,
        "resnet32@cifar10": 1,
    }


def test_the_batch_size_counts():
    training = load_spec("cifar10_single").training["resnet8@cifar10"]
    assert training.batch_size == 128
    assert stack_size_for(architecture("resnet8@cifar10"), training, CPU) == 1
    assert stack_size_for(architecture("resnet8@digits"), training, CPU) == STACK_ON_CPU
    few = type(training)(**{**vars(training), "batch_size": 5})
    assert stack_size_for(architecture("resnet8@cifar10"), few, CPU) == STACK_ON_CPU


@pytest.mark.parametrize(("gigabytes", "limited"), [(8, True), (1000, False)])
def test_on_a_gpu_memory_decides(monkeypatch, gigabytes, limited):
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    training = load_spec("cifar10_single").training["resnet8@cifar10"]
    found = stack_size_for(architecture("resnet8@cifar10"), training, CUDA)
    needed = activation_bytes(architecture("resnet8@cifar10"), 128) * 2
    if limited:
        assert 1 < found < MOST_ON_GPU
        assert found * needed <= 4e9 < (found + 1) * needed
    else:
        assert found == MOST_ON_GPU


def test_one_instance_is_trained_on_a_gpu_however_little_memory_it_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=10))
    assert (
        stack_size_for(architecture("resnet8@cifar10"), load_spec("cifar10_single").training["resnet8@cifar10"], CUDA)
        == 1
    )


def test_the_record_of_a_gpu_names_no_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * 10**10))
    assert chosen(spec(), device=CUDA, threads=3) == Engine("cuda", None, SMALL)


def test_stack_and_threads_in_place_of_the_rule():
    assert chosen(spec(), stack=4, threads=3) == Engine("cpu", 3, dict.fromkeys(SMALL, 4))
    assert chosen(spec(), stack=1).stacks == dict.fromkeys(SMALL, 1)
    assert chosen(spec(), stack=8).stacks == {"lenet_like@digits": 8, "resnet8@digits": 7}
    assert chosen(load_spec("cifar10_single"), stack=2).stacks == {"resnet8@cifar10": 2}


def test_what_cannot_be_stacked_is_trained_one_after_another(monkeypatch):
    monkeypatch.setattr(engine, "is_stackable", lambda known, folded: known.name == "resnet8@digits" and not folded)
    assert chosen(spec(), stack=4).stacks == {"lenet_like@digits": 1, "resnet8@digits": 4}
    assert chosen(spec()).stacks == {"lenet_like@digits": 1, "resnet8@digits": 7}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"stack": 0}, "stack: expected a whole number of at least 1; found 0."),
        ({"stack": -3}, "stack: expected a whole number of at least 1; found -3."),
        ({"threads": 0}, "threads: expected a whole number of at least 1; found 0."),
    ],
)
def test_a_number_below_one_is_refused(asked, text):
    with pytest.raises(ZooError) as error:
        chosen(spec(), **asked)
    assert str(error.value) == text


def test_a_stack_where_nothing_can_be_stacked_is_refused(monkeypatch):
    monkeypatch.setattr(engine, "is_stackable", lambda known, folded: False)
    with pytest.raises(ZooError) as error:
        chosen(spec(), stack=2)
    names = "lenet_like@digits, resnet8@digits"
    assert str(error.value) == f"stack: none of {names} can be trained 2 at once; leave it out."
    assert chosen(spec(), stack=1).stacks == chosen(spec()).stacks == dict.fromkeys(SMALL, 1)


@pytest.mark.parametrize("made", [Engine("cpu", 2, {"resnet8@digits": 32}), Engine("cuda", None, {"a": 1, "b": 128})])
def test_the_record_comes_back(made):
    record = json.loads(json.dumps(made.to_dict()))
    assert record == {"device": made.device, "threads": made.threads, "stacks": dict(made.stacks)}
    assert Engine.from_dict(record) == made


def test_the_choice_is_the_same_every_time():
    own = load_spec("digits_unseen")
    assert chosen(own) == chosen(own) == Engine.from_dict(chosen(own).to_dict())
