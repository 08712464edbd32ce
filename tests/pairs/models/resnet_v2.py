"""ResNet, version 2 (norms first): an NNX one, `hk.nets` in evaluation"""

from functools import partial

import haiku as hk
import jax.numpy as jnp
import numpy as np
from flax import nnx

BLOCKS, WIDTHS, CLASSES = (2, 1, 1, 1), (8, 8, 16, 16), 8
FREE = ("state/*/hidden", "state/*/counter")


class PreAct(nnx.Module):
    def __init__(self, n_in, n_out, stride, shortcut, rngs):
        norm = partial(nnx.BatchNorm, use_running_average=True, momentum=0.9, rngs=rngs)
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv2 = conv(n_out, n_out, (3, 3))
        self.conv1 = conv(n_in, n_out, (3, 3), strides=stride)
        self.bn1, self.bn2 = norm(n_in), norm(n_out)
        self.downsample = conv(n_in, n_out, (1, 1), strides=stride) if shortcut else None

    def __call__(self, x):
        h = nnx.relu(self.bn1(x))
        skip = x if self.downsample is None else self.downsample(h)
        h = self.conv1(h)
        h = self.conv2(nnx.relu(self.bn2(h)))
        return skip + h


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 64, (7, 7), strides=2, use_bias=False, rngs=rngs)
        self.stages = nnx.List([])
        n_in = 64
        for i, (blocks, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            stage = []
            for j in range(blocks):
                stage.append(PreAct(n_in, width, 2 if i and not j else 1, j == 0, rngs))
                n_in = width
            self.stages.append(nnx.List(stage))
        self.norm = nnx.BatchNorm(n_in, use_running_average=True, momentum=0.9, rngs=rngs)
        self.fc = nnx.Linear(n_in, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = nnx.max_pool(self.stem(images), (3, 3), strides=(2, 2), padding="SAME")
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.fc(jnp.mean(nnx.relu(self.norm(x)), (1, 2)))


def source():
    return lambda: ResNet(nnx.Rngs(0))


def target():
    def forward(images, is_training):
        net = hk.nets.ResNet(
            BLOCKS, CLASSES, {"decay_rate": 0.9}, resnet_v2=True, bottleneck=False, channels_per_group=WIDTHS,
            use_projection=(True,) * 4,
        )  # fmt: skip
        return net(images, is_training)

    train, test = (hk.transform_with_state(partial(forward, is_training=flag)) for flag in (True, False))
    return hk.TransformedWithState(train.init, test.apply)


def inputs():
    return (np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32),)


def norm(s, src, dst):
    made = {f"params/{dst}/{a}": s[f"params/{src}/{b}"] for a, b in (("scale", "scale"), ("offset", "bias"))}
    for name in ("mean", "var"):
        ema = f"state/{dst}/~/{name}_ema"
        made[f"{ema}/average"] = made[f"{ema}/hidden"] = s[f"batch_stats/{src}/{name}"]
    made = {p: x.reshape(1, 1, 1, -1) for p, x in made.items()}
    return made | {f"state/{dst}/~/{name}_ema/counter": np.array(2**30, np.int32) for name in ("mean", "var")}


def truth(s):
    made = {
        "params/res_net/~/initial_conv/w": s["params/stem/kernel"],
        **norm(s, "norm", "res_net/~/final_batchnorm"),
        "params/res_net/~/logits/w": s["params/fc/kernel"],
        "params/res_net/~/logits/b": s["params/fc/bias"],
    }
    for i, blocks in enumerate(BLOCKS):
        for j in range(blocks):
            new, old = f"res_net/~/block_group_{i}/~/block_{j}/~", f"stages/{i}/{j}"
            for k in (0, 1):
                made[f"params/{new}/conv_{k}/w"] = s[f"params/{old}/conv{k + 1}/kernel"]
                made |= norm(s, f"{old}/bn{k + 1}", f"{new}/batchnorm_{k}")
            if j == 0:
                made[f"params/{new}/shortcut_conv/w"] = s[f"params/{old}/downsample/kernel"]
    return made
