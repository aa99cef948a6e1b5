"""What splits share; netspace's tests of split hygiene count every kind of it."""

from pathlib import Path

import prepkit
from prepkit.zoo.read.overlap import contents_of_split


def test_a_seed_of_another_architecture_is_another_seed_and_0_is_one(tmp_path: Path) -> None:
    with prepkit.ZooWriter(tmp_path, width=128, registry=prepkit.built_in_registry("digits")) as writer:
        writer.add(prepkit.architecture("resnet8@digits").build(), id="a", split="train", seed=1)
        writer.add(prepkit.architecture("resnet8@digits").build(), id="c", split="train", seed=0)
        writer.add(prepkit.architecture("lenet_like@digits").build(), id="b", split="test", seed=1)
        writer.add(prepkit.architecture("resnet8@digits").build(), id="d", split="test", seed=0)
    zoo = prepkit.open_zoo(tmp_path)
    assert contents_of_split(zoo, "train", "seed") & contents_of_split(zoo, "test", "seed") == {("resnet8@digits", 0)}
