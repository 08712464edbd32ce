"""Small Linen models with the structures that the public ones have, and variables of which every number is random."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import AxisMetadata
from flax.linen import partitioning

from tests.arrays import inputs as inputs
from tests.arrays import same as same


def randomised(variables: Any, seed: int = 0) -> Any:
    """Returns the tree with every float leaf random, never the zeros and ones of an initialiser; integers are 0.

    The leaves may be abstract, so that nothing needs to be compiled to get variables.
    """
    rng = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(one, variables)


def variables_of(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Returns variables of a model with every number random."""
    return randomised(jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs)))


class MLP(nn.Module):
    sizes: tuple[int, ...] = (8, 8, 3)

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


class ConvNet(nn.Module):
    """BatchNorm and dropout under a train flag, as most public models have them."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x).mean((1, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x)


class Block(nn.Module):
    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x, train: bool):
        norm = lambda: nn.BatchNorm(use_running_average=not train, momentum=0.9)  # noqa: E731
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(norm()(y))
        y = norm()(nn.Conv(self.features, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(self.features, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = Block(4)(x, train)
        x = Block(8, 2)(x, train)
        return nn.Dense(3)(x.mean((1, 2)))


class Layer(nn.Module):
    heads: int = 2

    @nn.compact
    def __call__(self, x, train: bool):
        h = nn.LayerNorm()(x)
        h = nn.MultiHeadDotProductAttention(self.heads, dropout_rate=0.1, deterministic=not train)(h)
        x = x + h
        h = nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x))))
        return x + nn.Dropout(0.1, deterministic=not train)(h)


class Transformer(nn.Module):
    vocabulary: int = 11
    size: int = 8
    depth: int = 2

    @nn.compact
    def __call__(self, tokens, train: bool = False):
        embed = nn.Embed(self.vocabulary, self.size)
        x = embed(tokens)
        for _ in range(self.depth):
            x = Layer()(x, train)
        return embed.attend(nn.LayerNorm()(x))


class Sower(nn.Module):
    """Sows with the default tuple, twice by one shared layer, and a loss that is summed up."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(x.shape[-1])
        for _ in range(2):
            x = nn.relu(dense(x))
            self.sow("intermediates", "h", x)
            self.sow("losses", "l2", (x**2).mean(), init_fn=lambda: 0.0, reduce_fn=lambda a, b: a + b)
        return x


class AutoEncoder(nn.Module):
    """Setup style, several methods, each with layers of its own."""

    def setup(self):
        self.encoder = nn.Dense(2)
        self.decoder = nn.Dense(4)

    def encode(self, x):
        return nn.tanh(self.encoder(x))

    def decode(self, z):
        return self.decoder(z)

    def __call__(self, x):
        return self.decode(self.encode(x))


class ByMutability(nn.Module):
    """Decides train or evaluation by whether batch_stats may be modified, as some public models do."""

    @nn.compact
    def __call__(self, x):
        train = self.is_mutable_collection("batch_stats")
        return nn.BatchNorm(use_running_average=not train)(x)


class ReservedNames(nn.Module):
    """Submodules called like things that frameworks have."""

    def setup(self):
        for name in NAMES:
            setattr(self, name, nn.Dense(3))

    def __call__(self, x):
        for name in NAMES:
            x = getattr(self, name)(x)
        return x


NAMES = ("train", "eval", "sow", "rngs", "module", "perturb", "params", "get", "put", "state", "method", "variable")


class TwoCollections(nn.Module):
    """One leaf name in two collections."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.normal(), (x.shape[-1],))
        seen = self.variable("stats", "w", jnp.zeros, (x.shape[-1],))
        if not self.is_initializing():
            seen.value = seen.value + x.sum(0)
        return x * w + seen.value


class Partitioned(nn.Module):
    box: Any = nn.with_partitioning

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, kernel_init=self.box(nn.initializers.lecun_normal(), ("in", "out")))(x)


class T5X(nn.Module):
    """Sows `AxisMetadata` leaves into `params_axes`, beside the arrays."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        kernel = partitioning.param_with_axes("kernel", init, (x.shape[-1], 4), axes=("embed", "mlp"))
        return x @ kernel


class TupleCache(nn.Module):
    """A mutated collection whose variables are a tuple, and a dictionary with integer keys."""

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.ones, (3,))
        cell = self.variable("memory", "cell", lambda: (jnp.zeros(3), {0: jnp.zeros(()), 10: jnp.ones(3)}))
        if not self.is_initializing():
            a, b = cell.value
            cell.value = (a + x.sum(0) * w, {0: b[0] + 1.0, 10: b[10] * 2.0})
        return x * w + cell.value[0]


class Lora(nn.Module):
    """`nn.share_scope`: the adapter's parameters lie beside those of the layer that it wraps."""

    rank: int = 2

    def setup(self):
        self.base = nn.Dense(4)
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x):
        a = self.param("a", nn.initializers.normal(), (x.shape[-1], self.rank))
        b = self.param("b", nn.initializers.normal(), (self.rank, 4))
        return self.base(x) + x @ a @ b


class Stacked(nn.Module):
    """Layers stacked on axis 1 by nn.scan, under remat."""

    axis: int = 1

    @nn.compact
    def __call__(self, x):
        def body(module, x):
            return nn.relu(module(x)), None

        layers = nn.scan(
            nn.remat(body), variable_axes={"params": self.axis}, split_rngs={"params": True}, length=3
        )  # fmt: skip
        return layers(nn.Dense(x.shape[-1], name="layer"), x)[0]


class AuxiliaryHead(nn.Module):
    """Has parameters that only training uses."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        if train:
            return nn.Dense(2, name="main")(x), nn.Dense(2, name="aux")(x)
        return nn.Dense(2, name="main")(x)


class Decoder(nn.Module):
    """An autoregressive cache: made with the whole sequence, then called a token at a time."""

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2, decode=True)(x, mask=None)


class CustomBox(AxisMetadata):
    """Metadata of a user's own, not even a dataclass."""

    def __init__(self, value: Any, note: str):
        self.value, self.note = value, note

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return CustomBox(val, self.note)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


jax.tree_util.register_pytree_node(
    CustomBox, lambda box: ((box.value,), box.note), lambda note, values: CustomBox(values[0], note)
)
