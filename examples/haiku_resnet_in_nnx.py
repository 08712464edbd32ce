"""A Haiku ResNet in an NNX training loop: trained, saved with Orbax, restored strictly, trained on to the same losses.

    python examples/haiku_resnet_in_nnx.py [--steps 3] [FOLDER]

The network stays what it was, `hk.nets.ResNet`; `bridges.ToNNX` makes an NNX module of it. Its BatchNorm statistics are
`nnx.BatchStat` Variables, updated by every call, and `nnx.Optimizer` steps the `nnx.Param` ones. The checkpoint is restored
into a module that `nnx.eval_shape` made, so that no initialiser runs.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from typing import Any

import haiku as hk
import jax
import optax
import orbax.checkpoint as ocp
from flax import nnx

import bridges as br
import converters
from bridges import nnx_adapter

CLASSES = 3


def resnet(images: jax.Array, is_training: bool = True) -> jax.Array:
    """Returns the logits of a narrow ResNet with basic blocks, as ResNet-18 has them; [batch, 3]."""
    net = hk.nets.ResNet(
        (1, 1, 1, 1),
        CLASSES,
        bottleneck=False,
        channels_per_group=(4, 8, 8, 8),
        use_projection=(False, True, True, True),
        initial_conv_config={"output_channels": 4},
    )
    return net(images, is_training=is_training)


@nnx.jit
def new(images: jax.Array) -> tuple[Any, nnx.Optimizer[Any]]:
    """Returns the network as an NNX module, and its optimizer; compiled, as that is quicker than one operation at a time."""
    model = br.ToNNX(resnet, rngs=nnx.Rngs(0)).lazy_init(images)
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


@nnx.jit
def train_step(model: Any, optimizer: nnx.Optimizer[Any], images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the loss; statistics, parameters and optimizer are updated."""

    def loss_fn(model: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def batches(steps: int) -> list[tuple[jax.Array, jax.Array]]:
    """Returns so many batches of eight images, of which the brightness gives the label."""
    made = []
    for key in jax.random.split(jax.random.key(1), steps):
        labels = jax.random.randint(key, (8,), 0, CLASSES)
        made.append((jax.random.normal(key, (8, 32, 32, 3)) + labels[:, None, None, None], labels))
    return made


def save(model: Any, optimizer: Any, folder: pathlib.Path) -> None:
    """Writes model and optimizer with Orbax."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, nnx.state({"model": model, "optimizer": optimizer}))


def restore(folder: pathlib.Path, images: jax.Array) -> tuple[Any, Any]:
    """Returns model and optimizer of a checkpoint; what is missing, unknown or misshapen in it is an error."""
    graphdef, like = nnx.split(nnx.eval_shape(lambda: dict(zip(("model", "optimizer"), new(images), strict=True))))
    both = nnx.merge(graphdef, nnx_adapter.restore(converters.load(folder), like))
    return both["model"], both["optimizer"]


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Returns the losses and the modules, and prints what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="for the checkpoint; a temporary one if not given")
    parser.add_argument("--steps", type=int, default=3, help="before the checkpoint, and after it")
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as temporary:
        return _run((given.folder or pathlib.Path(temporary)).resolve() / "checkpoint", given.steps)


def _run(folder: pathlib.Path, steps: int) -> dict[str, Any]:
    data = batches(2 * steps)
    model, optimizer = new(data[0][0])
    params, stats = (jax.tree.leaves(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat))
    print(f"hk.nets.ResNet as an NNX module: {len(params)} parameters, {len(stats)} statistics")
    before = [float(train_step(model, optimizer, *batch)) for batch in data[:steps]]
    print(f"trained {steps} steps with nnx.Optimizer: {' '.join(f'{loss:.4f}' for loss in before)}")
    save(model, optimizer, folder)
    restored = restore(folder, data[0][0])
    print(f"saved with Orbax, restored into a module of nnx.eval_shape: step {int(restored[1].step[...])}")
    after = [float(train_step(model, optimizer, *batch)) for batch in data[steps:]]
    again = [float(train_step(*restored, *batch)) for batch in data[steps:]]
    print(f"went on with the first:    {' '.join(f'{loss:.4f}' for loss in after)}")
    print(f"went on with the restored: {' '.join(f'{loss:.4f}' for loss in again)}")
    print("bit for bit the same" if after == again else "NOT the same")
    return {"before": before, "after": after, "again": again, "model": model, "restored": restored[0], "folder": folder}


if __name__ == "__main__":
    losses = main()
    raise SystemExit(losses["after"] != losses["again"])
