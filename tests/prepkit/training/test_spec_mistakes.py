"""Mistakes in specs: each is answered with its place, what was expected, what was found, and the nearest name."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_samples import TEXT, spec, trained

from prepkit.errors import InvalidShape, PrepkitError, RegistryError, ZooError
from prepkit.training import spec as specs
from prepkit.training._hyperparameters import KEYS
from prepkit.training._values import Keep
from prepkit.training.spec import parse_spec

LENETS = '"lenet_like@digits" = {train = 4, validation = 3, test = 2}'

MISTAKES = [
    # The spec itself
    (('license = "mit"\n', ""), "small.toml: 'license' is missing; expected one line of text."),
    (
        ("seed = 3", "sed = 3"),
        "small.toml: unknown key 'sed'; known are name, description, license, width, architectures,",
    ),
    (("seed = 3", "sed = 3"), "Did you mean 'seed'?"),
    (("seed = 3", "seed = -1"), "seed: expected a whole number of at least 0; found -1."),
    (("seed = 3", "seed = true"), "seed: expected a whole number of at least 0; found true."),
    (
        ('name = "small"', 'name = "../small"'),
        "name: expected a name of up to 100 letters, digits and _ . -, the first",
    ),
    (('"A few networks on digits."', '"two\\nlines"'), "description: expected one line of text; found 'two\\nlines'."),
    (('license = "mit"', 'license = " "'), "license: expected one line of text; found ' '."),
    (("width = 128", 'width = "128"'), "width: expected a whole number of at least 1; found '128'."),
    # Architectures
    (
        ('"vanilla_cnn@digits", ', '"vanila_cnn@digits", '),
        "architectures: unknown architecture 'vanila_cnn@digits'. Reg",
    ),
    (('"vanilla_cnn@digits", ', '"vanila_cnn@digits", '), "Did you mean 'vanilla_cnn@digits'?"),
    (
        ('"vanilla_cnn@digits", ', '"resnet8@digits", '),
        "architectures: names each architecture once; found twice: resnet",
    ),
    (
        ('"vanilla_cnn@digits", ', '"resnet8@cifar10", '),
        "architectures: lenet_like@digits takes inputs of 1x8x8, but res",
    ),
    (('"vanilla_cnn@digits", ', "3, "), "architectures[1]: expected text; found 3."),
    # The task
    (("test = 360", "test = -360"), "task, split"),
    (
        ('kind = "images"', 'kind = "image"'),
        "task, kind: expected one of images, shapes; found 'image'. Did you mean 'images'?",
    ),
    (
        ('dataset = "digits"', "dataset = 2026-11-24"),
        "task: holds a value that JSON cannot: Object of type date is not",
    ),
    (
        ('dataset = "digits"', 'dataset = "digits"\nmean = [nan]'),
        "task: holds a value that JSON cannot: Out of range flo",
    ),
    # Instances
    (
        (LENETS, '"lenet_like@digits" = {train = 0}'),
        'instances."lenet_like@digits".train: expected a whole number of at l',
    ),
    ((LENETS, '"lenet_like@digits" = {train = -4}'), "train: expected a whole number of at least 1; found -4."),
    (
        (LENETS, '"lenet_like@digits" = {}'),
        'instances."lenet_like@digits": expected a number of instances of at least on',
    ),
    (
        (LENETS, '"lenet_like@digits" = 60'),
        'instances."lenet_like@digits": expected a table of train, validation, test; found 60.',
    ),
    (
        (LENETS, '"lenet_like@digits" = {trian = 4}'),
        ": unknown key 'trian'; known are train, validation, test. Did y",
    ),
    (
        (LENETS, '"lenet@digits" = {train = 4}'),
        "instances.\"lenet@digits\": unknown architecture 'lenet@digits'; known",
    ),
    # Training
    (
        ("learning_rate = 0.05", "learning_rate = -1"),
        "training.learning_rate: expected a number above 0, or {low, high,",
    ),
    (("learning_rate = 0.05", "learning_rate = -1"), "scale}; found -1."),
    (
        ("learning_rate = 0.05", "learning_rate = nan"),
        "training.learning_rate: expected a number above 0, or {low, high",
    ),
    (
        ("learning_rate = 0.05", "learnign_rate = 1"),
        "training: unknown key 'learnign_rate'; known are opti",
    ),
    (("learning_rate = 0.05", "learnign_rate = 1"), "Did you mean 'learning_rate'?"),
    (
        ("learning_rate = 0.05", ""),
        "training: 'learning_rate' is missing; expected a number above 0, or {low, high, scale}.",
    ),
    (
        ('optimizer = "sgd"', 'optimizer = "sdg"'),
        "training.optimizer: expected one of sgd, adam; found 'sdg'. Did you mean 'sgd'?",
    ),
    (('optimizer = "sgd"', "optimizer = 1"), "training.optimizer: expected one of sgd, adam; found 1."),
    (("batch_size = 64", "batch_size = 0"), "training.batch_size: expected a whole number of at least 1; found 0."),
    (
        ("batch_size = 64", "batch_size = 64.0"),
        "training.batch_size: expected a whole number of at least 1; found 64.0.",
    ),
    (
        ("{low = 2, high = 4}", "{low = 4, high = 2}"),
        'training."resnet8@digits".epochs: expected low to be at most high',
    ),
    (
        ('training."resnet8@digits"', 'training."vanilla_cnn@digits"'),
        "unknown key, or architecture without instances, ",
    ),
    (("learning_rate = 0.1", "learning_rate = 0"), "teacher.learning_rate: expected a number above 0"),
    (('"resnet20@digits"', '"resnet21@digits"'), "teacher.architecture: unknown architecture 'resnet21@digits'. Regis"),
    (("epochs = 12", "epochs = {low = 1, high = 9}"), "teacher.epochs: expected one number, as th"),
    (
        ('"resnet20@digits"', '"resnet20@digits"\nkeep = {every = 3}'),
        'teacher.keep: expected "last" or "best_validatio',
    ),
    (('architecture = "resnet20@digits"\n', ""), "teacher: 'architecture' is missing; expected text."),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_a_mistake_is_told_with_its_place(change, message):
    with pytest.raises(PrepkitError) as caught:
        spec(change)
    assert str(caught.value).startswith(("small.toml, ", "small.toml: "))
    assert message in str(caught.value)


TRAINING_MISTAKES = [
    ("learning_rate = {low = 1}", "learning_rate: 'high' is missing; expected a number above 0."),
    (
        "learning_rate = {low = 2, high = 1}",
        "learning_rate: expected low to be at most high; found {'low': 2, 'high': 1}.",
    ),
    (
        'learning_rate = {low = 1, high = 2, scale = "lin"}',
        "learning_rate.scale: expected one of linear, log; found 'lin'. Did you mean 'linear'?",
    ),
    (
        'weight_decay = {low = 0, high = 1, scale = "log"}',
        "weight_decay.low: expected a number above 0, as the scale is log",
    ),
    ("momentum = 1", "momentum: expected a number from 0 to below 1, or {low, high, scale}; found 1."),
    ("weight_decay = -1e-4", "weight_decay: expected a number of at least 0, or {low, high, scale}; found -0.0001."),
    ("nesterov = true", "nesterov: needs a momentum above 0."),
    ("nesterov = 1", "nesterov: expected true or false; found 1."),
    (
        "betas = [0.9, 0.99]",
        "betas: belongs to adam, but the optimizer is sgd, which has optimizer, learning_rate, batch_size, ",
    ),
    (
        'optimizer = "adam"\nmomentum = 0.9',
        "momentum: belongs to sgd, but the optimizer is adam, which has optimizer, ",
    ),
    ('optimizer = "adam"\nbetas = [0.9]', "betas: expected two numbers from 0 to below 1; found [0.9]."),
    ('optimizer = "adam"\nbetas = [0.9, 1]', "betas: expected two numbers from 0 to below 1; found [0.9, 1]."),
    ('optimizer = "adam"\neps = inf', "eps: expected a number above 0; found inf."),
    (
        "epochs = 0",
        "epochs: expected a whole number from 1 to 100,000, {values}, {low, high} or {last, steps}; found 0.",
    ),
    ("epochs = 1_000_000", "{last, steps}; found 1000000."),
    ("epochs = {low = 3}", "{last, steps}; found {'low': 3}."),
    ("epochs = {low = 3, last = 5}", "{last, steps}; found {'low': 3, 'last': 5}."),
    ("epochs = {values = []}", "epochs.values: expected a list of numbers of epochs; found []."),
    ("epochs = {values = [2, 2]}", "epochs.values: expected each number of epochs once; found [2, 2]."),
    (
        "epochs = {last = 600, steps = [1, 2, 5, 10]}\nkeep = 3",
        'keep: expected "last", "best_validation", {every = 10} or {kind = "best_validation", after, every}; found 3',
    ),
    ("epochs = {last = 601, steps = [1, 2]}", "epochs.last: expected a multiple of 2, the number of steps; found 601."),
    (
        "epochs = {last = 20, steps = [1, 11]}",
        "epochs.steps: expected steps of at most 10, which is 20 / 2; found [1, 11].",
    ),
    (
        "epochs = {values = [1], lows = 3}",
        "epochs: unknown key 'lows'; known are values, steps, low, high, last. Did",
    ),
    (
        'schedule = "cosin"',
        "schedule.kind: expected one of constant, step, cosine, exponential; found 'cosin'. Did you mean 'cosine'?",
    ),
    ("schedule = {factor = 0.1}", "schedule: 'kind' is missing; expected one of constant, step, cosine, exponential."),
    (
        "schedule = 3",
        'schedule: expected "constant", "cosine", {kind = "step", at, factor} or {kind = "exponential", every,',
    ),
    (
        'schedule = {kind = "step", factor = 0.1}',
        "schedule: 'at' is missing; expected a list of epochs such as [150, 180], or of shares",
    ),
    (
        'schedule = {kind = "step", at = [15, 0.5], factor = 0.1}',
        "schedule.at: expected a list of epochs such as [150, 18",
    ),
    (
        'schedule = {kind = "step", at = [1.0], factor = 0.1}',
        "schedule.at: expected a list of epochs such as [150, 180], o",
    ),
    (
        'schedule = {kind = "step", at = [3], factor = 0}',
        "schedule.factor: expected a number above 0 and up to 1; found 0.",
    ),
    ('schedule = {kind = "cosine", at = [3]}', "schedule: unknown key 'at'; known are kind."),
    (
        'keep = "best"',
        'keep: expected "last", "best_validation", {every = 10} or {kind = "best_validation", after, every}; found',
    ),
    ('keep = {kind = "best", every = 2}', "keep.kind: expected 'best_validation'; found 'best'."),
    ('keep = {kind = "best_validation", every = 0}', "keep.every: expected a whole number from 1 to 100,000; found 0."),
    (
        'keep = {kind = "best_validation", after = -1}',
        "keep.after: expected a whole number from 0 to 100,000; found -1.",
    ),
    ('keep = {kind = "best_validation", at = 3}', "keep: unknown key 'at'; known are kind, after, every."),
    (
        'initialisation = "kaiming"',
        "initialisation: expected one of builder, kaiming_fan_out; found 'kaiming'. Did you mean 'kaiming_fan_out'?",
    ),
    ("keep = {every = 0}", "keep.every: expected a whole number from 1 to 100,000; found 0."),
    ("keep = {}", "keep: 'every' is missing; expected a whole number from 1 to 100,000."),
    (
        'precision = "float16"',
        "precision: expected one of float32, bfloat16; found 'float16'. Did you mean 'bfloat16'?",
    ),
]


@pytest.mark.parametrize(("lines", "message"), TRAINING_MISTAKES)
def test_a_mistake_in_training_is_told_with_its_place(lines, message):
    with pytest.raises(ZooError) as caught:
        trained(lines)
    assert str(caught.value).startswith(("small.toml, training.", "small.toml, training: "))
    assert message in str(caught.value)


def test_a_setting_of_the_other_optimizer_is_told_where_it_stands():
    with pytest.raises(ZooError, match=r"small\.toml, teacher\.betas: belongs to adam, but the optimizer is sgd"):
        spec(("learning_rate = 0.1", "betas = [0.9, 0.99]"))


def test_without_instances_there_is_no_zoo():
    tables = TEXT[TEXT.index("[instances]") : TEXT.index("[training]")]
    with pytest.raises(ZooError, match=r"small\.toml, instances: expected instances such as .*; found {}"):
        spec((tables, "[instances]\n"))
    with pytest.raises(ZooError, match=r"small\.toml: 'instances' is missing; expected instances such as"):
        spec((tables, ""))


def test_errors_keep_their_kind():
    with pytest.raises(RegistryError, match="architectures: unknown architecture"):
        spec(('"vanilla_cnn@digits", ', '"x@digits", '))
    with pytest.raises(InvalidShape, match=r"^small\.toml, width 130 is not a multiple of 8; use 128 or 136\.$"):
        spec(("width = 128", "width = 130"))
    with pytest.raises(InvalidShape, match=r"^small\.toml, height 6 is not a multiple of 4; use 4 or 8\.$"):
        spec(("width = 128", "width = 128\nheight = 6"))


def test_a_height_that_is_too_small():
    with pytest.raises(InvalidShape) as caught:
        spec(("width = 128", "width = 128\nheight = 36"))
    assert str(caught.value) == (
        "small.toml, height: 5,058 parameters of resnet8@digits do not fit a PRep of 36 x 128 (4,608 values); "
        "use height >= 40."
    )
    assert spec(("width = 128", "width = 128\nheight = 40")).height == 40


def test_the_best_in_validation_needs_a_validation_split():
    with pytest.raises(ZooError, match=r"small\.toml, task\.split: needs a validation part, as best_validation is to"):
        spec((", validation = 180}", "}"), ("learning_rate = 0.1", 'keep = "best_validation"'))
    assert spec(("learning_rate = 0.1", 'keep = "best_validation"')).teacher.training.keep == Keep("best_validation")


def test_the_task_checks_its_record(monkeypatch):
    seen = []

    def check(record):
        seen.append(record)
        raise ZooError("task, split: too many images.")

    monkeypatch.setattr("prepkit.tasks.check_record", check)
    with pytest.raises(ZooError, match=r"^small\.toml, task, split: too many images\.$"):
        spec()
    assert seen == [tomllib.loads(TEXT)["task"]]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["low", "kind", "at", "x"]), inner),
    max_leaves=5,
)


def refusal():
    """What parsing answers, empty if it finds nothing wrong; any error but ours fails the test."""
    try:
        json.dumps(parse_spec(TEXT, "x.toml").task)
    except PrepkitError as error:
        return str(error)
    return ""


@settings(deadline=None)
@given(st.sampled_from(sorted(tomllib.loads(TEXT))), json_like)
def test_whatever_stands_there_is_read_or_refused(key, value):
    """No other error than ours, whatever a key holds."""
    data = {**tomllib.loads(TEXT), key: value}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specs, "parse_toml", lambda text, place: data)
        message = refusal()
    assert message == "" or message.startswith(("x.toml, ", "x.toml: "))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(KEYS)), json_like, max_size=3))
def test_whatever_training_holds_is_read_or_refused(values):
    read = {key: value for key, value in tomllib.loads(TEXT).items() if key != "teacher"}
    table = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 8, "epochs": 3, **values}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specs, "parse_toml", lambda text, place: {**read, "training": table})
        message = refusal()
    assert message == "" or message.startswith(("x.toml, ", "x.toml: "))
