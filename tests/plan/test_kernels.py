"""What a GPU's kernels read and write, counted by hand in a program of a few lines."""

from vit_jax.plan import hlo, kernels

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


def test_bytes_of_all_kernels_but_products_and_exchanges() -> None:
    """The fusion reads x, a third of the product, and writes as much; each of three turns reads 5 numbers twice."""
    fusion, loop, copy = 3 * 4 * 6 * 2, 3 * (3 * 5 * 4), 2 * 5 * 4
    assert kernels.traffic(hlo.parse(PROGRAM)) == fusion + loop + copy


def test_operands_are_what_stands_in_the_brackets() -> None:
    module = hlo.parse(PROGRAM)
    named = {i.name: i.operands() for body in module.computations.values() for i in body}
    assert named["loop_add_fusion"] == ["x", "called"] and named["x"] == []
    assert named["while.1"] == ["start"] and named["dot.1"] == ["p.2", "p.3"]
