"""The decoder's third convolution on a GPU: the faster of two ways is taken, recorded, and followed from there on.

A CPU stands in for the GPU: it computes both ways, but a training on it does not choose between them.
"""

from types import SimpleNamespace

import pytest
import torch
from said import Said
from small_zoos import SMALL
from untrained import untrained_run

import netspace
from netspace.recipe import load_recipe
from netspace.run.card import card_text
from netspace.run.run import GPU_FUNCTIONS
from netspace.space import gpu_functions
from netspace.space.gpu_functions import CONVOLUTION, PRODUCT, THIRD, choose
from netspace.space.network import NetSpace, fast
from netspace.training._functions import choose_functions
from netspace.training.memory import predicted_at_once
from prepkit.support.processes import Ranks

pytestmark = pytest.mark.usefixtures("one_thread")
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Any decoder takes a GPU's way."""
    monkeypatch.setattr(fast, "decodes", lambda *_: False)
    monkeypatch.setattr(fast, "decodes_channels_last", lambda *_: True)


@pytest.fixture
def timed(monkeypatch):
    """A batch takes so many seconds in either way, and the clock runs what it times once."""
    seconds = {CONVOLUTION: 0.003, PRODUCT: 0.002}

    def least_seconds(decoder, latent, halved):
        took = seconds[PRODUCT if decoder.third_as_product else CONVOLUTION]
        if took is None:
            raise torch.OutOfMemoryError("no room")
        return took

    monkeypatch.setattr(gpu_functions, "least_seconds", least_seconds)
    return seconds


def space_of(columns=None):
    return NetSpace(height=4, width=24, embedding_size=256, columns=16 if columns is None else columns)


@pytest.mark.parametrize(("product", "expected"), [(0.002, PRODUCT), (0.004, CONVOLUTION), (None, CONVOLUTION)])
def test_the_faster_way_that_fits_the_memory_is_taken(timed, product, expected):
    timed[PRODUCT] = product
    space, said = space_of(), Said()
    chosen = choose(space, 3, halved=False, progress=said)
    assert chosen[THIRD] == expected
    assert chosen["seconds"] == {name: took for name, took in timed.items() if took is not None}
    assert space.decoder.third_as_product == (expected == PRODUCT)
    beside = "" if product is None else f", {product * 1e3:.3g} ms with a product"
    assert said.texts == [
        f"The decoder's third convolution: a batch is decoded in 3 ms with a convolution{beside}; "
        f"the run keeps to the {expected}."
    ]


def test_a_batch_that_fits_in_neither_way_is_an_error_of_the_training(timed):
    timed[CONVOLUTION] = None
    with pytest.raises(torch.OutOfMemoryError):
        choose(space_of(), 3, halved=False, progress=Said())


def test_columns_that_cannot_be_told_apart_leave_no_choice(timed):
    space = NetSpace(height=8, width=56, embedding_size=256, columns=14)
    assert choose(space, 3, halved=False, progress=Said()) is None
    assert not space.decoder.third_as_product


@pytest.mark.parametrize("halved", [False, True])
def test_a_measurement_leaves_gradients_and_random_numbers_alone(halved, monkeypatch):
    monkeypatch.setattr(gpu_functions, "STEPS", 1)
    space = space_of()
    before, state = [parameter.clone() for parameter in space.parameters()], torch.get_rng_state()
    chosen = choose(space, 2, halved=halved, progress=Said())
    assert set(chosen["seconds"]) == {CONVOLUTION, PRODUCT}
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, values in zip(space.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, values)


def chosen_by(run, device=CUDA, **changes):
    """What a training of a run chooses on a device, and its space."""
    space = run.new_space()
    recipe = load_recipe("digits_single", {**SMALL["digits_single"], **changes})
    choose_functions(run, space, SimpleNamespace(recipe=recipe), Ranks(), device, Said())
    return run.record.get(GPU_FUNCTIONS), space.decoder.third_as_product


def test_the_choice_is_recorded_told_on_the_card_and_kept(small_zoo, tmp_path, timed):
    run = untrained_run(tmp_path / "run", "digits_single", small_zoo("digits_single"))
    assert GPU_FUNCTIONS not in run.record
    expected = {THIRD: PRODUCT, "seconds": {CONVOLUTION: 0.003, PRODUCT: 0.002}}
    assert chosen_by(run, **{"training.deterministic": True}) == (None, False)
    assert chosen_by(run) == (expected, True)
    timed[PRODUCT] = 1.0  # another machine, or another time
    assert chosen_by(run) == (expected, True)
    again = netspace.Run(run.path)
    assert again.record[GPU_FUNCTIONS] == expected
    assert again.space().decoder.third_as_product
    assert "the decoder's third convolution as a matrix product" in card_text(again)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("cifar10_single", {}, 8),
        ("cifar10_multi", {}, 4),
        ("cifar10_multi", {"batch.instances": 4}, 12),
        ("cifar10_multi", {"training.recompute": True}, 1),
        ("chairs", {}, 4),
    ],
)
def test_as_many_instances_are_decoded_as_in_a_step(name, changes, expected):
    assert predicted_at_once(load_recipe(name, changes)) == expected
