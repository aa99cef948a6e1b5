"""What Python gives to the public functions: paths and names where they are clear, an error of prepkit where not."""

import pytest
import torch

import netspace
import prepkit

pytestmark = pytest.mark.usefixtures("one_thread")


def test_runs_and_zoos_may_be_paths(run, zoo, small_zoo):
    path = small_zoo("digits_multi")
    assert netspace.embed(str(run.path), path).equals(netspace.embed(run, zoo))
    first, second = zoo.table["id"].to_pylist()[:2]
    line = netspace.interpolate(run.path, str(path), first, second, steps=2)
    assert torch.equal(line.latents, netspace.interpolate(run, zoo, first, second, steps=2).latents)
    samples = netspace.sample(run.path, path, [0.5])
    assert torch.equal(samples.latents, netspace.sample(run, zoo, [0.5]).latents)
    found = netspace.optimize(run.path, path, first, steps=1)
    assert torch.equal(found.latents, netspace.optimize(run, zoo, first, steps=1).latents)


WITH_RUNS = {
    "embed": lambda run, zoo: netspace.embed(run, zoo),
    "interpolate": lambda run, zoo: netspace.interpolate(run, zoo, "a", "b"),
    "optimize": lambda run, zoo: netspace.optimize(run, zoo, "a"),
    "sample": lambda run, zoo: netspace.sample(run, zoo),
}


@pytest.mark.parametrize("name", WITH_RUNS)
def test_what_is_no_run_or_zoo_is_named(run, zoo, name):
    call = WITH_RUNS[name]
    with pytest.raises(prepkit.PrepkitError, match=r"^run: expected a Run, or the folder of one; found NetSpace"):
        call(run.space(), zoo)
    with pytest.raises(prepkit.PrepkitError, match=r"^zoo: expected a Zoo, or the folder of one; found dict"):
        call(run, {})


CALLS = {
    "evaluate, space": (
        lambda run, zoo: netspace.evaluate(run, run.registry, zoo, None, "test"),
        "space: .* found Run",
    ),
    "evaluate, registry": (
        lambda run, zoo: netspace.evaluate(run.space(), ["resnet8@digits"], zoo, None, "test"),
        "registry: expected the registry of a run; found list",
    ),
    "evaluate, zoo": (
        lambda run, zoo: netspace.evaluate(run.space(), run.registry, "zoo", None, "test"),
        "zoo: expected a Zoo, which prepkit.open_zoo gives; found str",
    ),
    "predict, space": (
        lambda run, zoo: netspace.predict(str(run.path), torch.zeros(1, 2), run.registry),
        r"space: expected a NetSpace, which netspace.load\(run\) gives; found str",
    ),
    "predict, embeddings": (
        lambda run, zoo: netspace.predict(run.space(), [[0.0]], run.registry),
        r"latent_NE: expected embeddings \[N, E\]; found list",
    ),
    "interpolate, points": (
        lambda run, zoo: netspace.interpolate(run, zoo, 0, 1),
        r"points: expected ids of instances, or embeddings \[E\] or \[N, E\]; found int",
    ),
    "interpolate, task": (
        lambda run, zoo: netspace.interpolate(
            run, zoo, zoo.table["id"][0].as_py(), zoo.table["id"][1].as_py(), task={}
        ),
        "task: expected a task with its data, which prepkit.load_task.* found dict",
    ),
    "load": (lambda run, zoo: netspace.load(None), "path: expected the folder of a run, or hf://user/name; found None"),
    "open_run": (lambda run, zoo: netspace.open_run(run), "path: expected the folder of a run.* found Run"),
    "load_recipe": (lambda run, zoo: netspace.load_recipe({}), "name: expected the name of a built-in .* found dict"),
    "load_recipe, changes": (
        lambda run, zoo: netspace.load_recipe("digits_multi", ["training.steps=1"]),
        "changes: expected values by key, .* found list",
    ),
    "train, recipe": (lambda run, zoo: netspace.train({}, "zoo", "out"), "recipe: expected a Recipe, .* found dict"),
    "train, zoo": (
        lambda run, zoo: netspace.train("digits_multi", zoo, "out"),
        "zoo: expected the folder of a zoo, or an address such as hf://user/zoo; found Zoo",
    ),
    "train, out": (
        lambda run, zoo: netspace.train("digits_multi", "zoo", None),
        "out: expected the folder of the run; found None",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_arguments_are_named(run, zoo, name):
    call, message = CALLS[name]
    with pytest.raises(prepkit.PrepkitError, match=f"^{message}"):
        call(run, zoo)


def test_a_recipe_may_be_a_name(tmp_path):
    with pytest.raises(prepkit.ZooError, match="nowhere"):
        netspace.train("digits_multi", tmp_path / "nowhere", tmp_path / "run", device="cpu")
    with pytest.raises(prepkit.PrepkitError, match="unknown recipe 'digits_mult'"):
        netspace.train("digits_mult", tmp_path / "nowhere", tmp_path / "run", device="cpu")
