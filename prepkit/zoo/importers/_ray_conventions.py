"""How inputs of networks of ray-tune trees were normalised, which no file says: what is likely, and what runs prove.

A convention is a normalisation, and whether pooling stands before the activation. Some models are run by each on the
test images; that whose accuracies are the stored ones is the zoo's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted
from prepkit.tasks.task import EVALUATION_BATCH
from prepkit.zoo.importers._ray_networks import Rebuilt, only_size
from prepkit.zoo.importers._ray_runs import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

TEST = "test"
FOLDER = "folder"  # what a task calls images in folders of the user's
DOWNLOADED = ("mnist", "fashion_mnist", "cifar10", "svhn")  # what it calls images in files that torchvision downloads
LEAST_AGREEMENT = 0.02  # mean difference of accuracies up to which a convention may be the right one
HOPELESS = 0.05  # mean difference beyond the best one's at which a convention is not run any more
ONE_IMAGE = 1.001  # so many images may differ where a convention is right; stored numbers are rounded


@dataclass(frozen=True)
class Normalisation:
    """What is taken from pixels of 0 to 1, and what they are then divided by: a number for all channels or for each."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fits(self, channels: int) -> bool:
        """Return whether images of so many channels can be normalised so."""
        return len(self.mean) in (1, channels)

    def task(self, channels: int, size: int | None, dataset: str = FOLDER) -> dict[str, Any]:
        """Return the record of a task.

        size: height and width to which images are scaled; their own if None
        """
        per_channel = {"mean": self.mean, "std": self.std}
        values = {key: list(all_ * channels if len(all_) == 1 else all_) for key, all_ in per_channel.items()}
        return {**plain_task(size, dataset), **values}


def plain_task(size: int | None, dataset: str = FOLDER) -> dict[str, Any]:
    """Return the record of a task whose images are not normalised."""
    scaled = {} if size is None else {"size": size}
    return {"kind": "images", "dataset": dataset, "split": {"seed": 0, "test": TEST}, **scaled}


def images_of(data_set: str, data: Path | None) -> str:
    """Return what a task calls the images of a data set: its name for torchvision's files, which also no data means."""
    is_folder = data is not None and any((data / part).is_dir() for part in ("train", TEST))
    return data_set if data_set in DOWNLOADED and not is_folder else FOLDER


NORMALISATIONS = {
    each.name: each
    for each in (
        Normalisation("half", (0.5,), (0.5,)),
        Normalisation("mnist", (0.1307,), (0.3081,)),
        Normalisation("none", (0.0,), (1.0,)),
        Normalisation("cifar10", (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
        Normalisation("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        Normalisation("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
}
DATA_SETS = (  # what the name of a folder or a data set has in it, which data set it is, and the likely normalisations
    (r"f_?-?mnist|fashion", "fashion_mnist", "half", "half"),
    (r"(?<![a-z])mnist", "mnist", "mnist", "mnist"),  # kmnist and emnist are others
    (r"usps", "usps", "mnist", "mnist"),
    (r"svhn", "svhn", "half", "half"),
    (r"cifar_?-?100(?![0-9])", "cifar100", "half", "cifar100"),
    (r"cifar", "cifar10", "half", "cifar10"),
    (r"(?<![a-z])stl(?![a-z])", "stl10", "half", "half"),
    (r"tiny_?-?imagenet", "tiny_imagenet", "half", "imagenet"),
)
NAMED_BY = ("dataset::name", "config.dataset", "dataset::dump", "training::data_path")  # settings with its name or path
WEIGHTCLIP = re.compile(r"NN_tune_trainable_seed=[0-9]+")  # ray puts settings such as seed=1 into other names too
PREFIX = re.compile(r"(?i)^(?:tune_zoo_|zoo_)")


@dataclass(frozen=True)
class Convention:
    """A normalisation, and whether pooling stands before the activation."""

    normalisation: Normalisation
    pool_first: bool = True

    @property
    def name(self) -> str:
        """The normalisation's name, and what stands first if it is unusual."""
        return self.normalisation.name + ("" if self.pool_first else " with pooling after the activation")


@dataclass(frozen=True)
class DataSet:
    """A data set that names tell of, and the likely normalisation of its images; None where nothing is known."""

    name: str
    of_chains: str | None = None
    of_resnets: str | None = None


def data_set(folder: Path, run: Run, settings: Mapping[str, Any]) -> DataSet:
    """Return the data set that a run's settings name, or the folders in which it stands, the nearest first."""
    said = [str(settings[name]) for name in NAMED_BY if isinstance(settings.get(name), str)]
    above = [*reversed(Path(run.name).parts[:-1]), folder.resolve().name, folder.resolve().parent.name]
    for text in (*said, *above):
        for pattern, name, chain, resnet in DATA_SETS:
            if re.search(pattern, text.lower()):
                return DataSet(name, chain, resnet)
    label = re.sub(r"[^A-Za-z0-9]+", "_", PREFIX.sub("", above[0])).strip("_")[:40] or "unknown"
    is_weightclip = WEIGHTCLIP.fullmatch(Path(run.name).name)  # whose data sets have one normalisation
    return DataSet(label, "half", "half") if is_weightclip else DataSet(label)


@dataclass(frozen=True)
class Sample:
    """A model that is run to find the convention: its network, its values and its accuracy as it is stored.

    place: what errors call it
    """

    network: Rebuilt
    tensors: Mapping[str, Tensor]
    stored: float
    place: str

    def by_order(self) -> dict[bool, nn.Module]:
        """Return the networks to run, by whether pooling stands before the activation."""
        from prepkit.families.loading import network_with

        orders = (True, False) if self.network.order_matters else (True,)
        architectures = {order: self.network.architecture("any", order) for order in orders}
        return {
            order: network_with(self.tensors, architecture, self.place).float()
            for order, architecture in architectures.items()
        }


@dataclass(frozen=True)
class Decision:
    """The convention that running found.

    differences: the mean difference of accuracies by each convention that was run
    note:        a sentence on it
    """

    convention: Convention
    differences: Mapping[str, float]
    note: str


def decide(samples: Sequence[Sample], likely: Normalisation | None, data: Path, dataset: str = FOLDER) -> Decision:
    """Run models by each convention, and return that by which they have the accuracies that are stored.

    data:    folder of the images
    dataset: what a task calls them
    raises ZooError if none is right, or the images are not those that the networks take
    """
    from prepkit.tasks.images import load

    networks = [sample.network for sample in samples]
    images, labels = load(plain_task(only_size(networks), dataset), data).normalised(TEST)
    if images.shape[1] != networks[0].channels:
        raise ZooError(
            f"the networks take images of {counted(networks[0].channels, 'channel')}, but those in '{data}' have "
            f"{images.shape[1]}: gray images have 1, coloured ones 3. Convert them as the makers of the zoo did."
        )
    orders = (True, False) if any(network.order_matters for network in networks) else (True,)
    left = [
        Convention(each, order) for each in NORMALISATIONS.values() if each.fits(images.shape[1]) for order in orders
    ]
    differences: dict[str, list[float]] = {each.name: [] for each in left}
    for sample in samples:
        by_order = sample.by_order()
        for each in left:
            network = by_order.get(each.pool_first, by_order[True])
            found = _accuracy(network, images, labels, each.normalisation, data)
            differences[each.name].append(abs(found - sample.stored))
        best = min(fmean(differences[each.name]) for each in left)
        left = [each for each in left if fmean(differences[each.name]) - best <= HOPELESS]
    means = {each.name: fmean(differences[each.name]) for each in left}
    ranked = sorted(left, key=lambda each: means[each.name])
    figures = ", ".join(f"{each.name} {means[each.name]:.4f}" for each in ranked[:6])
    models = counted(len(samples), "model")
    if means[ranked[0].name] > LEAST_AGREEMENT:
        raise ZooError(
            f"no convention gives the accuracies that are stored; mean differences for {models}: {figures}. See "
            f"whether '{data}' holds the test images of this zoo, in folders whose order is that of its classes."
        )
    near = [each for each in ranked if max(differences[each.name]) <= ONE_IMAGE / len(labels)]
    if not near:
        near = [each for each in ranked if means[each.name] - means[ranked[0].name] <= ONE_IMAGE / len(labels)]
    chosen = next((each for each in near if each.normalisation == likely and each.pool_first), near[0])
    told = "decided for" if len(near) == 1 else "cannot tell apart some conventions; taken is"
    note = f"Running {models} {told} '{chosen.name}'; mean differences of accuracy: {figures}."
    return Decision(chosen, means, note)


def _accuracy(network: nn.Module, images: Tensor, labels: Tensor, normalisation: Normalisation, data: Path) -> float:
    """Return the share of images `[N, C, H, W]`, of 0 to 1, that a network classifies correctly.

    raises ZooError if the network does not take images of that size
    """
    import torch

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (normalisation.mean, normalisation.std))
    right = 0
    try:
        with torch.no_grad():
            for first in range(0, len(labels), EVALUATION_BATCH):
                some = slice(first, first + EVALUATION_BATCH)
                outputs = network((images[some] - mean) / std)
                right += int((outputs.argmax(1) == labels[some]).sum())
    except RuntimeError as error:
        shape = "x".join(map(str, images.shape[1:]))
        reason = str(error).splitlines()[0]
        raise ZooError(
            f"a model does not run on the images of '{data}', which are {shape}: {reason}. See whether they are as "
            "large as the makers of the zoo had them."
        ) from None
    return right / len(labels)
