"""Whole models: placed by the plan with nothing said, or with a few lines under [modules]; outputs equal, cycles exact."""

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from bridges import haiku_adapter, linen_adapter
from bridges.core._state import State
from bridges.param_mapping import Mapping, conventions
from tests.light import light

NORM = {"create_scale": True, "create_offset": True, "decay_rate": 0.9}


class Block(nn.Module):
    """hk.nets.ResNet's BlockV1, bottleneck or not."""

    width: int
    stride: int
    bottleneck: bool
    project: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        def norm(name: str) -> Any:
            return nn.BatchNorm(use_running_average=True, momentum=0.9, name=name)

        short = x
        if self.project:
            strides = (self.stride, self.stride)
            short = nn.Conv(self.width, (1, 1), strides, use_bias=False, name="shortcut_conv")(short)
            short = norm("shortcut_batchnorm")(short)
        inner = self.width // 4 if self.bottleneck else self.width
        shapes = [(inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1)]
        if not self.bottleneck:
            shapes = [(inner, 3, self.stride), (inner, 3, 1)]
        for i, (width, kernel, stride) in enumerate(shapes):
            conv = nn.Conv(width, (kernel,) * 2, (stride,) * 2, use_bias=False, name=f"conv_{i}")
            x = norm(f"batchnorm_{i}")(conv(x))
            x = jax.nn.relu(x) if i < len(shapes) - 1 else x
        return jax.nn.relu(x + short)


class ResNet(nn.Module):
    """hk.nets.ResNet, v1, with its own names for blocks."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(64, (7, 7), (2, 2), use_bias=False, name="stem")(x)
        x = jax.nn.relu(nn.BatchNorm(use_running_average=True, momentum=0.9, name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for group, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for i in range(count):
                stride = 2 if group and not i else 1
                project = not i and (self.bottleneck or group > 0)
                x = Block(width, stride, self.bottleneck, project, name=f"stage{group}_{i}")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def check_resnet(make, blocks, widths, bottleneck):
    def net(x, train):
        return make()(x, train)

    x = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    module = ResNet(blocks, widths, bottleneck)
    src, dst = haiku_adapter.spec(net, x, True), linen_adapter.spec(module, x)
    name = next(m for m, layer in src.layers.items() if layer.type.startswith("haiku.ResNet"))
    lines = {
        f"{name}/~/block_group_{{i:int}}/~/block_{{k:int}}/~/{{m}}": "stage{i:int}_{k:int}/{m}",
        f"{name}/~/initial_conv": "stem",
        f"{name}/~/initial_batchnorm": "stem_norm",
        f"{name}/~/logits": "head",
    }
    plan = (Mapping.of(modules=lines) | conventions("haiku", "linen")).plan(src, dst)
    assert plan.verdict == "exact for evaluation only" and len(plan.reasons) == 1
    rng = np.random.default_rng(1)
    old = State(
        {
            p: np.asarray(rng.uniform(0.5, 1, v.shape) * (1 if "ema" in p else rng.choice([-1, 1], v.shape)), v.dtype)
            / (v.shape[0] * v.shape[1] * v.shape[2] if p.endswith("/w") and len(v.shape) == 4 else 1)
            if v.dtype == np.float32
            else np.full(v.shape, 3, v.dtype)
            for p, v in src.entries.items()
        },
        src.entries.declared,
    )
    old = State({p: v.astype(src.entries[p].dtype) for p, v in old.items()}, src.entries.declared)
    params, state = haiku_adapter.unflatten(old)
    native = hk.transform_with_state(net)
    wanted, _ = light(lambda params, state: native.apply(params, state, None, x, False))(params, state)
    new = plan.forward(old)
    got = light(module.apply)(linen_adapter.unflatten(new, dst.native), x)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert np.ptp(wanted) > 1e-3
    back = plan.inverse(new)  # all that evaluation reads is there again, bit for bit
    read = [p for p in old if not p.endswith(("hidden", "counter"))]
    assert len(read) > 50 and all(np.array_equal(back[p], old[p]) for p in read)


def test_resnet18():
    check_resnet(lambda: hk.nets.ResNet18(5), (2, 2, 2, 2), (64, 128, 256, 512), False)


def test_resnet_of_bottlenecks():
    """ResNet50's blocks, fewer and narrower."""
    widths = (16, 32, 64, 128)
    check_resnet(
        lambda: hk.nets.ResNet((1, 2, 1, 1), 5, bottleneck=True, channels_per_group=widths, use_projection=(True,) * 4),
        (1, 2, 1, 1),
        widths,
        True,
    )


def test_tied_embeddings_are_one_entry():
    """A table that is read twice, as input and as output weights."""

    def net(tokens):
        table = hk.Embed(11, 6)
        return jnp.tanh(hk.Linear(6)(table(tokens))) @ table.embeddings.T

    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            table = nn.Embed(11, 6)
            return table.attend(jnp.tanh(nn.Dense(6)(table(tokens))))

    tokens = np.array([[1, 2, 10], [3, 0, 4]])
    src, dst = haiku_adapter.spec(net, tokens), linen_adapter.spec(Net(), tokens)
    plan = conventions("haiku", "linen").plan(src, dst)
    assert plan.verdict == "exact" and len(plan) == 3
    rng = np.random.default_rng(0)
    old = State({p: rng.normal(size=v.shape).astype(v.dtype) for p, v in src.entries.items()}, src.entries.declared)
    wanted = hk.transform(net).apply(haiku_adapter.unflatten(old)[0], None, tokens)
    got = Net().apply(linen_adapter.unflatten(plan.forward(old), dst.native), tokens)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
