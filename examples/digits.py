"""Leaves dm-haiku in the middle of a training run, and shows that nothing was lost on the way.

A small convolutional network with BatchNorm and dropout learns to read handwritten digits (scikit-learn's 1797 scans) in
Haiku, and is pickled as `(params, state, opt_state)`. Three runs go on from that file, on the same batches with the same
dropout masks:

- Haiku: the run that never switched.
- Linen: a mapping (digits.toml) converts weights, BatchNorm's statistics and Adam's moments to Flax Linen.
- core: a `bridges.Module` hosts the Haiku network unchanged beside its optimizer; the checkpoint drops in as it is.

The three loss curves have to be one. Two more runs say what that means in numbers: Haiku with every weight moved to the
next float32, and Linen with a new optimizer in place of the converted one. `make demo` runs all this and leaves a picture
in demo-output/digits.png; the program fails if anything that it says at its end is not so.
"""

import dataclasses
import pathlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import numpy as np
import optax
from digits_report import FORGOTTEN, NUDGED, Check, difference, draw, number
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import bridges as br
from bridges import haiku_adapter, linen_adapter

MAPPING = pathlib.Path(__file__).with_suffix(".toml")
STEPS, SWITCH, BATCH = 352, 176, 64
DROPOUT, DECAY = 0.25, 0.9
OPTIMIZER = optax.adamw(optax.cosine_decay_schedule(1e-3, STEPS), weight_decay=1e-3)
TOLERANCE = 1e-5  # relative: float32 keeps seven digits, and the compiler may add up in another order

# The network, in both frameworks. A key is given for training only; the same key drops the same activations in both.


def network(x, key=None):
    """Returns the logits [batch, 10] of images [batch, 8, 8, 1], in Haiku."""
    for channels, stride in ((16, 1), (32, 2)):
        x = hk.Conv2D(channels, 3, stride, with_bias=False)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, DECAY)(x, is_training=key is not None))
    x = jax.nn.relu(hk.Linear(64)(hk.Flatten()(x)))
    x = x if key is None else hk.dropout(key, DROPOUT, x)
    return hk.Linear(10)(x)


class Network(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x, key=None):
        for channels, stride in ((16, 1), (32, 2)):
            x = nn.Conv(channels, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=key is None, momentum=DECAY)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        x = nn.Dropout(DROPOUT, deterministic=key is None)(x, rng=key)
        return nn.Dense(10)(x)


# Training, as one writes it in Haiku, in Linen and in the core.

haiku_net = hk.transform_with_state(network)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def haiku_loss(params, state, x, labels, key):
    logits, state = haiku_net.apply(params, state, None, x, key)
    return cross_entropy(logits, labels), state


def linen_loss(params, state, x, labels, key):
    logits, new = Network().apply({"params": params, "batch_stats": state}, x, key, mutable="batch_stats")
    return cross_entropy(logits, labels), new["batch_stats"]


def step_with(loss_fn):
    """Returns the compiled training step `(params, state, opt_state), *batch -> (params, state, opt_state), loss`."""

    @jax.jit
    def step(now, *batch):
        params, state, opt_state = now
        (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, state, *batch)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    return step


class Trainer(br.Module):
    """The Haiku network and its optimizer as parts of the core: flat state, which any method may read and write."""

    def __init__(self):
        self.net = br.HaikuModule(network)
        self.opt = br.OptaxModule(OPTIMIZER)

    def loss(self, x, labels, key):
        return cross_entropy(self.net(x, key), labels)

    def train(self, x, labels, key):
        return self.opt(self.net, self.loss, x, labels, key)["loss"]

    def load(self, variables, opt_state):
        self.net.put(variables)
        self.opt.load(opt_state)


trainer = Trainer()
haiku_step, linen_step, core_step = step_with(haiku_loss), step_with(linen_loss), jax.jit(br.pure(trainer.train))
haiku_grad, linen_grad = (jax.jit(jax.grad(loss_fn, has_aux=True)) for loss_fn in (haiku_loss, linen_loss))


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run; `now` is all that one step hands to the next."""

    title: str
    now: Any
    step: Callable[..., Any]  # now, *batch -> now, loss
    logits: Callable[..., Any]  # now, images -> [batch, 10]
    entries: Callable[..., br.State]  # now -> the variables, by their paths in Haiku

    def train(self, batches):
        """Returns the run after the batches, and the loss of each."""
        now, losses = self.now, []
        for batch in tqdm(batches, f"{self.title:22}", disable=None):
            now, loss = self.step(now, *batch)
            losses.append(loss)
        return dataclasses.replace(self, now=now), np.array(jax.device_get(losses))

    def accuracy(self, images, labels):
        """Returns the share of the images that are read rightly."""
        return float(np.mean(np.argmax(self.logits(self.now, images), 1) == labels))


def load_data(steps):
    """Returns batches `(images [64, 8, 8, 1], labels [64], dropout key)`, and the test images and labels (360)."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    epoch, order, keys = len(x) // BATCH, np.random.default_rng(0), jax.random.split(jax.random.key(1), steps)
    rows = [i for _ in range(0, steps, epoch) for i in order.permutation(len(x))[: epoch * BATCH].reshape(epoch, BATCH)]
    return [(x[i], y[i], key) for i, key in zip(rows, keys, strict=False)], (x_test, y_test)


# The switch. A checkpoint is Haiku's `(params, state, opt_state)`.


def run_in_haiku(checkpoint):
    """Returns the run that stays."""
    logits = jax.jit(lambda now, x: haiku_net.apply(*now[:2], None, x)[0])
    return Run("Haiku", checkpoint, haiku_step, logits, lambda now: haiku_adapter.flatten(*now[:2]))


def plan_for_linen(x, labels, key):
    """Returns the plan from the one network to the other: every array, decided before one is read."""
    src, dst = haiku_adapter.spec(network, x, key), linen_adapter.spec(Network(), x, key)
    return br.Mapping.load(MAPPING).plan(src, dst)


def run_in_linen(checkpoint, plan):
    """Returns the run that goes on in Linen, from variables and optimizer state that the plan converts."""
    params, state, opt_state = checkpoint
    variables = linen_adapter.unflatten(plan.forward(haiku_adapter.flatten(params, state)))
    now = variables["params"], variables["batch_stats"], plan.optimizer(opt_state, params, variables["params"])

    def native(now):
        return {"params": now[0], "batch_stats": now[1]}

    logits = jax.jit(lambda now, x: Network().apply(native(now), x))
    return Run("Linen", now, linen_step, logits, lambda now: plan.inverse(linen_adapter.flatten(native(now))))


def run_in_core(checkpoint, batch):
    """Returns the run that goes on in the core, from the checkpoint as it is, put below the path of the network."""
    params, state, opt_state = checkpoint
    variables, path = haiku_adapter.flatten(params, state), trainer.net.path
    spec = jax.eval_shape(lambda: br.init(trainer.train)({}, *batch, seed=0)).filter(path)
    plan = br.Mapping.of(rules=[{"src": "{entry:path}", "dst": f"{path}/{{entry:path}}"}]).plan(variables, spec)
    opt_state = plan.optimizer(opt_state, params, spec.filter(br.Param))
    now, _ = br.pure(trainer.load)({}, plan.forward(variables), opt_state, create=True)
    logits = jax.jit(lambda now, x: br.pure(trainer.net)(now, x)[1])
    return Run("core", now, core_step, logits, lambda now: plan.inverse(now.filter(path)))


# What is checked.


def check_switch(haiku, run, batch, images):
    """Returns checks that a run computes what the one in Haiku does, now and one training step later."""
    kept = br.PathMatches("params/.*|.*/average")  # what both have: BatchNorm in Linen keeps no counter and no raw sums
    both = (run, haiku)
    now = [r.entries(r.now).filter(kept) for r in both]
    later = [r.entries(r.step(r.now, *batch)[0]).filter(kept) for r in both]
    logits = [r.logits(r.now, images) for r in both]
    misread = np.sum(np.argmax(logits[0], 1) != np.argmax(logits[1], 1))
    return [
        Check(f"{run.title}: weights and statistics, carried back, are off by", difference(*now), 0),
        Check(f"{run.title}: the same one training step later are off by", difference(*later), TOLERANCE),
        Check(f"{run.title}: logits of the test images are off by", difference(*logits), TOLERANCE),
        Check(f"{run.title}: test images that are read otherwise", float(misread), 0),
    ]


def check_gradient(haiku, linen, plan, batch):
    """Returns the check that the gradients of one batch agree; the plan converts them as it does weights."""
    found, _ = linen_grad(*linen.now[:2], *batch)
    wanted, _ = haiku_grad(*haiku.now[:2], *batch)
    wanted = plan.forward(haiku_adapter.flatten(wanted, haiku.now[1])).filter("params")
    off = difference(linen_adapter.flatten({"params": found}), wanted)
    return Check("Linen: gradient of the next batch is off by", off, TOLERANCE)


def check_batch_norm(haiku):
    """Returns the check that BatchNorm can go on exactly in Linen, which has no bias correction.

    Haiku divides its raw sums by 1 - decay ** steps. At a decay of 0.9 that is 1 in float32 from step 165 on; a switch
    before that is exact for evaluation only, and the running statistics differ for a while.
    """
    raw, corrected = (haiku.entries(haiku.now).filter(br.PathMatches(f".*/{leaf}")) for leaf in ("hidden", "average"))
    return Check("Haiku: BatchNorm's bias correction (Linen has none) still does", difference(raw, corrected), 0)


def check_curves(off):
    """Returns checks that a run's losses are off from those of the run that never switched by rounding only."""
    allowed = 10 * off[NUDGED]
    return [
        Check("Linen: loss, at the worst step after the switch, is off by", off["Linen"], allowed),
        Check("core: loss, at the worst step after the switch, is off by", off["core"], allowed),
        Check("What is allowed here, as a share of what a new optimizer does", allowed / off[FORGOTTEN], 0.01),
    ]


def main(output="demo-output", steps=STEPS, switch=SWITCH):
    """Runs everything and returns the program's exit status: 0 if every check holds."""
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    batches, test = load_data(steps)

    print("\nTrain a convolutional network on handwritten digits in Haiku")
    params, state = jax.jit(haiku_net.init)(jax.random.key(0), batches[0][0], batches[0][2])
    trained, first = run_in_haiku((params, state, OPTIMIZER.init(params))).train(batches[:switch])
    print(f"  {switch} steps: loss {first[0]:.2f} -> {first[-1]:.2f}, test accuracy {trained.accuracy(*test):.1%}")

    file = output / "digits-haiku.pkl"
    file.write_bytes(pickle.dumps(jax.device_get(trained.now)))
    checkpoint = pickle.loads(file.read_bytes())
    print(
        f"\nPickle (params, state, opt_state)\n  {file}, {file.stat().st_size:,} bytes; all that follows starts from it"
    )

    print("\nPlan the way to Linen, before anything is converted\n")
    plan = plan_for_linen(*batches[0])
    print(plan)

    print("\nConvert the checkpoint to Linen, put it into the core as it is, and compare both with Haiku")
    haiku, linen, core = run_in_haiku(checkpoint), run_in_linen(checkpoint, plan), run_in_core(checkpoint, batches[0])
    checks = [check for run in (linen, core) for check in check_switch(haiku, run, batches[switch], test[0])]
    checks += [check_gradient(haiku, linen, plan, batches[switch]), check_batch_norm(haiku)]
    print(*checks, sep="\n")
    print(f"  {number(TOLERANCE)} is relative: float32 keeps seven digits, and sums may be taken in another order.")

    print("\nGo on training, on the same batches with the same dropout masks")
    nudged = jax.tree.map(lambda w: np.nextafter(w, np.float32(np.inf)), checkpoint[0])
    nudged = dataclasses.replace(haiku, title=NUDGED, now=(nudged, *checkpoint[1:]))
    forgotten = dataclasses.replace(linen, title=FORGOTTEN, now=(*linen.now[:2], OPTIMIZER.init(linen.now[0])))
    losses, accuracy = {}, {}
    for run in (haiku, linen, core, nudged, forgotten):
        end, losses[run.title] = run.train(batches[switch:])
        accuracy[run.title] = end.accuracy(*test)
    draw(first, losses, output / "digits.png")

    print("\nWhat was proved")
    off = {title: float(np.max(np.abs(loss - losses["Haiku"]))) for title, loss in losses.items()}
    checks += check_curves(off)
    print(*checks[-3:], sep="\n")
    if failed := [check for check in checks if not check.holds]:
        print("\nNOT proved, because of", *failed, sep="\n")
        return 1
    in_linen, in_core, rounding, anew = (number(off[title]) for title in ("Linen", "core", NUDGED, FORGOTTEN))
    print(f"""
  The run left Haiku after {switch} steps and lost nothing. Through {steps - switch} more its loss was that of the run that
  never switched, to within {in_linen} in Linen and {in_core} in the core. Each weight moved to the next float32 does
  {rounding}, an optimizer begun anew {anew}. In the end {accuracy["Haiku"]:.1%} of the test images are read rightly
  in Haiku, {accuracy["Linen"]:.1%} in Linen, {accuracy["core"]:.1%} in the core.

  The loss curves: {output / "digits.png"}""")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
