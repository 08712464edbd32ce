"""ResNet-50's blocks, one a group and narrow, for what costs too much with all of them."""

import functools

import haiku as hk
import jax

from tests.models import resnet

COUNTS, WIDTH = (1, 1, 1, 1), 4


def haiku(x, train):
    first = {"output_channels": WIDTH}
    widths = [4 * WIDTH * 2**i for i in range(4)]
    net = hk.nets.ResNet(COUNTS, 3, channels_per_group=widths, initial_conv_config=first)
    return net(x, is_training=train)


Linen = functools.partial(resnet.Linen, COUNTS, WIDTH)
NNX = functools.partial(resnet.NNX, counts=COUNTS, width=WIDTH)


def inputs():
    return (jax.random.normal(jax.random.key(0), (4, 64, 64, 3)),)


LINES: dict = {}
