"""Specs: every key is read as it is meant, found by name or path, and changed for trial runs."""

import pickle
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_samples import TEXT, changed, spec, trained

from prepkit.errors import ZooError
from prepkit.training import spec as specs
from prepkit.training._values import Epochs, Keep, Range, Schedule
from prepkit.training.spec import load_spec, parse_spec, spec_names

LENET = "lenet_like@digits"
RESNET = "resnet8@digits"


def training(lines, name=LENET):
    return trained(lines).training[name]


# What a spec says ---------------------------------------------------------------------------------------------


def test_a_spec_says_what_its_text_says():
    found = spec()
    assert (found.name, found.license, found.seed) == ("small", "mit", 3)
    assert found.description == "A few networks on digits."
    assert (found.width, found.height) == (128, None)
    assert found.architectures == (LENET, "vanilla_cnn@digits", RESNET)
    assert found.task == tomllib.loads(TEXT)["task"]
    assert found.instances == {LENET: {"train": 4, "validation": 3, "test": 2}, RESNET: {"train": 5, "test": 2}}
    assert list(found.instances) == list(found.training) == [LENET, RESNET]  # in ClassId order, whatever the file's
    assert found.text == TEXT
    assert found.sizes == {}


def test_what_is_not_said_has_its_usual_value():
    found = spec().training[LENET]
    assert (found.optimizer, found.learning_rate, found.batch_size) == ("sgd", Range(0.05, 0.05), 64)
    assert (found.momentum, found.weight_decay) == (Range(0, 0), Range(0, 0))
    assert (found.nesterov, found.betas, found.eps, found.decoupled) == (False, (0.9, 0.999), 1e-8, False)
    assert (found.schedule, found.keep, found.precision) == (Schedule("constant"), Keep("last"), "float32")
    assert spec(("seed = 3\n", "")).seed == 0


def test_all_of_sgd():
    found = training('momentum = 0.9\nnesterov = true\nweight_decay = {low = 0, high = 5e-4}\nprecision = "bfloat16"')
    assert (found.momentum, found.nesterov, found.weight_decay) == (Range(0.9, 0.9), True, Range(0.0, 5e-4, "linear"))
    assert found.precision == "bfloat16"


def test_all_of_adam():
    found = training('optimizer = "adam"\nbetas = [0.8, 0.99]\neps = 1e-6\ndecoupled = true')
    assert (found.optimizer, found.betas, found.eps, found.decoupled) == ("adam", (0.8, 0.99), 1e-6, True)


def test_an_architectures_own_keys_stand_in_place_of_the_common_ones():
    found = spec().training
    assert found[LENET].epochs == Epochs((30,))
    assert found[RESNET].epochs == Epochs((2, 3, 4))
    assert found[RESNET].learning_rate == found[LENET].learning_rate


def test_the_teacher_is_trained_like_the_instances_but_for_its_own_keys():
    teacher = spec().teacher
    assert teacher.architecture == "resnet20@digits"
    assert (teacher.training.learning_rate, teacher.training.epochs) == (Range(0.1, 0.1), Epochs((12,)))
    assert spec((TEXT[TEXT.index("[teacher]") :], "")).teacher is None


def test_another_optimizer_leaves_the_settings_of_the_common_one_behind():
    text = trained("momentum = 0.9\nnesterov = true").text
    found = parse_spec(changed(("learning_rate = 0.1", 'optimizer = "adam"\neps = 1e-4'), text=text), "x.toml")
    assert (found.teacher.training.optimizer, found.teacher.training.momentum) == ("adam", Range(0, 0))
    assert (found.teacher.training.eps, found.training[LENET].momentum) == (1e-4, Range(0.9, 0.9))


def test_an_architecture_may_say_what_the_common_table_leaves_out():
    rest = '[training."lenet_like@digits"]\nepochs = 7\n[training."resnet8@digits"]'
    found = spec(("epochs = 30\n", ""), ('[training."resnet8@digits"]', rest), ("epochs = 12", "epochs = 9"))
    assert [found.training[name].epochs.last for name in (LENET, RESNET)] == [7, 4]
    assert found.teacher.training.epochs.last == 9


def test_a_trajectory_of_instances_is_none_of_the_teacher():
    found = trained("keep = {every = 4}")
    assert found.training[LENET].keep == Keep("trajectory", 4)
    assert found.teacher.training.keep == Keep("last")


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("30", [30]),
        ("{values = [5, 1, 20]}", [1, 5, 20]),
        ("{low = 3, high = 6}", [3, 4, 5, 6]),
        ("{last = 20, steps = [1, 5]}", [*range(1, 11), 15, 20]),
        ("{last = 9, steps = [1, 2, 2]}", [1, 2, 3, 5, 8]),
    ],
)
def test_numbers_of_epochs(text, candidates):
    assert training(f"epochs = {text}").epochs == Epochs(tuple(candidates))


def test_the_papers_dense_start():
    """Every 1, 2, 5, 10, 25 and 50 epochs within successive hundreds (METHOD.md): counted here hundred by hundred."""
    found = training("epochs = {last = 600, steps = [1, 2, 5, 10, 25, 50]}").epochs.candidates
    assert [sum(low < epoch <= low + 100 for epoch in found) for low in range(0, 600, 100)] == [100, 50, 20, 10, 4, 2]
    assert (found[0], found[1], found[99], found[100], found[-2], found[-1]) == (1, 2, 100, 102, 550, 600)
    assert list(found) == sorted(set(found))


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ('"constant"', Schedule()),
        ('"cosine"', Schedule("cosine")),
        ('{kind = "cosine"}', Schedule("cosine")),
        ('{kind = "step", at = [0.5, 0.7], factor = 0.1}', Schedule("step", at=(0.5, 0.7), factor=0.1)),
        ('{kind = "step", at = [15, 20], factor = 1}', Schedule("step", at=(15, 20), factor=1.0)),
        ('{kind = "exponential", every = 3, factor = 0.9}', Schedule("exponential", every=3, factor=0.9)),
    ],
)
def test_schedules(text, schedule):
    assert training(f"schedule = {text}").schedule == schedule


def test_a_spec_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(spec())) == spec()


# Trial runs ---------------------------------------------------------------------------------------------------


def test_a_trial_run_has_so_many_instances_of_each_architecture_in_each_split():
    found = spec().with_sizes(instances=1)
    assert found.instances == {LENET: {"train": 1, "validation": 1, "test": 1}, RESNET: {"train": 1, "test": 1}}
    assert (found.sizes, found.text) == ({"instances": 1}, TEXT)
    assert found.training == spec().training


def test_a_trial_run_caps_epochs_and_moves_its_schedule_along():
    lines = 'schedule = {kind = "step", at = [15, 21], factor = 0.1}\nkeep = {every = 5}'
    found = trained(lines).with_sizes(epochs=3)
    assert found.training[LENET].epochs == Epochs((3,))
    assert found.training[LENET].schedule == Schedule("step", at=(2, 2), factor=0.1)  # 1.5 and 2.1 of 3
    assert found.training[LENET].keep == Keep("trajectory", 3)
    assert found.training[RESNET].epochs == Epochs((2, 3))
    assert found.teacher.training.epochs == Epochs((3,))
    assert found.sizes == {"epochs": 3}


@pytest.mark.parametrize(
    ("before", "most", "after"),
    [
        ((30,), 100, (100,)),
        ((1, 5, 20), 5, (1, 5)),
        ((1, 5, 20), 30, (1, 5, 20)),
        ((4, 5), 2, (2,)),
    ],
)
def test_which_epochs_are_left(before, most, after):
    assert Epochs(before).capped(most).candidates == after


@settings(deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_longer_trial_never_has_earlier_steps_and_shares_stay(most, at):
    found = Schedule("step", at=tuple(at), every=7, factor=0.5).scaled(most / 60)
    assert all(abs(new - max(1, old * most / 60)) <= 0.5 for old, new in zip(at, found.at, strict=True))
    assert abs(found.every - max(1, 7 * most / 60)) <= 0.5
    assert Schedule("step", at=(0.25, 0.5), factor=0.5).scaled(most / 60).at == (0.25, 0.5)


def test_both_sizes_are_recorded():
    assert spec().with_sizes(instances=2).with_sizes(epochs=4).sizes == {"instances": 2, "epochs": 4}
    assert spec().with_sizes() == spec()


@pytest.mark.parametrize("sizes", [{"instances": 0}, {"epochs": -1}, {"instances": True}])
def test_sizes_below_one(sizes):
    with pytest.raises(
        ZooError, match=r"(instances|epochs): expected a whole number of at least 1; found (0|-1|true)\."
    ):
        spec().with_sizes(**sizes)


# Finding ------------------------------------------------------------------------------------------------------


def test_a_spec_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())  # some editors begin with a byte order mark
    assert load_spec(path) == load_spec(str(path)) == spec()


def test_an_unknown_name_lists_the_built_in_specs():
    with pytest.raises(ZooError) as caught:
        load_spec("digit_single")
    assert str(caught.value).startswith(
        "unknown zoo spec 'digit_single'. Built in are: chairs, chairs_fitted, chairs_mini, c"
    )
    assert str(caught.value).endswith("which ends in .toml. Did you mean 'digits_single'?")


def test_a_path_that_is_not_there(tmp_path):
    path = tmp_path / "digits_multi.toml"
    with pytest.raises(ZooError) as caught:
        load_spec(path)
    assert str(caught.value) == (
        f"{path}: cannot be read: No such file or directory. The built-in spec is named 'digits_multi'."
    )
    with pytest.raises(ZooError, match=r"cannot be read: Is a directory\. Is the path right"):
        load_spec(tmp_path)


def test_what_is_no_text_or_no_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ZooError, match=r"mine\.toml: is not UTF-8 text: invalid start byte at byte 8\."):
        load_spec(path)
    with pytest.raises(ZooError, match=r"^x\.toml: is not TOML: Invalid value"):
        parse_spec("name = ", "x.toml")


def test_the_specs_of_an_installed_package_come_before_those_of_a_clone(tmp_path, monkeypatch):
    (tmp_path / "zoo_specs").mkdir()
    (tmp_path / "zoo_specs" / "mine.toml").write_text(TEXT)
    assert "digits_single" in spec_names()
    monkeypatch.setattr(specs, "files", lambda package: tmp_path)
    assert spec_names() == ["mine"]
    assert load_spec("mine") == spec()
