"""For Ninjax users."""

import jax
import jax.numpy as jnp
import ninjax as nj
import optax
from _proof import Proof, randomised, show
from flax import nnx as flax_nnx
from in_core import ninjax_users as core
from in_haiku import ninjax_users as haiku
from in_linen import ninjax_users as linen
from in_ninjax import ninjax_users as ninjax
from in_nnx import ninjax_users as nnx

import bridges as br
from bridges import haiku_adapter, linen_adapter, nnx_adapter

xs = jax.random.normal(jax.random.key(1), (4, 5, 8))
labels = jnp.arange(4)

# region load
in_ninjax = jax.eval_shape(ninjax.create, 0)  # a plain dictionary, as a checkpoint is
in_core = jax.eval_shape(core.create, 0)

names = br.Mapping.loads("""
[[rules]]  # Haiku parts have their collection in the path, as Linen parts do
src = "trainer/model/encoder/{p:path}"
dst = "trainer/model/encoder/params/{p:path}"

[[rules]]
src = "trainer/opt/0/{moment}/trainer/model/encoder/{p:path}"
dst = "trainer/opt/state/0/{moment}/trainer/model/encoder/params/{p:path}"
optional = true
""") | br.Mapping.loads("""
[[rules]]
src = "trainer/opt/{p:path}"
dst = "trainer/opt/state/{p:path}"
optional = true  # a checkpoint without optimizer will do

[[rules]]  # all else keeps its name
src = "trainer/model/{p:path}"
dst = "trainer/model/{p:path}"
""")
load = names.plan(in_ninjax, in_core)
# endregion

# region plans
weights = br.State(in_ninjax).filter("trainer/model")
to_core = names.plan(weights, in_core.filter("trainer/model"))

in_haiku = haiku_adapter.spec(haiku.model, xs, training=True)
to_haiku = br.Mapping.loads("""
[[rules]]
src = "trainer/model/cell/{leaf}"
dst = "params/cell/{leaf}"

[[rules]]
src = "trainer/model/encoder/linear/{leaf}"
dst = "params/encoder/{leaf}"

[[rules]]
src = "trainer/model/head/params/kernel"
dst = "params/head/w"

[[rules]]
src = "trainer/model/head/params/bias"
dst = "params/head/b"

[[rules]]
src = "trainer/model/scale/square"
dst = "state/scale/square"
""").plan(weights, in_haiku)

own = br.Mapping.of(modules={"cell": "cell", "scale": "scale"})  # what no convention can know
in_linen = linen_adapter.spec(linen.model, xs, training=True)
to_linen = (own | br.conventions("haiku", "linen")).plan(in_haiku, in_linen)
in_nnx = nnx_adapter.spec(lambda: nnx.create(0))
to_nnx = (own | br.conventions("haiku", "nnx")).plan(in_haiku, in_nnx)
# endregion


# region calls
class Theirs(nj.Module):
    units: int = 2

    def __call__(self):
        self.write("a", self.value("a", jnp.ones, self.units) + 1)
        assert self.values.keys() >= {"a"}
        tree = self.sub("tree", nj.Tree, lambda: {"x": [jnp.ones(2), jnp.zeros(3)]})
        three = self.sub("three", nj.Variable, jnp.zeros, 3)
        keys = nj.seed(4)
        return self.read("a"), tree.read(), three.read(), keys.shape[0], nj.creating(), [*nj.context()]


class Ours(br.Module):
    units: int = 2

    def __call__(self):
        self.put("a", self.get("a", jnp.ones, self.units) + 1)
        assert self.getm().keys() >= {f"{self.path}/a"}  # names in full; `put` takes both
        tree = self.get("tree", lambda: {"x": [jnp.ones(2), jnp.zeros(3)]})
        three = self.get("three/value", jnp.zeros, 3)
        keys = jax.random.split(br.rng(), 4)
        return self.get("a"), tree, three, keys.shape[0], br.context().create, [*br.state()]


def control(lib, x):
    """The control flow has one form in both."""
    x = lib.cond(x > 0, lambda x: x + 1, lambda x: x - 1, x)
    x = lib.while_loop(lambda x: x < 10, lambda x: 2 * x, x)
    return lib.checkpoint(lambda x: x * x)(x)


def check_calls(proof):
    state, out = nj.pure(Theirs(units=2, name="net"))({}, seed=0, create=True)
    ours, also = br.pure(Ours(units=2, name="net"))({}, seed=0, create=True)
    assert state.keys() == ours.keys() == {"net/a", "net/tree/x/0", "net/tree/x/1", "net/three/value"}
    assert sorted(out[-1]) == sorted(also[-1]) and out[3:5] == also[3:5] == (4, True)
    proof.equal("calls", [state, out[:3]], [dict(ours), also[:3]], column="core", allowed=0.0)
    three = jnp.float32(3)
    found = [jax.jit(lib.pure(lambda x, lib=lib: control(lib, x)))({}, three)[1] for lib in (nj, br)]
    proof.equal("control flow", *found, column="core", allowed=0.0)


# endregion


# region seeds
def check_seeds():
    ours, theirs = br.pure(br.rng)({}, seed=0)[1], nj.pure(nj.seed)({}, seed=0)[1]
    assert theirs.dtype == jnp.uint32 and jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key)
    assert (jax.random.key_data(ours) != theirs).any()  # one integer, two keys
    old = jax.random.PRNGKey(0)
    assert br.pure(br.rng)({}, seed=old)[1].dtype == jnp.uint32  # a raw key stays one


# endregion


def error(fn, *args, **kwargs):
    """Returns what a call raises; it is traced, not run."""
    try:
        jax.eval_shape(lambda: fn(*args, **kwargs))
    except Exception as err:
        return err
    raise AssertionError("nothing was raised")


# region traces
def traced(lib, depth, seed=0):
    """How often the innermost body of nested scans is traced."""
    seen = []

    def body(depth, x):
        if not depth:
            seen.append(x)
            return x + 1
        return lib.scan(lambda x, _: (body(depth - 1, x), None), x, jnp.zeros(2))[0]

    run = lib.pure(lambda x: body(depth, x))
    jax.eval_shape(lambda x: run({}, x, seed=seed), jnp.zeros(()))
    return len(seen)


def check_traces():
    assert [traced(nj, depth) for depth in (1, 2, 3, 4)] == [2, 4, 8, 16]
    assert [traced(br, depth) for depth in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert isinstance(error(traced, nj, 2, seed=None), TypeError)  # a scan within a scan asks for a seed
    traced(br, 2, seed=None)


# endregion


# region errors
class NinjaxCount(nj.Module):
    def add(self, amount):
        count = self.value("count", jnp.zeros, (), jnp.int32)
        self.write("count", count + amount)


class Count(br.Module):
    def add(self, amount):
        count = self.get("count", jnp.zeros, (), jnp.int32)
        self.put("count", count + amount)


def check_errors(theirs, ours):
    """What each says of a state that does not fit; `theirs` and `ours` are whole states."""
    path, arguments = "trainer/model/head/params/kernel", {"xs": xs, "training": False}
    extra = "trainer/model/head/params/old"
    run = nj.pure(ninjax.trainer.model)
    lacking = {key: value for key, value in theirs.items() if key != path}
    for state in (lacking, theirs | {extra: theirs[path]}):
        err = error(run, state, **arguments, seed=0)
        assert isinstance(err, AssertionError) and not err.args  # it says nothing
    run = br.pure(core.trainer.model)
    lacking = {key: value for key, value in ours.items() if key != path}
    err = error(run, lacking, **arguments)
    assert isinstance(err, br.MissingEntryError) and path in str(err)
    err = error(run, ours | {extra: ours[path]}, **arguments)
    assert isinstance(err, br.StructureError) and extra in str(err)

    # A wrapper that is new, over a state that is there.
    state = {"dense/params/kernel": jnp.ones((8, 3)), "dense/params/bias": jnp.ones(3)}
    assert "seed" in str(error(nj.pure(ninjax.Dense(3, name="dense")), state, xs))
    br.pure(core.Dense(3, name="dense"))(state, xs)
    assert "seed" in str(error(nj.pure(ninjax.trainer.model), theirs, **arguments))  # a Haiku part, at every call

    # A number that the entry cannot hold.
    state, _ = nj.pure(NinjaxCount(name="n").add)({"n/count": jnp.int32(0)}, 1.5)
    assert state["n/count"] == 1
    err = error(br.pure(Count(name="n").add), {"n/count": jnp.int32(0)}, 1.5)
    assert isinstance(err, br.EntryShapeError) and "n/count" in str(err)

    # Optimizers that look at the parameters.
    adamw, keys = nj.FromOptax(optax.adamw)(1e-2, name="adamw"), ["trainer/model/cell"]
    run = nj.pure(lambda: adamw(ninjax.trainer.loss, keys, xs, labels))
    assert "not passing `params`" in str(error(run, theirs, seed=0, create=True))
    adamw = br.FromOptax(optax.adamw)(1e-2, name="adamw")
    run = br.pure(lambda: adamw(keys, core.trainer.loss, xs, labels))
    jax.eval_shape(lambda: run(ours, create=True))

    # Haiku modules with submodules.
    mlp = nj.FromHaiku(haiku.hk.nets.MLP)([4, 2], name="mlp")
    assert "Name cannot be empty" in str(error(nj.init(mlp), {}, xs, seed=0))
    mlp = br.FromHaiku(haiku.hk.nets.MLP)([4, 2], name="mlp")
    assert "mlp/params/mlp/~/linear_0/w" in jax.eval_shape(lambda: br.init(mlp)({}, xs, seed=0))


# endregion


# region gradients
def check_gradients(theirs, ours):
    """A module as the target: all of its entries there, its parameters here. `theirs` and `ours` are whole states."""
    trainer = ninjax.trainer
    grad = nj.pure(lambda: nj.grad(trainer.loss, [trainer.model])(xs, labels)[2])
    _, grads = jax.eval_shape(lambda: grad(theirs, seed=0))
    assert "trainer/model/scale/square" in grads
    grad = br.pure(core.trainer.gradients)
    _, grads = jax.eval_shape(lambda: grad(ours, xs, labels))
    assert "trainer/model/scale/square" not in grads and len(grads) == 7


# endregion


# region check
def prove(proof: Proof) -> None:
    check_calls(proof)
    check_seeds()
    check_traces()

    theirs = randomised(in_ninjax) | {"trainer/opt/0/count": jnp.int32(0)}
    for path, value in theirs.items():
        theirs[path] = abs(value) if "/nu/" in path or path.endswith("square") else value
    for _ in range(3):
        theirs, _ = ninjax.train_step(theirs, xs, labels, seed=0)

    ours = load.forward(theirs)  # weights, statistics, and Adam's moments
    proof.equal("the whole state, and back", theirs, load.inverse(ours), column="core", allowed=0.0)
    check_errors(theirs, ours)
    check_gradients(theirs, ours)
    _, wanted = jax.jit(nj.pure(ninjax.trainer.gradients))(theirs, xs, labels, seed=0)
    wanted = {path.replace("encoder/", "encoder/params/"): value for path, value in wanted.items()}
    proof.equal("gradients", wanted, br.jit(core.trainer.gradients)(ours, xs, labels)[1], column="core")
    for _ in range(3):
        theirs, wanted = ninjax.train_step(theirs, xs, labels, seed=0)
        ours, loss = core.train_step(ours, xs, labels)
        proof.equal("loss", wanted, loss, column="core")
    proof.equal("the whole state after three steps", load.forward(theirs), ours, column="core")

    entries = br.State(theirs, {"trainer/model/scale/square": br.BatchStat}).filter("trainer/model")
    square = br.pure(core.trainer.model)(ours, xs, training=True)[0]["trainer/model/scale/square"]
    in_haiku = to_haiku.forward(entries)
    _, new = haiku.model.apply(*haiku_adapter.unflatten(in_haiku), xs, training=True)
    proof.equal("statistics", square, new["scale"]["square"], column="haiku")
    variables = linen_adapter.unflatten(to_linen.forward(in_haiku))
    _, new = linen.model.apply(variables, xs, training=True, mutable=["batch_stats"])
    proof.equal("statistics", square, new["batch_stats"]["scale"]["square"], column="linen")
    model = flax_nnx.eval_shape(lambda: nnx.create(0))
    flax_nnx.update(model, nnx_adapter.unflatten(to_nnx.forward(in_haiku), model))
    model(xs, training=True)
    proof.equal("statistics", square, model.scale.square[...], column="nnx")

    proof.start("ninjax", entries, lambda e: ninjax.predict(dict(e), xs))
    proof.moved("core", to_core, lambda e: core.predict(e, xs))
    proof.moved("haiku", to_haiku, lambda e: haiku.predict(*haiku_adapter.unflatten(e), xs))
    proof.moved("linen", to_linen, lambda e: linen.predict(linen_adapter.unflatten(e), xs), after="haiku")
    proof.moved("nnx", to_nnx, lambda e: nnx_adapter.apply(model, e, xs, training=False)[0], after="haiku")


# endregion


if __name__ == "__main__":
    show(prove, "ninjax_users", __doc__)
