"""ResNet with bottlenecks, version 1: `hk.nets` in evaluation, a Linen one of functools.partial"""

from functools import partial
from typing import Any

import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import numpy as np

BLOCKS, WIDTHS, CLASSES = (1, 2, 1, 1), (16, 16, 32, 32), 5


def source():
    def forward(images, is_training):
        net = hk.nets.ResNet(
            BLOCKS, CLASSES, {"decay_rate": 0.9, "eps": 1e-5, "create_scale": True, "create_offset": True},
            bottleneck=True, channels_per_group=WIDTHS,
        )  # fmt: skip
        return net(images, is_training)

    return hk.transform_with_state(forward)


class Bottleneck(nn.Module):
    filters: int
    norm: Any
    strides: tuple[int, int] = (1, 1)
    project: bool = False

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, use_bias=False)
        y = nn.relu(self.norm()(conv(self.filters // 4, (1, 1))(x)))
        y = nn.relu(self.norm()(conv(self.filters // 4, (3, 3), self.strides)(y)))
        y = self.norm(name="norm_last")(conv(self.filters, (1, 1))(y))
        if self.project:
            x = self.norm(name="norm_proj")(conv(self.filters, (1, 1), self.strides, name="conv_proj")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False, name="conv_init")(images)
        x = nn.relu(norm(name="bn_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, (blocks, filters) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            for j in range(blocks):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = Bottleneck(filters, norm, strides, project=j == 0)(x)
        return nn.Dense(CLASSES)(jnp.mean(x, axis=(1, 2)))


def target():
    return ResNet()


def inputs():
    return (np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32),)


def norm(s, src, dst):
    made = {
        f"params/{dst}/{a}": s[f"params/{src}/{b}"].reshape(-1) for a, b in (("scale", "scale"), ("bias", "offset"))
    }
    for name in ("mean", "var"):
        made[f"batch_stats/{dst}/{name}"] = s[f"state/{src}/~/{name}_ema/average"].reshape(-1)
    return made


def truth(s):
    made = {
        "params/conv_init/kernel": s["params/res_net/~/initial_conv/w"],
        **norm(s, "res_net/~/initial_batchnorm", "bn_init"),
        "params/Dense_0/kernel": s["params/res_net/~/logits/w"],
        "params/Dense_0/bias": s["params/res_net/~/logits/b"],
    }
    blocks = [(group, block) for group, blocks in enumerate(BLOCKS) for block in range(blocks)]
    for n, (group, block) in enumerate(blocks):
        old, new = f"res_net/~/block_group_{group}/~/block_{block}/~", f"Bottleneck_{n}"
        for i, name in enumerate(("BatchNorm_0", "BatchNorm_1", "norm_last")):
            made[f"params/{new}/Conv_{i}/kernel"] = s[f"params/{old}/conv_{i}/w"]
            made |= norm(s, f"{old}/batchnorm_{i}", f"{new}/{name}")
        if block == 0:
            made[f"params/{new}/conv_proj/kernel"] = s[f"params/{old}/shortcut_conv/w"]
            made |= norm(s, f"{old}/shortcut_batchnorm", f"{new}/norm_proj")
    return made
