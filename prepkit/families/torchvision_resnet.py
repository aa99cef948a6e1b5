"""TorchvisionResNet: ResNets of basic blocks under torchvision's names, with a stem for small images.

Their stem is one convolution of 3 x 3 with stride 1, without pooling, as in the zoos of ResNet18 of ModelZooDataset
and WeightCLIP. Shapes: B images, C channels, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prepkit.families.layer_chain import STEPS


class TorchvisionResNet(nn.Module):
    """A stem, four stages of basic blocks, the mean over the picture, a linear layer.

    in_channels: channels of the images
    widths:      channels of each stage
    blocks:      number of blocks of each stage; all stages but the first halve height and width
    outputs:     number of outputs
    shortcut:    name of the projections beside blocks that change the shape: "downsample" in torchvision
    activation:  key of the steps of LayerChain, such as "relu"
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        outputs: int,
        shortcut: str = "downsample",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.activation = STEPS[activation]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        inputs = widths[0]
        for number, (name, width, count) in enumerate(zip(self.stages, widths, blocks, strict=True)):
            strides = [1 if number == 0 else 2, *(1 for _ in range(count - 1))]
            stage = nn.Sequential()
            for stride in strides:
                stage.append(Block(inputs, width, stride, shortcut, activation))
                inputs = width
            self.add_module(name, stage)
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, h, w]` to logits `[B, outputs]`."""
        features = self.activation(self.bn1(self.conv1(images)))
        for name in self.stages:
            features = self.get_submodule(name)(features)
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, 1 x 1 where the shape changes; the last activation is after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, activation: str) -> None:
        super().__init__()
        self.activation = STEPS[activation]
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.projection = shortcut
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.add_module(shortcut, nn.Sequential(convolution, nn.BatchNorm2d(outputs)))

    def forward(self, features: Tensor) -> Tensor:
        """Map features `[B, inputs, h, w]` to `[B, outputs, h / stride, w / stride]`."""
        residual = self.activation(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        beside = self.get_submodule(self.projection)(features) if self.projects else features
        outputs: Tensor = self.activation(residual + beside)
        return outputs
