"""Novelty of generated networks: copies are found in any order, and all measures are those of plain torch and numpy."""

import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_samples import TASK, norm, nudged, reordered
from click.testing import CliRunner
from torch import Tensor

from prepkit.api import open_zoo
from prepkit.auditing._controls import NOISES, noise_name, with_noise
from prepkit.auditing._stacks import stacks_of_preps, stacks_of_zoo
from prepkit.auditing.novelty import Made, novelty, novelty_of
from prepkit.auditing.novelty_report import sentences_of, text_of, write_folder
from prepkit.auditing.novelty_result import Novelty
from prepkit.cli import main
from prepkit.errors import OutputError, PrepkitError, ZooError
from prepkit.families.registry import Architecture, Registry, architecture
from prepkit.tasks import load_task
from prepkit.tasks.distance_grid import grid_points
from prepkit.zoo.write.writer import ZooWriter

pytestmark = pytest.mark.usefixtures("one_thread")


def small(name: str, channels: list[int], activation: str) -> Architecture:
    arguments = {"channels": channels, "kernels": [[2, 2], [2, 2]], "outputs": 10, "activation": activation}
    return Architecture(name, "small_cnn", (1, 8, 8), "prepkit.families.small_cnn:SmallCNN", arguments, {})


NAME = "small@digits"
SMALL, TINY = small(NAME, [1, 6, 8], "relu"), small("tiny@digits", [1, 3, 3], "tanh")
DIGITS = {**TASK, "split": {"seed": 0, "test": 60, "validation": 40}}


def louder(seed: int) -> dict[str, Tensor]:
    """A network whose answers differ from image to image."""
    with torch.random.fork_rng():
        torch.manual_seed(2 + seed)
        return {name: 3 * tensor for name, tensor in SMALL.build().state_dict().items()}


def zoo_of(root: Path, networks: dict[str, dict[str, Tensor]], columns: Any = None, known: Any = SMALL) -> Path:
    """Write a zoo of tensors by id, each of a run of its own unless its columns say another."""
    with ZooWriter(root, task=DIGITS) as writer:
        for id_, tensors in networks.items():
            row = {"split": "train", "run": id_, "accuracy": 0.5, **(columns or {}).get(id_, {})}
            writer.add(tensors, architecture=known, id=id_, **row)
    return root


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven networks and a later state of the first; two of another split."""
    networks = {f"n{seed}": louder(seed) for seed in range(7)} | {"later": nudged(louder(0), 0.02)}
    networks |= {"held": louder(20), "held too": louder(21)}
    columns = {"later": {"run": "n0"}, **{name: {"split": "test"} for name in ("held", "held too")}}
    return zoo_of(tmp_path_factory.mktemp("novelty") / "training", networks, columns)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    networks = {
        "copy": louder(3), "reordered": reordered(louder(4), 1), "near": nudged(reordered(louder(5), 2), 0.04),
        "new": louder(30),
    }  # fmt: skip
    return zoo_of(tmp_path_factory.mktemp("novelty") / "made", networks)


@pytest.fixture(scope="module")
def found(training: Path, generated: Path) -> Novelty:
    return novelty(generated, training, controls=4)


def rows(found: Novelty, group: str) -> dict[str, dict]:
    return {row["id"]: dict(row) for row in found.groups[group].rows}


def test_copies_are_found_also_with_their_units_in_another_order(found: Novelty) -> None:
    own = rows(found, "generated")
    assert found.groups["generated"].copies == ("copy", "reordered")
    nearest = {id_: (row["nearest_in_weights"], row["nearest_in_outputs"]) for id_, row in own.items()}
    assert nearest == {**nearest, "copy": ("n3", "n3"), "reordered": ("n4", "n4"), "near": ("n5", "n5")}
    assert own["copy"]["distance"] == own["copy"]["difference"] == 0
    assert own["reordered"]["distance"] == 0
    assert own["near"]["distance"] == pytest.approx(0.04, rel=1e-4)
    assert own["new"]["distance"] > 0.9
    assert own["copy"]["overlap"] == own["copy"]["agreement"] == 1


def test_noise_lies_where_it_was_put(found: Novelty) -> None:
    for share in NOISES[:-1]:
        for id_, row in rows(found, noise_name(share)).items():
            original = id_.removesuffix(f" with {noise_name(share)}")
            if original not in ("n0", "later"):  # which are 2 % apart
                assert row["nearest_in_weights"] == original
                assert row["distance"] == pytest.approx(share, rel=1e-4)
    for row in rows(found, noise_name(1)).values():  # so much may bring a network nearer to another one
        assert 0.5 < row["distance"] <= 1.0001


def test_noise_moves_each_tensor_by_its_share(training: Path) -> None:
    (stack,) = stacks_of_zoo(open_zoo(training))
    moved = with_noise(stack, 0.1, 3, seed=0)
    for row, id_ in enumerate(moved.ids):
        original = stack.values_NV[stack.ids.index(id_.removesuffix(" with noise of 10 %"))]
        for slot in stack.source.layout:
            before, after = (x[slot.start : slot.stop].double() for x in (original, moved.values_NV[row]))
            assert float((after - before).norm() / before.norm()) == pytest.approx(0.1, rel=1e-5)


def test_training_networks_are_compared_with_other_runs(found: Novelty) -> None:
    """`later` is 2 % of the norm from `n0`, of the same run, and far from all others."""
    assert min(found.groups["training networks"].values("distance")) > 0.9
    assert "n0" in rows(found, "training networks")
    assert {row["id"] for row in found.groups["held-out networks"].rows} == {"held", "held too"}


def test_averages_are_taken_after_alignment(tmp_path: Path) -> None:
    """The mean of a network and its reordered copy is the network; without alignment it would be none of both."""
    training = zoo_of(tmp_path / "zoo", {"one": louder(0), "again": reordered(louder(0), 1)})
    found = novelty(training, training, controls=2)
    assert found.groups["averages of two"].values("distance") == pytest.approx([0, 0], abs=1e-6)
    assert found.groups["averages of two"].copies == ("one and again", "again and one")
    plain = {name: (tensor + reordered(louder(0), 1)[name]) / 2 for name, tensor in louder(0).items()}
    assert norm({name: plain[name] - louder(0)[name] for name in plain}) > 0.3 * norm(louder(0))


def logits_of(tensors: dict[str, Tensor], images: Tensor) -> np.ndarray:
    network = SMALL.build()
    network.load_state_dict(tensors)
    with torch.no_grad():
        return network.eval()(images).double().numpy()


def test_measures_of_outputs_are_those_of_plain_torch(found: Novelty) -> None:
    task = load_task(DIGITS)
    images, labels = task.normalised("test")
    truth = labels.numpy()
    tensors = {f"n{seed}": louder(seed) for seed in range(7)} | {"later": nudged(louder(0), 0.02)}
    known = {id_: logits_of(own, images) for id_, own in tensors.items()}
    own = rows(found, "generated")
    for id_, state in {"new": louder(30), "near": nudged(reordered(louder(5), 2), 0.04)}.items():
        logits = logits_of(state, images)
        centred = logits - logits.mean(1, keepdims=True)
        wrong = set(np.flatnonzero(logits.argmax(1) != truth).tolist())
        difference, agreement, overlap = [], [], []
        for other in known.values():
            spread = other - other.mean(1, keepdims=True)
            difference.append(np.linalg.norm(centred - spread) / np.linalg.norm(spread - spread.mean(0)))
            agreement.append((logits.argmax(1) == other.argmax(1)).mean())
            wrong_too = set(np.flatnonzero(other.argmax(1) != truth).tolist())
            overlap.append(len(wrong & wrong_too) / len(wrong | wrong_too))
        assert own[id_]["difference"] == pytest.approx(min(difference), rel=1e-4)
        assert own[id_]["nearest_in_outputs"] == list(known)[int(np.argmin(difference))]
        assert own[id_]["agreement"] == pytest.approx(max(agreement))
        assert own[id_]["overlap"] == pytest.approx(max(overlap))
        assert own[id_]["accuracy"] == pytest.approx((logits.argmax(1) == truth).mean())
    chosen_images, chosen_labels = task.normalised("validation")
    chosen = {
        id_: (logits_of(own, chosen_images).argmax(1) == chosen_labels.numpy()).mean() for id_, own in tensors.items()
    }
    best = found.best[NAME]
    assert chosen[best["id"]] == max(chosen.values())
    assert best["accuracy"] < max((own.argmax(1) == truth).mean() for own in known.values())  # on the test images
    assert best["accuracy"] == pytest.approx((known[best["id"]].argmax(1) == truth).mean())


def forms(state: dict[str, np.ndarray]) -> np.ndarray:
    """All networks of the same function, `[2304, values]`: 6 orders and 8 signs of each of two hidden layers."""
    found = []
    for p, q in product(permutations(range(3)), repeat=2):
        for s, t in product(product((1.0, -1.0), repeat=3), repeat=2):
            p_, q_, s_, t_ = list(p), list(q), np.array(s), np.array(t)
            second = state["convs.1.weight"][q_][:, p_] * s_[None, :, None, None] * t_[:, None, None, None]
            parts = [
                state["convs.0.weight"][p_] * s_[:, None, None, None], state["convs.0.bias"][p_] * s_,
                second, state["convs.1.bias"][q_] * t_,
                state["linear.weight"][:, q_] * t_, state["linear.bias"],
            ]  # fmt: skip
            found.append(np.concatenate([part.ravel() for part in parts]))
    return np.array(found)


def test_the_nearest_is_that_of_all_orders_and_signs(tmp_path: Path) -> None:
    """Brute force over 2,304 forms: near copies have the least distance there is, others none below it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in TINY.build().state_dict().items()}

    def random() -> dict[str, Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    training = {f"t{number}": random() for number in range(5)}
    made = {f"new {number}": random() for number in range(4)}
    for number, own in enumerate(training.values()):
        arrays = {name: tensor.double().numpy() for name, tensor in own.items()}
        flat = torch.from_numpy(forms(arrays)[int(torch.randint(2304, (), generator=generator))])
        flat += 0.05 * flat.norm() * torch.nn.functional.normalize(torch.randn(flat.shape, generator=generator), dim=0)
        values = flat.float().split([shape.numel() for shape in shapes.values()])
        made[f"near {number}"] = {n: v.view(shapes[n]) for n, v in zip(shapes, values, strict=True)}
    zoo_of(tmp_path / "training", training, known=TINY)
    zoo_of(tmp_path / "made", made, known=TINY)
    own = rows(novelty(tmp_path / "made", tmp_path / "training", controls=1), "generated")
    flat = {
        id_: np.concatenate([t.double().numpy().ravel() for t in tensors.values()]) for id_, tensors in training.items()
    }
    for id_, tensors in made.items():
        every = forms({name: tensor.double().numpy() for name, tensor in tensors.items()})
        least = {
            other: np.linalg.norm(every - values, axis=1).min() / np.linalg.norm(values)
            for other, values in flat.items()
        }
        assert own[id_]["distance"] >= min(least.values()) - 1e-6
        if id_.startswith("near"):
            assert own[id_]["distance"] == pytest.approx(min(least.values()), rel=1e-5)
            assert own[id_]["distance"] < 0.06
            assert own[id_]["nearest_in_weights"] == min(least, key=least.__getitem__)


def test_shapes_are_compared_by_their_insides(tmp_path: Path) -> None:
    task = {
        "kind": "shapes", "dataset": "procedural_chairs", "count": 8, "seed": 0, "steps_per_epoch": 2,
        "points": {"pool": 256, "near_surface": 0.5, "sigma": 0.05},
        "split": {"seed": 0, "test": 64, "validation": 64},
    }  # fmt: skip
    known = architecture("sine_mlp@sdf_small")
    torch.manual_seed(0)
    networks = [known.build() for _ in range(5)]
    for name, own in (("training", networks[:3]), ("made", networks[3:])):
        with ZooWriter(tmp_path / name, task=task) as writer:
            for item, network in enumerate(own):
                writer.add(network, id=f"{name}{item}", architecture=known.name, item=item)
    found = novelty(tmp_path / "made", tmp_path / "training", controls=1)
    assert (found.kind, found.best, found.inputs) == ("shapes", {}, "4,096 points of the cube")
    with torch.no_grad():
        inside = [(network(grid_points(16))[:, 0] < 0).numpy() for network in networks]
    for place, row in enumerate(found.groups["generated"].rows, start=3):
        expected = max((inside[place] & other).sum() / (inside[place] | other).sum() for other in inside[:3])
        assert row["overlap"] == pytest.approx(expected)
        assert "accuracy" not in row
        assert "agreement" not in row


def test_the_comparison_with_controls_by_hand(found: Novelty) -> None:
    generated = found.groups["generated"]
    names = [*map(noise_name, NOISES), "averages of two"]
    new = {n: found.groups[n] for n in names if found.groups[n].mean("overlap") <= generated.mean("overlap")}
    best = max(new, key=lambda name: new[name].mean("accuracy"))
    compared = found.compared("generated")
    assert compared.controls == {NAME: best}
    accuracies = np.array(new[best].values("accuracy"))
    assert compared.deviations == pytest.approx((accuracies - accuracies.mean()).tolist())
    assert len(compared.gains) == 4
    assert compared.gain == pytest.approx(generated.mean("accuracy") - new[best].mean("accuracy"))
    assert compared.to_best == pytest.approx(generated.mean("accuracy") - found.best[NAME]["accuracy"])


def test_networks_without_a_zoo(training: Path, generated: Path, found: Novelty) -> None:
    zoo, own = open_zoo(training), open_zoo(generated)
    known = load_task(DIGITS)
    made = {
        name: Made(own.registry, [0] * len(rows), own.preps(rows), [own.table["id"][row].as_py() for row in rows])
        for name, rows in {"first": [0, 1], "last": [2, 3]}.items()
    }
    same = novelty_of(made, zoo, task=known, controls=1)
    expected = rows(found, "generated")
    assert {**rows(same, "first"), **rows(same, "last")} == {id_: pytest.approx(row) for id_, row in expected.items()}
    assert list(same.generated) == ["first", "last"]
    assert same.groups["first"].copies == ("copy", "reordered")


def test_other_architectures_and_layouts_are_told(tmp_path: Path, training: Path) -> None:
    """Networks of another architecture are compared in outputs; a layout alone in weights as they stand."""
    torch.manual_seed(0)
    with ZooWriter(tmp_path / "other", task=DIGITS) as writer:
        writer.add(TINY.build(), architecture=TINY, id="other")
    found = novelty(tmp_path / "other", training, controls=1)
    (row,) = found.groups["generated"].rows
    assert "distance" not in row
    assert row["overlap"] > 0
    assert "No training network has the tensors of tiny@digits" in " ".join(found.notes)
    with ZooWriter(tmp_path / "layout") as writer:
        for number in range(2):
            writer.add({"a.weight": torch.randn(3, 2)}, id=f"{number}")
    found = novelty(tmp_path / "layout", tmp_path / "layout", controls=1)
    assert found.groups["generated"].values("distance") == [0, 0]
    assert "it is not known which may change places: the zoo knows only its layout" in " ".join(found.notes)
    assert "were not run: the zoo knows only their layout" in " ".join(found.notes)
    write_folder(found, tmp_path / "folder")


def test_the_command(tmp_path: Path, training: Path, generated: Path, found: Novelty) -> None:
    arguments = ["zoo", "novelty", str(generated), "--against", str(training), "--controls", "4"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["groups"]["generated"]["copies"] == ["copy", "reordered"]
    written = json.loads((tmp_path / "out" / "novelty.json").read_text())
    assert {key: value for key, value in document.items() if key != "output"} == written == found.to_dict()
    assert (tmp_path / "out" / "novelty.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / "novelty.md").read_text()
    assert "generated: 2 of 4 networks are copies of a training network" in text
    assert "| noise of 10 % | 4 |" in text
    again = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out")])
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    lines = text_of(found).splitlines()
    assert lines[0] == "compared with 8 training networks of 'training', train, on 60 test images; seed 0"
    assert any(line.startswith("best training network") for line in lines)
    (sentence,) = sentences_of(found)
    assert sentence.startswith("generated: 2 of 4 networks are copies of a training network (copy, reordered); wrong")
    beside = found.compared("generated")
    assert (
        f"{100 * abs(beside.gain):.1f} points {'above' if beside.gain > 0 else 'below'} that of the best control"
        in (sentence)
    )


def test_mistakes(tmp_path: Path, training: Path, generated: Path) -> None:
    preps = torch.ones(2, SMALL.layout.shape(64).height, 64)
    preps[1, 0, 0] = float("nan")
    with pytest.raises(PrepkitError, match="there is NaN or infinity in 'b', so that no distance exists"):
        stacks_of_preps(Registry([SMALL]), [0, 0], preps, ["a", "b"])
    with pytest.raises(ZooError, match="no split 'trian'"):
        novelty(generated, training, split="trian")
    with pytest.raises(ZooError, match="'training' has no training networks to compare"):
        novelty(generated, training, where="accuracy > 2")
    for mistake, message in (
        ({"tolerance": 1.0}, "tolerance is 1; it is a share"),
        ({"controls": 0}, "controls: expected a whole number of at least 1; found 0"),
        ({"seed": -1}, "seed: expected a whole number of at least 0; found -1"),
    ):
        with pytest.raises(PrepkitError, match=message):
            novelty(generated, training, **mistake)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"holds other files and no novelty\.json"):
        write_folder(novelty(generated, training, controls=1), tmp_path / "mine")
    result = CliRunner().invoke(main, ["zoo", "novelty", str(generated), "--against", str(training), "--force"])
    assert (result.exit_code, "--force goes with -o OUT." in result.stderr) == (2, True)
