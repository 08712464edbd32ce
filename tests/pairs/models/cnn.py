"""A digit classifier: Linen channels last, plain JAX channels first with kernels `OIHW` and a flattening between"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bridges._infer._function import Function

SIDE, CHANNELS, HIDDEN, CLASSES = 8, 8, 32, 8


class CNN(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(CHANNELS, kernel_size=(3, 3))(images))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(CHANNELS, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(CLASSES)(x)


def source():
    return CNN()


def conv(w, b, x):
    out = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return jnp.maximum(out + b[None, :, None, None], 0)


def halve(x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def predict(params, images):
    (w1, b1), (w2, b2) = params["features"]
    x = jnp.moveaxis(images, -1, 1)
    x = halve(conv(w1, b1, x))
    x = halve(conv(w2, b2, x))
    x = x.reshape(x.shape[0], -1)
    for i, (w, b) in enumerate(params["classifier"]):
        x = jnp.dot(w, x.T).T + b
        x = x if i else jax.nn.relu(x)
    return x


def target():
    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    features = [(leaf(CHANNELS, n, 3, 3), leaf(CHANNELS)) for n in (1, CHANNELS)]
    flat = CHANNELS * (SIDE // 4) ** 2
    classifier = [(leaf(HIDDEN, flat), leaf(HIDDEN)), (leaf(CLASSES, HIDDEN), leaf(CLASSES))]
    return Function(predict, {"features": features, "classifier": classifier})


def inputs():
    return (np.random.default_rng(0).normal(size=(3, SIDE, SIDE, 1)).astype(np.float32),)


def truth(s):
    side = SIDE // 4
    first = s["params/Dense_0/kernel"].reshape(side, side, CHANNELS, HIDDEN).transpose(2, 0, 1, 3)
    return {
        "features/0/0": s["params/Conv_0/kernel"].transpose(3, 2, 0, 1),
        "features/0/1": s["params/Conv_0/bias"],
        "features/1/0": s["params/Conv_1/kernel"].transpose(3, 2, 0, 1),
        "features/1/1": s["params/Conv_1/bias"],
        "classifier/0/0": first.reshape(-1, HIDDEN).T,
        "classifier/0/1": s["params/Dense_0/bias"],
        "classifier/1/0": s["params/Dense_1/kernel"].T,
        "classifier/1/1": s["params/Dense_1/bias"],
    }
