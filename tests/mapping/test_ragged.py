"""Ragged and nested stacks, ensembles, modules under remat; what is placed, what is said in lines, what is refused."""

import dataclasses
import functools

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bridges import State, haiku_adapter, linen_adapter
from bridges.core._errors import MappingError, UnsupportedError
from bridges.core._spec import Layer, Spec, Stack
from bridges.param_mapping import Mapping, conventions
from tests.mapping.stacks import X, in_haiku, in_linen, in_nnx, randomised

WIDTH = 3


def haiku_block(x):
    return x + hk.Linear(WIDTH, name="d")(jnp.tanh(x))


class HaikuBlock(hk.Module):
    def __call__(self, x):
        return haiku_block(x)


def haiku_5_and_1(x):
    x = hk.experimental.layer_stack(5, name="scan")(haiku_block)(x)
    return hk.Linear(2, name="head")(HaikuBlock(name="last")(x))


class Block(nn.Module):
    bias: bool = True
    width: int = WIDTH

    @nn.compact
    def __call__(self, x, _=None):
        return x + nn.Dense(self.width, use_bias=self.bias, name="d")(jnp.tanh(x)), None


class Listed(nn.Module):
    count: int = 6
    odd: int = -1

    @nn.compact
    def __call__(self, x):
        for i in range(self.count):
            x, _ = Block(i != self.odd)(x)
        return nn.Dense(2, name="head")(x)


class Scanned(nn.Module):
    lengths: tuple = (6,)
    axis: int = 1
    first: int = 0

    @nn.compact
    def __call__(self, x):
        if self.first:
            x = nn.Dense(WIDTH, name="first")(x[..., : self.first])
        for length in self.lengths:
            scanned = nn.scan(Block, variable_axes={"params": self.axis}, split_rngs={"params": True}, length=length)
            x, _ = scanned()(x, None)
        return nn.Dense(2, name="head")(x)


class InARow(nn.Module):
    """An odd layer first, then five alike, numbered on."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH)(x[..., :2])
        for _ in range(5):
            x = x + nn.Dense(WIDTH)(jnp.tanh(x))
        return nn.Dense(2, name="head")(x)


FORMS = {
    "5 + 1": lambda: in_haiku(haiku_5_and_1),
    "6": lambda: in_linen(Listed()),
    "stack": lambda: in_linen(Scanned()),
    "3 + 3": lambda: in_linen(Scanned((3, 3), 0)),
    "2 + 4": lambda: in_linen(Scanned((2, 4))),
    "first, 6": lambda: in_linen(InARow()),
    "first, stack": lambda: in_linen(Scanned((5,), 1, 2)),
}
form = functools.cache(lambda name: FORMS[name]())


def plan_of(src, dst, **modules):
    mapping = Mapping.of(modules=modules.get("lines", {})) | conventions(src.framework, dst.framework)
    return mapping.plan(src.spec, dst.spec)


def check(src, dst, plan, x=X):
    """The outputs are those of the source, and the way back is exact."""
    state = randomised(src.spec, 1)
    new = plan.forward(state)
    assert plan.verdict == "exact"
    back = plan.inverse(new)
    assert all(np.array_equal(back[path], value) for path, value in state.items())
    np.testing.assert_allclose(src.run(state, x), dst.run(new, x), rtol=1e-5, atol=1e-5)  # sums in another order
    return state, new


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("5 + 1", "6"),
        ("stack", "5 + 1"),
        ("3 + 3", "6"),
        ("6", "3 + 3"),
        ("3 + 3", "stack"),
        ("stack", "2 + 4"),
        ("2 + 4", "3 + 3"),
    ]
    + [("first, 6", "first, stack"), ("first, stack", "first, 6")],
)
def test_numbers_and_odd_shapes_place_ragged_stacks(src, dst):
    check(form(src), form(dst), plan_of(form(src), form(dst)))


IN_LINES = [
    ("5 + 1", "6", {"scan/[{i:int}]": "Block_{i:int}", "last": "Block_5"}),
    ("6", "5 + 1", {"Block_{i:int}": "scan/[{i:int}]", "Block_5": "last"}),
    ("5 + 1", "stack", {"scan/[{i:int}]": "ScanBlock_0/[{i:int}]", "last": "ScanBlock_0/[5]"}),
    # the odd one first: neither end has the order of the other
    ("stack", "5 + 1", {"ScanBlock_0/[{i+1:int}]": "scan/[{i:int}]", "ScanBlock_0/[0]": "last"}),
    (
        "5 + 1",
        "3 + 3",
        {
            "scan/[{i:int}]": "ScanBlock_0/[{i:int}]",
            "scan/[{i+3:int}]": "ScanBlock_1/[{i:int}]",
            "last": "ScanBlock_1/[2]",
        },
    ),
    ("6", "stack", {"Block_{i:int}": "ScanBlock_0/[:,{i:int}]"}),
]


@pytest.mark.parametrize(("src", "dst", "lines"), IN_LINES, ids=[f"{s} to {d}" for s, d, _ in IN_LINES])
def test_lines_join_ragged_stacks(src, dst, lines):
    plan = plan_of(form(src), form(dst), lines=lines)
    state = randomised(form(src).spec, 1)
    new = plan.forward(state)
    back = plan.inverse(new)
    assert plan.verdict == "exact"
    assert all(np.array_equal(back[path], value) for path, value in state.items())
    if "ScanBlock_0/[0]" in lines:  # another order of layers is another function
        assert np.array_equal(new["params/scan/d/w"][0], state["params/ScanBlock_0/d/kernel"][:, 1])
        assert np.array_equal(new["params/last/d/w"], state["params/ScanBlock_0/d/kernel"][:, 0])
    else:
        check(form(src), form(dst), plan)


def test_optimizer_state_goes_through_ragged_stacks():
    src, dst = form("5 + 1"), form("stack")
    plan = plan_of(src, dst, lines={"scan/[{i:int}]": "ScanBlock_0/[{i:int}]", "last": "ScanBlock_0/[5]"})
    params = State(randomised(src.spec, 1))
    tx = optax.adam(1e-2)
    _, opt_state = tx.update(State(randomised(src.spec, 2)), tx.init(params), params)
    new = plan.optimizer(opt_state, params, plan.forward(params))
    assert all(np.array_equal(new[0].mu[path], x) for path, x in plan.forward(opt_state[0].mu).items())
    assert all(np.array_equal(new[0].nu[path], x) for path, x in plan.forward(opt_state[0].nu).items())


def test_native_trees_of_a_stack_go_into_native_trees_of_listed_layers():
    src, dst = form("5 + 1"), form("6")
    plan = plan_of(src, dst)
    state = State(randomised(src.spec, 1))
    params, _ = haiku_adapter.unflatten(state)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-2, b1=0.9))
    _, opt_state = tx.update(params, tx.init(params), params)
    target = linen_adapter.unflatten(plan.forward(state), dst.spec.native)["params"]
    new = plan.optimizer(opt_state, params, target)
    assert jax.tree.structure(new) == jax.tree.structure(tx.init(target))
    np.testing.assert_array_equal(new[1][0].mu["Block_4"]["d"]["kernel"], opt_state[1][0].mu["scan/d"]["w"][4])


def test_factored_moments_of_a_stack_that_is_unrolled_are_refused_by_name():
    src, dst = form("stack"), form("6")
    plan, params = plan_of(src, dst), State(randomised(src.spec, 1))
    tx = optax.adafactor(1e-2, min_dim_size_to_factor=2)
    with pytest.raises(UnsupportedError, match=r"params/ScanBlock_0/d/kernel.*means over whole leaves"):
        plan.optimizer(tx.init(params), params, plan.forward(params))


# Ensembles and nested stacks --------------------------------------------------------------------------------------------


def haiku_member(x):
    x = hk.experimental.layer_stack(3, name="blocks")(haiku_block)(x)
    return hk.Linear(2, name="out")(x)


def haiku_ensemble(x):
    member = hk.transform(haiku_member)
    init = hk.lift(jax.vmap(member.init, in_axes=(0, None)), name="ens")
    params = init(hk.next_rng_keys(4) if hk.running_init() else None, x)
    return jax.vmap(member.apply, in_axes=(0, None, None))(params, None, x)


class HaikuMember(hk.Module):
    def __call__(self, x):
        for _ in range(3):
            x = HaikuBlock(name="block")(x)
        return hk.Linear(2, name="out")(x)


def haiku_members(x):
    return jnp.stack([HaikuMember(name="member")(x) for _ in range(4)])


class Member(nn.Module):
    @nn.compact
    def __call__(self, x):
        scanned = nn.scan(Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)
        return nn.Dense(2, name="out")(scanned()(x, None)[0])


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": -1}, "split_rngs": {"params": True}, "in_axes": None, "axis_size": 4}
        return nn.vmap(Member, **axes)()(x)


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.d = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + self.d(jnp.tanh(x))


class NNXMember(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(NNXBlock))(rngs)
        self.out = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.scan(lambda x, b: b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks))


class NNXEnsemble(nnx.Module):
    def __init__(self, rngs):
        self.members = nnx.split_rngs(splits=4)(nnx.vmap(NNXMember))(rngs)

    def __call__(self, x):
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x)


ENSEMBLES = {
    "haiku": lambda: in_haiku(haiku_ensemble),
    "haiku list": lambda: in_haiku(haiku_members),
    "linen": lambda: in_linen(Ensemble()),
    "nnx": lambda: in_nnx(NNXEnsemble),
}
ensemble = functools.cache(lambda name: ENSEMBLES[name]())


@pytest.mark.parametrize(
    ("src", "dst"),
    [("haiku", "linen"), ("linen", "nnx"), ("nnx", "haiku list"), ("haiku list", "linen"), ("linen", "haiku list")],
)
def test_ensembles_of_scanned_layers(src, dst):
    check(ensemble(src), ensemble(dst), plan_of(ensemble(src), ensemble(dst)))


def test_specs_record_stacks_with_their_axes():
    stacks = {name: ensemble(name).spec.stacks for name in ENSEMBLES}
    sizes = {name: {m: [s.size for s in found] for m, found in end.items()} for name, end in stacks.items()}
    assert sizes["haiku"] == {"ens": [4], "ens/blocks": [3]}
    assert sizes["linen"] == {"VmapMember_0": [4], "VmapMember_0/ScanBlock_0": [3]}
    assert sizes["nnx"] == {"members": [4], "members/blocks": [3]}
    assert stacks["haiku list"] == {}
    assert stacks["linen"]["VmapMember_0"][0].axes == {"params": -1}
    assert stacks["linen"]["VmapMember_0/ScanBlock_0"][0].axes == {"params": 1}


class Reads(nn.Module):
    """Reads a variable past Linen's boxes."""

    @nn.compact
    def __call__(self, x, _=None):
        nn.Dense(WIDTH, name="q")(x)
        return x @ self.get_variable("params", "q")["kernel"], None


class Parts(nn.Module):
    length: int = 4

    @nn.compact
    def __call__(self, x):
        scan = {"variable_axes": {"params": 1}, "split_rngs": {"params": True}, "length": self.length}
        x, _ = nn.scan(Reads, **scan)(name="reads")(x, None)
        dense = nn.Dense(WIDTH, name="fn")
        return nn.scan(lambda module, x, _: (module(x), None), **scan)(dense, x, None)[0]


def test_linen_models_that_read_past_boxes_tell_by_shapes_and_only_without_a_doubt():
    stacks = in_linen(Parts()).spec.stacks
    assert {m: [(s.size, dict(s.axes)) for s in found] for m, found in stacks.items()} == {
        "reads": [(4, {"params": 1})],
        "fn": [(4, {"params": 1})],
    }
    assert in_linen(Parts(WIDTH)).spec.stacks == {}  # axis 0 would fit as well


class Twice(nn.Module):
    """Both stacks at one path."""

    @nn.compact
    def __call__(self, x):
        scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        axes = {"variable_axes": {"params": 1}, "split_rngs": {"params": True}, "in_axes": (None, None), "axis_size": 3}
        return nn.vmap(scanned, **axes)(name="both")(x, None)[0]


def test_two_stacks_at_one_path():
    spec = in_linen(Twice()).spec
    assert [(s.size, dict(s.axes)) for s in spec.stacks["both"]] == [(3, {"params": 1}), (3, {"params": 0})]
    wanted = {
        f"params/member_{e}/block_{i}/d/{leaf}": np.zeros((3, 3)[: 2 - (leaf == "bias")], np.float32)
        for e in range(3)
        for i in range(3)
        for leaf in ("kernel", "bias")
    }
    plan = Mapping.of(modules={"both/[{e:int}]/[{i:int}]/d": "member_{e:int}/block_{i:int}/d"}).plan(spec, wanted)
    kernel = randomised(spec, 1)
    new = plan.forward(kernel)
    # outermost along axis 1, then the scan along axis 0 of what is left
    assert np.array_equal(new["params/member_2/block_1/d/kernel"], kernel["params/both/d/kernel"][:, 2][1])


# Arrays only ------------------------------------------------------------------------------------------------------------


def arrays(form):
    return State(randomised(form.spec, 1))


def test_lines_say_what_arrays_alone_do_not():
    src, dst = form("stack"), form("6")
    mapping = Mapping.of(modules={"ScanBlock_0/[:,{i:int}]": "Block_{i:int}"}) | conventions("linen", "linen")
    plan = mapping.plan(arrays(src), dst.spec)
    wanted = plan_of(src, dst).forward(arrays(src))
    assert all(np.array_equal(x, wanted[path]) for path, x in plan.forward(arrays(src)).items())
    back = mapping.inverse.plan(dst.spec, arrays(src)).inverse(arrays(src))
    assert all(np.array_equal(back[path], x) for path, x in plan.forward(arrays(src)).items())


def test_haiku_s_automatic_name_says_it_without_a_spec():
    src = in_haiku(lambda x: hk.Linear(2, name="head")(hk.experimental.layer_stack(6)(haiku_block)(x)))
    plan = conventions("haiku", "linen").plan(arrays(src), form("6").spec)
    np.testing.assert_allclose(
        src.run(arrays(src), X), form("6").run(plan.forward(arrays(src)), X), rtol=1e-5, atol=1e-6
    )


# Errors -----------------------------------------------------------------------------------------------------------------

WRONG = {
    "as many, but no name tells the order": (
        "5 + 1",
        "6",
        {},
        "'scan/[{i:int}]' = 'Block_{i:int}' and 'last' = 'Block_5'",
    ),
    "two to one": (
        "6",
        "5 + 1",
        {"Block_{i:int}": "scan/[{i:int}]", "Block_{i+5:int}": "scan/[{i:int}]"},
        "sends both 'Block_0' and 'Block_5' to 'scan/[0]'",
    ),
    "another axis than the model's": (
        "stack",
        "6",
        {"ScanBlock_0/[:,:,{i:int}]": "Block_{i:int}"},
        "along axis 2; the model has them along 1 in params",
    ),
    "unstacked at one end, in a line": (
        "6",
        "stack",
        {"Block_{i:int}": "ScanBlock_0"},
        "write its index: 'ScanBlock_0/[{i:int}]'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_asked_for_names_the_line_to_write(name):
    src, dst, lines, text = WRONG[name]
    unordered = dataclasses.replace(form(src).spec, called=(), uses={})  # the order of calls would tell
    with pytest.raises(MappingError) as err:
        plan_of(dataclasses.replace(form(src), spec=unordered), form(dst), lines=lines)
    assert text in str(err.value) and "for 5 more copies" not in str(err.value)


def test_the_number_of_copies_must_agree():
    with pytest.raises(MappingError, match=r"They are 6 and 5\."):
        plan_of(form("stack"), in_linen(Listed(5)))
    with pytest.raises(MappingError, match=r"'params/ScanBlock_0/\[5\]/d/kernel' float32\[3,3\] has no rule"):
        plan_of(form("stack"), in_linen(Listed(5)), lines={"ScanBlock_0/[{i:int}]": "Block_{i:int}"})


def test_the_odd_layer_is_named():
    with pytest.raises(MappingError, match="'Block_3' is not like the others: d/bias is missing"):
        plan_of(form("stack"), in_linen(Listed(6, odd=3)))


def test_arrays_that_are_no_stack():
    src = {"params/s/a/w": np.ones((4, 3, 3)), "params/s/a/b": np.ones((5, 3))}
    dst = {
        f"params/m_{i}/{leaf}": np.ones((3, 3)[: 2 - (leaf == "bias")]) for i in range(4) for leaf in ("kernel", "bias")
    }
    mapping = Mapping.of(modules={"s/[{i:int}]/a": "m_{i:int}"}) | conventions("haiku", "linen")
    with pytest.raises(MappingError, match=r"'s' cannot be a stack along axis 0: .* has 5 copies there, .* has 4"):
        mapping.plan(src, dst)


def test_running_statistics_that_all_layers_share_have_no_unrolled_form():
    entries = {
        "params/s/n/scale": (3, 2),
        "params/s/n/bias": (3, 2),
        "batch_stats/s/n/mean": (2,),
        "batch_stats/s/n/var": (2,),
    }
    layers = {"s/n": Layer("linen.BatchNorm", {})}
    abstract = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in entries.items()}
    src = Spec(State(abstract), "linen", layers, None, {"s": (Stack(3, {"params": 0}),)})
    wanted = {f"{path.replace('/s/', f'/m_{i}/')}": np.ones(2, np.float32) for path in entries for i in range(3)}
    with pytest.raises(MappingError, match="batch_stats/s/n/mean"):
        conventions("linen", "linen").plan(src, wanted)


# remat and jit ----------------------------------------------------------------------------------------------------------


def test_modules_under_remat_and_jit_are_the_layers_that_they_wrap():
    def net(first, block):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = first(4)(x)
                for _ in range(11):
                    x, _ = block(width=4)(x)
                return x

        return in_linen(Net())

    def haiku(x):
        x = hk.remat(hk.Linear(4))(x)
        for _ in range(11):
            x = hk.remat(lambda x: x + hk.Linear(4, name="d")(jnp.tanh(x)))(x)
        return x

    lifted, plain = net(nn.jit(nn.Dense), nn.remat(Block)), net(nn.Dense, Block)
    assert "params/CheckpointBlock_10/d/kernel" in lifted.spec.entries
    check(lifted, plain, plan_of(lifted, plain))
    state, new = check(in_haiku(haiku), lifted, plan_of(in_haiku(haiku), lifted))
    assert np.array_equal(new["params/CheckpointBlock_9/d/kernel"], state["params/d_9/w"])
