"""NetSpace's network: an encoder of PReps, a decoder to PReps and a classifier of ClassIds.

Learning the Space of Deep Models, section III, Fig. 1 and supplementary I.
Shapes: N instances, H x W the PRep, E embedding values, A architectures.

The embedding is also an image `[C, S, S]`: E = 4^k with k >= 4, C = max(1, E / 4096), S = sqrt(E / C), so that
S = 16, 32, 64, 64, ... and C = 1, 1, 1, 4, ... The decoder's first reshape has K columns. The shapes are

    encoder     [1, H, W] -> [E/32, H, W/2] -> [E/16, H, W/4], max over the width
                -> [E/8, H] -> [E, H], max over the height -> [E]
    decoder     [C, S, S]        conv to 512 H K / S^2, stride 2    [.., S/2, S/2]   read as [128, H, K]
                [128, H, K]      conv to 256 W / K, stride 2        [.., H/2, K/2]   read as [512, H/2, W/4]
                [512, H/2, W/4]  conv to 256, stride 2              [256, H/4, W/8]
                [256, H/4, W/8]  conv to 32                         [32, H/4, W/8]   read as [H, W]
                times scale [H, W] plus bias [H, W]
    classifier  [C, S, S] -> [10, S/2, S/2] -> [A]

In the decoder, only the first convolution depends on the size of the embedding. Element counts fit for every
H % 4 == 0 and W % 8 == 0 if K is even and divides 256 W: then H K is a multiple of 8, so that 512 H K / S^2 is whole up
to S = 64. The paper has E = 4096 and K = 2048, which gives 256 H and W / 8 outputs.
"""

# ruff: noqa: N803, N806 - names of tensors end in their axes

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, empty, nn
from torch.nn.functional import leaky_relu

import prepkit
from netspace.alignment import Alignment, Architectures
from netspace.space import fast
from netspace.space._start_scale import NEGATIVE_SLOPE, start_scale_and_bias

LEAST_EMBEDDING = 4**4
LARGEST_SIDE = 64  # longest side of the embedding's image; larger embeddings have more channels
PAPER_COLUMNS = 2048
CLASSIFIER_CHANNELS = 10


class InvalidNetSpace(prepkit.PrepkitError, ValueError):
    """A NetSpace cannot have these sizes, or cannot read this tensor."""


@dataclass(frozen=True)
class EmbeddingImage:
    """How convolutions see the E values of an embedding: as `channels` images of side `side`."""

    channels: int
    side: int

    @classmethod
    def of(cls, embedding_size: int) -> EmbeddingImage:
        """Return the image of an embedding of 4^k values; raises InvalidNetSpace for any other number."""
        _check_count("embedding_size", embedding_size, 1)
        below = 4 ** ((embedding_size.bit_length() - 1) // 2)  # the largest power of 4 that does not exceed it
        if below != embedding_size or embedding_size < LEAST_EMBEDDING:
            choices = f"{below} or {4 * below}" if below >= LEAST_EMBEDDING else str(LEAST_EMBEDDING)
            raise InvalidNetSpace(f"embedding_size {embedding_size} is not 4^k with k >= 4; use {choices}.")
        channels = max(1, embedding_size // LARGEST_SIDE**2)
        return cls(channels, math.isqrt(embedding_size // channels))

    @property
    def size(self) -> int:
        """E, the number of values."""
        return self.channels * self.side**2

    def view(self, latent_NE: Tensor) -> Tensor:
        """`[N, E]` -> `[N, channels, side, side]`; raises InvalidNetSpace for any other shape."""
        if latent_NE.dim() != 2 or latent_NE.shape[1] != self.size:
            raise InvalidNetSpace(
                f"embeddings of {list(latent_NE.shape)} cannot be read; this NetSpace has [N, {self.size}]."
            )
        return latent_NE.reshape(-1, self.channels, self.side, self.side)


def legal_columns(width: int) -> list[int]:
    """List the columns that the decoder's first reshape may have: the even divisors of 256 W, ascending."""
    total = 256 * width
    small = [divisor for divisor in range(1, math.isqrt(total) + 1) if total % divisor == 0]
    return sorted(columns for columns in {*small, *(total // divisor for divisor in small)} if columns % 2 == 0)


def default_columns(width: int) -> int:
    """Return W / 2, but at most the paper's 2048; both are legal for every W % 8 == 0.

    The first reshape holds 128 H K values for each instance, while the work of the next convolution does not depend on
    K: with 2048 columns, a step at 124 x 512 took longer than one at 8 x 10,000, which has more cells.
    """
    return min(PAPER_COLUMNS, width // 2)


def _checked_columns(columns: int | None, width: int) -> int:
    if columns is None:
        return default_columns(width)
    _check_count("columns", columns, 1)
    choices = legal_columns(width)
    if columns not in choices:
        near = [choice for choice in choices if choice < columns][-1:] + [c for c in choices if c > columns][:1]
        raise InvalidNetSpace(
            f"columns {columns} do not keep the element counts for a width of {width}: they must be even and divide "
            f"256 x {width} = {256 * width:,}; use {' or '.join(map(str, near))}, or leave them out."
        )
    return columns


class Encoder(nn.Module):
    """Turns PReps of any size into embeddings: first along the rows, then along the columns.

    embedding_size: E = 4^k, k >= 4
    The attribute `own_on_cpu` is False where a CPU shall run the plain network, whatever the size.
    """

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.own_on_cpu = True
        size = EmbeddingImage.of(embedding_size).size
        self.conv1 = nn.Conv2d(1, size // 32, (1, 3), stride=(1, 2), padding=(0, 1))
        self.conv2 = nn.Conv2d(size // 32, size // 16, (1, 3), stride=(1, 2), padding=(0, 1))
        self.conv3 = nn.Conv2d(size // 16, size // 8, (3, 1), padding=(1, 0))
        self.conv4 = nn.Conv2d(size // 8, size, (3, 1), padding=(1, 0))

    def row_features(self, preps_NHW: Tensor) -> Tensor:
        """Compute `[N, H, W]` -> `[N, E / 8, H, 1]`, which the last convolution reads."""
        features = leaky_relu(self.conv1(preps_NHW.unsqueeze(1)), NEGATIVE_SLOPE)
        features = leaky_relu(self.conv2(features), NEGATIVE_SLOPE)
        rows = features.max(dim=3, keepdim=True).values  # the gradient goes to one position, as in max-pooling
        return leaky_relu(self.conv3(rows), NEGATIVE_SLOPE)

    def forward(self, preps_NHW: Tensor) -> Tensor:
        """Encode `[N, H, W]` -> `[N, E]`, for any H and W."""
        if preps_NHW.dim() != 3 or 0 in preps_NHW.shape[1:]:
            raise InvalidNetSpace(f"PReps of {list(preps_NHW.shape)} cannot be encoded; give [N, H, W].")
        wanted = self.own_on_cpu or preps_NHW.device.type != "cpu"
        if wanted and fast.encodes(preps_NHW, self):
            return fast.encode(preps_NHW, (self.conv1, self.conv2, self.conv3, self.conv4))
        return self.plain(preps_NHW)

    def plain(self, preps_NHW: Tensor) -> Tensor:
        """Compute the same as `forward`, as the paper writes it; `forward` may use netspace/space/fast."""
        features = leaky_relu(self.conv4(self.row_features(preps_NHW)), NEGATIVE_SLOPE)
        latent_NE: Tensor = features.max(dim=2).values.squeeze(2)
        return latent_NE


class Decoder(nn.Module):
    """Turns embeddings into PReps of one size: depth is traded for space, then each element is scaled and shifted.

    height, width:  size of the PReps
    embedding_size: E = 4^k, k >= 4
    columns:        columns of the first reshape; `default_columns` if missing
    initialisation: how scale and bias start, "paper", "small_zoos" or "without_scale" (see start_scale.py)
    The attribute `own_on_cpu` is that of an Encoder; `third_as_product` is True where a GPU shall compute the third
    convolution as a matrix product (netspace.space.gpu_functions).
    """

    def __init__(
        self, height: int, width: int, embedding_size: int, columns: int | None = None, initialisation: str = "paper"
    ) -> None:
        super().__init__()
        self.own_on_cpu, self.third_as_product = True, False
        shape = prepkit.PRepShape(height, width)
        self.height, self.width = shape.height, shape.width
        self.image = EmbeddingImage.of(embedding_size)
        self.columns = _checked_columns(columns, width)
        outputs = 512 * height * self.columns // self.image.side**2
        self.conv1 = nn.Conv2d(self.image.channels, outputs, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(128, 256 * width // self.columns, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(512, 256, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(256, 32, 3, padding=1)
        self.scale = nn.Parameter(empty(height, width))
        self.bias = nn.Parameter(empty(height, width))
        start_scale_and_bias(self.scale, self.bias, initialisation)

    def forward(self, latent_NE: Tensor) -> Tensor:
        """Decode `[N, E]` -> `[N, H, W]`."""
        if self.own_on_cpu and fast.decodes(latent_NE, self, self.width, self.columns):
            convolutions = (self.conv1, self.conv2, self.conv3, self.conv4)
            cells_NHW = fast.decode(self.image.view(latent_NE), convolutions, self.height, self.width, self.columns)
            return cells_NHW * self.scale + self.bias
        if fast.decodes_channels_last(latent_NE, self, self.conv1.out_channels):
            convolutions = (self.conv1, self.conv2, self.conv3, self.conv4)
            image_NCSS, sizes = self.image.view(latent_NE), (self.height, self.width, self.columns)
            cells_NHW = fast.decode_channels_last(image_NCSS, convolutions, *sizes, self.third_as_product)
            return cells_NHW * self.scale + self.bias
        return self.plain(latent_NE)

    def plain(self, latent_NE: Tensor) -> Tensor:
        """Compute the same as `forward`, as the paper writes it; `forward` may use netspace/space/fast."""
        count, height, width = len(latent_NE), self.height, self.width
        features = leaky_relu(self.conv1(self.image.view(latent_NE)), NEGATIVE_SLOPE)
        features = features.reshape(count, 128, height, self.columns)
        features = leaky_relu(self.conv2(features), NEGATIVE_SLOPE)
        features = features.reshape(count, 512, height // 2, width // 4)
        features = leaky_relu(self.conv3(features), NEGATIVE_SLOPE)
        cells_NHW = self.conv4(features).reshape(count, height, width)
        preps_NHW: Tensor = cells_NHW * self.scale + self.bias
        return preps_NHW


class ClassIdClassifier(nn.Module):
    """Predicts ClassIds from embeddings: one convolution and one fully connected layer (supplementary I).

    num_architectures: A, at least 2
    """

    def __init__(self, embedding_size: int, num_architectures: int) -> None:
        super().__init__()
        _check_count("num_architectures", num_architectures, 2, " (for one architecture use None: no classifier)")
        self.image = EmbeddingImage.of(embedding_size)
        self.conv = nn.Conv2d(self.image.channels, CLASSIFIER_CHANNELS, 3, stride=2, padding=1)
        self.linear = nn.Linear(CLASSIFIER_CHANNELS * (self.image.side // 2) ** 2, num_architectures)

    def forward(self, latent_NE: Tensor) -> Tensor:
        """Classify `[N, E]` -> logits `[N, A]`."""
        features = leaky_relu(self.conv(self.image.view(latent_NE)), NEGATIVE_SLOPE)
        logits_NA: Tensor = self.linear(features.flatten(1))
        return logits_NA


class NetSpace(nn.Module):
    """An embedding space of networks: PReps in, PReps out.

    height, width:     size of the predicted PReps: height % 4 == 0, width % 8 == 0
    embedding_size:    E = 4^k, k >= 4; the paper's is 4096
    num_architectures: A; None in the single-architecture setting, which has no classifier
    columns:           columns of the decoder's first reshape; `default_columns` if missing
    initialisation:    how the decoder's scale and bias start: "paper", or "small_zoos" to learn at once on small zoos
    raises InvalidNetSpace for an embedding size, number of architectures or columns that cannot be,
           InitialisationError for an unknown initialisation, and what prepkit.PRepShape raises for height and width

    A space that was trained with the recipe's `align` has an `alignment`, and aligns PReps before it encodes them.

    >>> netspace = NetSpace(height=88, width=128, embedding_size=256, num_architectures=4)
    >>> latent_NE = netspace.encode(preps_NHW)      # [N, 256]
    >>> netspace.decode(latent_NE)                  # [N, 88, 128]
    >>> netspace.classify(latent_NE)                # logits [N, 4]
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        embedding_size: int,
        num_architectures: int | None = None,
        columns: int | None = None,
        initialisation: str = "paper",
    ) -> None:
        super().__init__()
        self.alignment: Alignment | None = None
        self.encoder = Encoder(embedding_size)
        self.decoder = Decoder(height, width, embedding_size, columns, initialisation)
        self.height, self.width = height, width
        self.embedding_size, self.columns = embedding_size, self.decoder.columns
        self.num_architectures = num_architectures
        self.classifier = None if num_architectures is None else ClassIdClassifier(embedding_size, num_architectures)

    def align(self, preps_NHW: Tensor, architectures: Architectures = None) -> Tensor:
        """Put hidden units into the order of the space's references, if it has some; else return the PReps as they are.

        architectures: the name of each instance's architecture, or one for all; needed where there are several
        raises AlignmentError for an architecture of which no instance was trained on
        """
        return preps_NHW if self.alignment is None else self.alignment(preps_NHW, architectures)

    def encode(self, preps_NHW: Tensor, architectures: Architectures = None) -> Tensor:
        """Encode PReps `[N, H, W]`, which may have another size than the predicted ones, to embeddings `[N, E]`.

        architectures: names, for a space that aligns PReps first; see `align`. What is aligned already can be given to
                       `encoder`
        """
        latent_NE: Tensor = self.encoder(self.align(preps_NHW, architectures))
        return latent_NE

    def decode(self, latent_NE: Tensor) -> Tensor:
        """Decode embeddings `[N, E]` to predicted PReps `[N, H, W]`."""
        preps_NHW: Tensor = self.decoder(latent_NE)
        return preps_NHW

    def classify(self, latent_NE: Tensor) -> Tensor:
        """Compute logits `[N, A]` of the ClassIds of embeddings `[N, E]`.

        raises InvalidNetSpace in the single-architecture setting
        """
        if self.classifier is None:
            raise InvalidNetSpace(
                "this NetSpace has no ClassId classifier, for it was built for a single architecture; "
                "build it with num_architectures=A."
            )
        logits_NA: Tensor = self.classifier(latent_NE)
        return logits_NA


def _check_count(name: str, value: int, least: int, remedy: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidNetSpace(f"{name} must be a whole number, not {value!r}.")
    if value < least:
        raise InvalidNetSpace(f"{name} {value} is too small; use at least {least}{remedy}.")
