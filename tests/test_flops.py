"""Counts worked out by hand from the shapes, and XLA's own count where it counts the same things."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec

from vit_jax import flops


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def square(x):
    return x @ x


SQUARE = 2 * 5**3  # the cost of `square` on a 5 x 5 matrix


def test_dense_layer_counts_two_per_weight_and_row():
    dense = nn.Dense(7)
    variables = jax.eval_shape(dense.init, jax.random.key(0), shape(3, 5))
    assert flops.count(dense.apply, variables, shape(3, 5)) == 2 * 3 * 5 * 7


def test_einsum_attention():
    n, tokens, keys, a, e = 2, 5, 7, 3, 11

    def attention(q, k, v):
        weights = nn.softmax(jnp.einsum("nlae,nmae->nalm", q, k))
        return jnp.einsum("nalm,nmae->nlae", weights, v)

    counted = flops.count(attention, shape(n, tokens, a, e), shape(n, keys, a, e), shape(n, keys, a, e))
    assert counted == 2 * (2 * n * a * tokens * keys * e)


def test_fused_attention_counts_like_the_plain_one(monkeypatch):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    q, k = shape(2, 16, 3, 64, dtype=jnp.float16), shape(2, 32, 3, 64, dtype=jnp.float16)

    def attention(implementation):
        return lambda q, k: jax.nn.dot_product_attention(q, k, k, implementation=implementation)

    assert flops.count(attention("cudnn"), q, k) == flops.count(attention("xla"), q, k) == 4 * 2 * 3 * 16 * 32 * 64


def convolution(**options):
    defaults = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return lambda x, w: lax.conv_general_dilated(x, w, **(defaults | options))


def test_convolution_with_strides():
    # 13 x 11 pixels, a 3 x 5 kernel, strides 2 and 3: 6 x 3 positions
    counted = flops.count(convolution(window_strides=(2, 3)), shape(2, 13, 11, 7), shape(3, 5, 7, 17))
    assert counted == 2 * (2 * 6 * 3 * 17) * (3 * 5 * 7)


def test_convolution_counts_its_padding():
    counted = flops.count(convolution(padding="SAME"), shape(1, 5, 7, 3), shape(3, 3, 3, 2))
    assert counted == 2 * (5 * 7 * 2) * (3 * 3 * 3)


def test_grouped_convolution_costs_one_group_per_output_channel():
    counted = flops.count(convolution(feature_group_count=3), shape(2, 7, 5, 9), shape(1, 3, 3, 15))
    assert counted == 2 * (2 * 7 * 3 * 15) * (1 * 3 * 3)


def test_batch_grouped_convolution_equals_one_convolution_per_group():
    # 6 images in 3 groups: 2 images with 5 of the 15 features each, 3 times
    grouped = flops.count(convolution(batch_group_count=3), shape(6, 7, 5, 2), shape(3, 3, 2, 15))
    single = flops.count(convolution(), shape(2, 7, 5, 2), shape(3, 3, 2, 5))
    assert grouped == 3 * single


def test_holes_of_a_dilated_input_are_free():
    # A 2 x 2 transposed convolution with stride 2 reads one input pixel for each output pixel.
    def up(x, w):
        return lax.conv_transpose(x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert flops.count(up, shape(1, 5, 7, 3), shape(2, 2, 3, 11)) == 2 * (10 * 14 * 11) * 3


def test_weight_gradient_of_a_strided_convolution_costs_as_much_as_the_convolution():
    conv = convolution(window_strides=(2, 2))
    x, w = shape(2, 7, 9, 3), shape(3, 3, 3, 5)
    forward_and_gradient = jax.value_and_grad(lambda w, x: conv(x, w).sum())
    assert flops.count(forward_and_gradient, w, x) == 2 * flops.count(conv, x, w)


def test_matrix_product_agrees_with_xla():
    x, w = shape(3, 5, 7), shape(7, 11)
    product = jax.jit(lambda x, w: jnp.einsum("nld,df->nlf", x, w))
    assert flops.count(product, x, w) == product.lower(x, w).compile().cost_analysis()["flops"]


def test_scan_counts_its_body_times_its_length():
    def seven_times(x):
        return lax.scan(lambda carry, _: (square(carry), None), x, None, length=7)[0]

    assert flops.count(seven_times, shape(5, 5)) == 7 * SQUARE


def test_flax_scan_equals_the_loop():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(5)(x), None

    scanned = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=7)()
    variables = jax.eval_shape(scanned.init, jax.random.key(0), shape(3, 5))
    assert flops.count(scanned.apply, variables, shape(3, 5)) == 7 * 2 * 3 * 5 * 5


def test_jit_inside_jit():
    inner = jax.jit(square)
    assert flops.count(jax.jit(lambda x: inner(inner(x)) @ x), shape(5, 5)) == 3 * SQUARE


@pytest.mark.parametrize("wrap", [jax.checkpoint, jax.custom_jvp, jax.custom_vjp, jax.jit, jax.vmap])
def test_a_wrapped_function_counts_once_in_a_forward(wrap):
    wrapped = wrap(square)
    if isinstance(wrapped, jax.custom_jvp):
        wrapped.defjvp(lambda primals, tangents: (square(*primals), square(*tangents)))
    if isinstance(wrapped, jax.custom_vjp):
        wrapped.defvjp(lambda x: (square(x), x), lambda x, g: (g @ x,))
    batch = (3,) if wrap is jax.vmap else ()
    assert flops.count(wrapped, shape(*batch, 5, 5)) == SQUARE * int(np.prod(batch))


def test_cond_counts_the_most_expensive_branch():
    def choose(i, x):
        return lax.switch(i, [lambda x: x, lambda x: square(square(x)), square], x)

    assert flops.count(choose, shape(dtype=jnp.int32), shape(5, 5)) == 2 * SQUARE


def test_while_counts_its_body_once():
    def until_large(x):
        return lax.while_loop(lambda x: x[0, 0] < 100, square, x)

    assert flops.count(until_large, shape(5, 5)) == SQUARE


def test_shard_map_counts_every_shard():
    mesh = jax.make_mesh((1, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    if jax.device_count() >= 4:
        mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows = PartitionSpec("data")
    sharded = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert flops.count(sharded, shape(6, 5), shape(5, 7)) == 2 * 6 * 5 * 7


def test_pallas_kernel_counts_every_block_of_its_grid():
    def kernel(x, w, out):
        out[...] = x[...] @ w[...]

    rows, whole = pl.BlockSpec((2, 5), lambda i: (i, 0)), pl.BlockSpec((5, 5), lambda i: (0, 0))
    product = pl.pallas_call(kernel, grid=(3,), in_specs=[rows, whole], out_specs=rows, out_shape=shape(6, 5))
    assert flops.count(product, shape(6, 5), shape(5, 5)) == 2 * 6 * 5 * 5


def test_elementwise_work_is_not_counted():
    assert flops.count(lambda x: jnp.exp(x).sum() + x.mean(), shape(5, 5)) == 0


def test_nothing_is_computed():
    million = 10**6  # 4 TB a matrix
    assert flops.count(square, shape(million, million)) == 2 * million**3


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_990, "999.99 k"),
        (999_999, "1.00 M"),
        (45_923_300, "45.92 M"),
        (1_582_000_000, "1.58 G"),
        (6.77e12, "6.77 T"),
    ],
)
def test_human(n, text):
    assert flops.human(n) == text
