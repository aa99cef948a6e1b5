"""Tests of how objects of netspace are shown: on one short line, whatever they hold."""

import torch
from small_zoos import multi_zoo
from untrained import untrained_run

import netspace
from netspace.data import task_of
from prepkit.support.text import LINE


def test_each_public_object_is_shown_on_one_short_line(tmp_path):
    run = untrained_run(tmp_path / "run", "digits_multi", multi_zoo(tmp_path / "zoo"), 2)
    space, zoo = netspace.load(tmp_path / "run"), run.open_zoo()
    task = task_of(zoo, torch.device("cpu"))
    first, *_, last = zoo.table["id"].to_pylist()
    objects = {
        "run": run,
        "recipe": run.recipe,
        "prediction": netspace.predict(space, space.encode(zoo.preps()[:2]), run.registry),
        "evaluation": netspace.evaluate(space, run.registry, zoo.split("test"), task, "test"),
        "interpolation": netspace.interpolate(run, zoo, first, last, steps=2, space=space, task=task),
        "optimisation": netspace.optimize(run, zoo, first, steps=1, space=space, task=task),
        "samples": netspace.sample(run, zoo, space=space),
    }
    shown = {name: repr(value).replace(str(tmp_path), "") for name, value in objects.items()}
    assert {name: text for name, text in shown.items() if len(text) > LINE or "\n" in text or "0x" in text} == {}
    assert shown["prediction"].startswith("Prediction(preps=Tensor[2, 88, 128], class_ids=(2, 2), logits=Tensor[2, 4]")
    assert shown["run"] == "<Run '/run' of the recipe digits_multi>"
