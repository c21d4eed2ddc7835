"""What a GPU's kernels read and write, counted by hand in a program of a few lines."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import platforms
from vit_jax.plan import hlo, kernels, topology

PROGRAM = """HloModule jit_step, is_scheduled=true

%added (p.0: bf16[4,6], p.1: bf16[4,18]) -> bf16[4,6] {
  %p.0 = bf16[4,6]{1,0} parameter(0)
  %p.1 = bf16[4,18]{1,0} parameter(1)
  %seen = bf16[4,18]{1,0} bitcast(%p.1)
  %part = bf16[4,6]{1,0} slice(%seen), slice={[0:4], [6:12]}
  ROOT %sum = bf16[4,6]{1,0} add(%p.0, %part)
}

%product (p.2: bf16[4,6], p.3: bf16[6,18]) -> bf16[4,18] {
  %p.2 = bf16[4,6]{1,0} parameter(0)
  %p.3 = bf16[6,18]{1,0} parameter(1)
  ROOT %dot.1 = bf16[4,18]{1,0} dot(%p.2, %p.3), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%again (s: (s32[], f32[5])) -> (s32[], f32[5]) {
  %s = (s32[], f32[5]{0}) parameter(0)
  %count = s32[] get-tuple-element(%s), index=0
  %kept = f32[5]{0} get-tuple-element(%s), index=1
  %doubled = f32[5]{0} add(%kept, %kept)
  ROOT %next = (s32[], f32[5]{0}) tuple(%count, %doubled)
}

%more (t: (s32[], f32[5])) -> pred[] {
  %t = (s32[], f32[5]{0}) parameter(0)
  %limit = s32[] constant(3)
  %now = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%now, %limit), direction=LT
}

ENTRY %main (x: bf16[4,6], w: bf16[6,18], y: f32[5]) -> (bf16[4,6], f32[5]) {
  %x = bf16[4,6]{1,0} parameter(0)
  %w = bf16[6,18]{1,0} parameter(1)
  %y = f32[5]{0} parameter(2)
  %gemm_fusion = bf16[4,18]{1,0} fusion(%x, %w), kind=kCustom, calls=%product
  %called = bf16[4,18]{1,0} custom-call(%gemm_fusion), custom_call_target="__cublas$gemm"
  %loop_add_fusion = bf16[4,6]{1,0} fusion(%x, %called), calls=%added, metadata={op_name="add(%x)"}
  %zero = s32[] constant(0)
  %start = (s32[], f32[5]{0}) tuple(%zero, %y)
  %while.1 = (s32[], f32[5]{0}) while(%start), condition=%more, body=%again
  %end = f32[5]{0} get-tuple-element(%while.1), index=1
  %sent = f32[5]{0} all-reduce(%end), replica_groups={}, to_apply=%more
  %turned = f32[5]{0} copy(%sent)
  ROOT %out = (bf16[4,6]{1,0}, f32[5]{0}) tuple(%loop_add_fusion, %turned)
}
"""


def test_kernels_are_counted_once_and_those_of_loops_by_their_turns() -> None:
    """Two products, the fusion, three turns of a sum, the exchange, the copy."""
    assert kernels.number(hlo.parse(PROGRAM)) == 2 + 1 + 3 + 1 + 1
    beside = PROGRAM.replace(
        "%turned = f32[5]{0} copy(%sent)",
        """%begun = (f32[5]{0}, f32[5]{0}, u32[]) copy-start(%sent)
  %turned = f32[5]{0} copy-done(%begun)""",
    )
    assert kernels.summary(hlo.parse(beside)) == {"number": 8, "bytes": kernels.traffic(hlo.parse(beside))}


def test_bytes_of_all_kernels_but_products_and_exchanges() -> None:
    """The fusion reads x, a third of the product, and writes as much; each of three turns does so with 5 numbers."""
    fusion, loop, copy = 3 * 4 * 6 * 2, 3 * (2 * 5 * 4), 2 * 5 * 4
    assert kernels.traffic(hlo.parse(PROGRAM)) == fusion + loop + copy


def test_operands_are_what_stands_in_the_brackets() -> None:
    module = hlo.parse(PROGRAM)
    named = {i.name: i.operands() for body in module.computations.values() for i in body}
    assert named["loop_add_fusion"] == ["x", "called"] and named["x"] == []
    assert named["while.1"] == ["start"] and named["dot.1"] == ["p.2", "p.3"]


FILLED = """HloModule jit_step, is_scheduled=true

%stored (b: f32[8,5], v: f32[5], i: s32[]) -> (f32[8,5], f32[5]) {
  %b = f32[8,5]{1,0} parameter(0)
  %v = f32[5]{0} parameter(1)
  %row = f32[1,5]{1,0} bitcast(%v)
  %i = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %filled = f32[8,5]{1,0} dynamic-update-slice(%b, %row, %i, %zero.1)
  %negative = f32[5]{0} negate(%v)
  ROOT %both = (f32[8,5]{1,0}, f32[5]{0}) tuple(%filled, %negative)
}

ENTRY %main (buffer: f32[8,5], value: f32[5], n: s32[]) -> f32[8,5] {
  %buffer = f32[8,5]{1,0} parameter(0)
  %value = f32[5]{0} parameter(1)
  %n = s32[] parameter(2)
  %fusion.1 = (f32[8,5]{1,0}, f32[5]{0}) fusion(%buffer, %value, %n), kind=kLoop, calls=%stored
  %kept = f32[8,5]{1,0} get-tuple-element(%fusion.1), index=0
  %seen = f32[1,5]{1,0} dynamic-slice(%kept, %n, %n), dynamic_slice_sizes={1,5}
  ROOT %alone = f32[8,5]{1,0} dynamic-update-slice(%kept, %seen, %n, %n)
}
"""


def test_a_row_that_is_stored_in_place_is_what_is_written() -> None:
    fusion, taken, stored = (20 + 4) + (20 + 20), (20 + 4) + 20, 20 + 20
    assert kernels.traffic(hlo.parse(FILLED)) == fusion + taken + stored


def traffic_of_layers(scan: bool, place: jax.sharding.Sharding, layers: int = 16) -> int:
    """Of the gradient of so many layers, looped over or written out."""

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights, unroll=1 if scan else layers)[0].sum()

    given = [jax.ShapeDtypeStruct(s, "float32", sharding=place) for s in ((layers, 64, 64), (512, 64))]
    return kernels.traffic(hlo.parse(jax.jit(jax.grad(loss)).lower(*given).compile().as_text()))


@pytest.mark.parametrize("name", ["cpu:1", "h100:1"])
def test_a_loop_moves_about_what_its_turns_do(name: str) -> None:
    """Not the layers' number squared, though each turn is given the arrays of all: so it was 22 times."""
    if name != "cpu:1" and not any(platforms.installed(package) for package in topology.CUDA):
        pytest.skip("the GPU compiler (vit_jax[cuda]) is not installed")
    place = jax.sharding.SingleDeviceSharding(topology.describe(name).devices[0])
    looped, written_out = (traffic_of_layers(scan, place) for scan in (True, False))
    assert 1 < looped / written_out < 6
