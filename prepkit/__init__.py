"""prepkit: trained networks as data.

    network = prepkit.architecture("resnet8@cifar10").build()
    layout = prepkit.Layout.of(network)
    prep = layout.pack(network.state_dict(), layout.shape(width=512))     # [H, 512]
    network.load_state_dict(layout.unpack(prep))

Names are loaded when they are first used, so that importing prepkit imports neither torch nor anything else heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prepkit.api import open_zoo as open_zoo
    from prepkit.checkpoint.export import save_state_dict as save_state_dict
    from prepkit.checkpoint.load import Checkpoint as Checkpoint
    from prepkit.checkpoint.load import load_checkpoint as load_checkpoint
    from prepkit.errors import PrepkitError as PrepkitError
    from prepkit.families.registry import Architecture as Architecture
    from prepkit.families.registry import Registry as Registry
    from prepkit.families.registry import architecture as architecture
    from prepkit.families.registry import architectures as architectures
    from prepkit.families.registry import built_in_registry as built_in_registry
    from prepkit.families.registry import detect as detect
    from prepkit.fusion.fold import fuse_batch_norm as fuse_batch_norm
    from prepkit.hub.pull import pull as pull
    from prepkit.hub.push import push as push
    from prepkit.packing import pack_checkpoint as pack_checkpoint
    from prepkit.prep.file import PRep as PRep
    from prepkit.prep.file import load_prep as load_prep
    from prepkit.prep.file import save_prep as save_prep
    from prepkit.prep.layout import Layout as Layout
    from prepkit.prep.layout import PRepShape as PRepShape
    from prepkit.prep.layout import Slot as Slot
    from prepkit.running.instances import run_instances as run_instances
    from prepkit.tasks import load_task as load_task
    from prepkit.training.run import train_zoo as train_zoo
    from prepkit.training.spec import load_spec as load_spec
    from prepkit.zoo.read.zoo import Zoo as Zoo
    from prepkit.zoo.write.writer import ZooWriter as ZooWriter

from prepkit.version import __version__

_HOMES = {
    "Architecture": "families.registry",
    "Checkpoint": "checkpoint.load",
    "Layout": "prep.layout",
    "PRep": "prep.file",
    "PRepShape": "prep.layout",
    "PrepkitError": "errors",
    "Registry": "families.registry",
    "Slot": "prep.layout",
    "Zoo": "zoo.read.zoo",
    "ZooWriter": "zoo.write.writer",
    "architecture": "families.registry",
    "architectures": "families.registry",
    "built_in_registry": "families.registry",
    "detect": "families.registry",
    "fuse_batch_norm": "fusion.fold",
    "load_checkpoint": "checkpoint.load",
    "load_prep": "prep.file",
    "load_spec": "training.spec",
    "load_task": "tasks",
    "open_zoo": "api",
    "pack_checkpoint": "packing",
    "pull": "hub.pull",
    "push": "hub.push",
    "run_instances": "running.instances",
    "save_prep": "prep.file",
    "save_state_dict": "checkpoint.export",
    "train_zoo": "training.run",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prepkit' has no attribute '{name}'")
    value = getattr(import_module(f"prepkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
