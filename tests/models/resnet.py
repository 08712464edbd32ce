"""hk.nets.ResNet50 itself, and ResNet-50 as it is written in Linen and in NNX."""

from functools import partial

import flax.linen as nn
import haiku as hk
import jax
from flax import nnx

COUNTS, CLASSES = (3, 4, 6, 3), 3


def haiku(x, train):
    return hk.nets.ResNet50(CLASSES)(x, is_training=train)


class Bottleneck(nn.Module):
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        y = nn.relu(norm()(conv(self.width, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.width, (3, 3), (self.stride, self.stride))(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = norm(name="norm_proj")(conv(4 * self.width, (1, 1), (self.stride, self.stride), name="conv_proj")(x))
        return nn.relu(x + y)


class Linen(nn.Module):
    counts: tuple = COUNTS
    width: int = 64

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (7, 7), (2, 2), use_bias=False, name="conv_init")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="bn_init")(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), "SAME")
        for i, count in enumerate(self.counts):
            for j in range(count):
                x = Bottleneck(self.width * 2**i, 2 if i and not j else 1)(x, train)
        return nn.Dense(CLASSES)(x.mean((1, 2)))


class Block(nnx.Module):
    def __init__(self, channels, width, stride, rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.conv1, self.bn1 = conv(channels, width, (1, 1)), norm(width)
        self.conv2, self.bn2 = conv(width, width, (3, 3), (stride, stride)), norm(width)
        self.conv3, self.bn3 = conv(width, 4 * width, (1, 1)), norm(4 * width)
        project = nnx.Sequential(conv(channels, 4 * width, (1, 1), (stride, stride)), norm(4 * width))
        self.downsample = project if channels != 4 * width else None

    def __call__(self, x):
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + (x if self.downsample is None else self.downsample(x)))


class NNX(nnx.Module):
    def __init__(self, rngs, counts=COUNTS, width=64):
        self.conv1 = nnx.Conv(3, width, (7, 7), (2, 2), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)
        blocks, channels = [], width
        for i, count in enumerate(counts):
            for j in range(count):
                blocks.append(Block(channels, width * 2**i, 2 if i and not j else 1, rngs))
                channels = 4 * width * 2**i
        self.layers = nnx.List(blocks)
        self.fc = nnx.Linear(channels, CLASSES, rngs=rngs)

    def __call__(self, x, train):
        self.train() if train else self.eval()
        x = nnx.max_pool(nnx.relu(self.bn1(self.conv1(x))), (3, 3), (2, 2), "SAME")
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean((1, 2)))


def inputs(size=32):
    return (jax.random.normal(jax.random.key(0), (2, size, size, 3)),)


HAIKU_TO_LINEN = {
    f"res_net50/~/block_group_{group}/~/block_{{i:int}}": f"Bottleneck_{{i+{sum(COUNTS[:group])}:int}}"
    for group in range(4)
}
NNX_TO_HAIKU = {
    f"layers/{{i+{sum(COUNTS[:group])}:int}}": f"res_net50/~/block_group_{group}/~/block_{{i:int}}"
    for group in range(4)
}
LINES = {("haiku", "linen"): HAIKU_TO_LINEN, ("nnx", "haiku"): NNX_TO_HAIKU}
