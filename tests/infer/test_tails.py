"""What becomes of a value later tells queries from keys, where asked."""

import jax.numpy as jnp
import numpy as np

from bridges._infer._graph import Graph
from bridges._infer._tails import Tails


def test_the_operands_of_a_product_are_told_apart_where_asked():
    def attend(variables, inputs):
        q, k = (jnp.tanh(inputs["x"] @ variables[name]) for name in ("q", "k"))
        return q @ k.T

    leaf = np.ones((4, 4), np.float32)
    graph = Graph(attend, {"q": leaf, "k": leaf}, {"x": leaf}, 0)
    q, k = (step.outs[0] for step in graph.steps if step.name == "tanh")
    assert Tails(graph).of(q) == Tails(graph).of(k)
    assert Tails(graph, sided=True).of(q) != Tails(graph, sided=True).of(k)
