"""What is read from a compiled module's text: loops, bytes, collectives."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.plan import collectives, hlo
from vit_jax.plan.chips import CHIPS
from vit_jax.plan.collectives import Collective

# As XLA prints it; shortened. The loop turns five times; its condition stands in another computation.
TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[3]{0})->f32[3]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused (p: f32[7,11]) -> f32[7,11] {
  %p = f32[7,11]{1,0} parameter(0)
  ROOT %exponential.1 = f32[7,11]{1,0} exponential(%p), backend_config={"estimated_cycles":"999"}
}

%body (arg: (s32[], f32[7,11], bf16[2,3])) -> (s32[], f32[7,11], bf16[2,3]) {
  %arg = (s32[]{:T(256)}, f32[7,11]{1,0:T(8,128)}, /*index=2*/bf16[2,3]{1,0:T(8,128)(2,1)}) parameter(0)
  %fusion.2 = f32[7,11]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %all-gather-start.1 = (bf16[2,3]{1,0}, bf16[8,3]{1,0}) all-gather-start(%y), replica_groups={{0,1,2,3},{4,5,6,7}}
  %all-gather-done.1 = bf16[8,3]{1,0} all-gather-done(%all-gather-start.1)
  %reduce-scatter.1 = f32[5]{0} reduce-scatter(%z), replica_groups=[4,2]<=[8], to_apply=%sum
  ROOT %tuple.1 = (s32[], f32[7,11]{1,0}, bf16[2,3]{1,0}) tuple(%i, %fusion.2, %arg)
}

%condition (arg.2: (s32[], f32[7,11], bf16[2,3])) -> pred[] {
  %constant.9 = s32[] constant(5)
  %counter = s32[] get-tuple-element(%arg.2), index=0
  ROOT %compare.1 = pred[] compare(%counter, %constant.9), direction=LT
}

%until_done (arg.3: (s32[], f32[7,11], bf16[2,3])) -> pred[] {
  ROOT %flag = pred[] custom-call(%arg.3)
}

ENTRY %main (x: f32[13]) -> f32[13] {
  %x = f32[13]{0} parameter(0)
  %while.1 = (s32[], f32[7,11]{1,0}, bf16[2,3]{1,0}) while(%start), condition=%condition, body=%body
  %copy.1 = f32[13]{0} copy(%x), backend_config={"flag":[],"estimated_cycles":"17"}
  %all-reduce.1 = (f32[13]{0}, bf16[3,2]{1,0}) all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'a','b'}
  ROOT %all-reduce.2 = f32[13]{0} all-reduce(%x), replica_groups={}, to_apply=%sum
}
"""


def test_instructions_run_as_often_as_the_loops_around_them():
    module = hlo.parse(TEXT)
    times = {instruction.name: n for instruction, n in module.walk()}
    assert times["copy.1"] == 1 and times["fusion.2"] == times["reduce-scatter.1"] == 5
    assert "exponential.1" not in times and dict(_names(module.walk(fused=True)))["exponential.1"] == 5
    assert sum((i.cycles or 0) * n for i, n in module.walk()) == 5 * 100 + 17
    assert module.unknown_loops() == 0
    assert hlo.parse(TEXT.replace("condition=%condition", "condition=%until_done")).unknown_loops() == 1


def _names(walk):
    return [(instruction.name, n) for instruction, n in walk]


def test_a_noted_trip_count_comes_first():
    noted = TEXT.replace("body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}\n')
    assert dict(_names(hlo.parse(noted).walk()))["fusion.2"] == 3


def test_shapes():
    assert hlo.num_bytes("bf16[64,197,768]{2,1,0:T(8,128)(2,1)}") == 2 * 64 * 197 * 768
    assert hlo.num_bytes("(f32[3], /*index=1*/(pred[5,7]{1,0}, u4[6]), token[])") == 12 + 35 + 3
    assert hlo.num_bytes("s32[]") == 4 and hlo.num_bytes("f8e4m3fn[9]") == 9
    assert hlo.elements("(f32[3]{0}, (bf16[2,3]{1,0}, u32[]), /*index=2*/s32[])") == [
        "f32[3]{0}",
        "(bf16[2,3]{1,0}, u32[])",
        "s32[]",
    ]
    assert hlo.elements("f32[3]{0}") == ["f32[3]{0}"]


def test_collectives_with_their_groups_bytes_and_turns():
    found = collectives.find(hlo.parse(TEXT), devices=8)
    assert found == [
        Collective("all-gather", 2 * 8 * 3, group=4, times=5, hidden=True),
        Collective("reduce-scatter", 2 * 4 * 5, group=2, times=5, hidden=False),
        Collective("all-reduce", 4 * 13 + 2 * 6, group=8, times=1, hidden=False),
        Collective("all-reduce", 4 * 13, group=8, times=1, hidden=False),
    ]
    assert collectives.summary(found) == {
        "all-reduce": {"count": 2, "bytes": 64 + 52},
        "all-gather": {"count": 5, "bytes": 5 * 48},
        "reduce-scatter": {"count": 5, "bytes": 5 * 40},
    }


def test_a_collective_that_is_started_holds_its_operands_too():
    """As XLA prints them: `((operands), results) reduce-scatter-start(...)`."""
    before = "%reduce-scatter.1 = f32[5]{0} reduce-scatter(%z)"
    for kind, whole in {"reduce-scatter": 4 * 2 * 5, "all-to-all": 4 * 5}.items():
        started = f"%{kind}-start.1 = ((f32[10]{{0}}), f32[5]{{0}}) {kind}-start(%z)"
        found = collectives.find(hlo.parse(TEXT.replace(before, started)), devices=8)
        assert Collective(kind, whole, group=2, times=5, hidden=True) in found


def test_an_all_reduce_of_which_each_core_keeps_a_part_is_a_reduce_scatter():
    fused = """
%all-reduce-scatter.1 (q: f32[16]) -> f32[2] {
  %q = f32[16]{0} parameter(0)
  %all-reduce.7 = f32[16]{0} all-reduce(%q), replica_groups=[1,8]<=[8], to_apply=%sum
  ROOT %part = f32[2]{0} dynamic-slice(%all-reduce.7, %start), dynamic_slice_sizes={2}
}

ENTRY"""
    called = "%fusion.9 = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1\n  ROOT %all-reduce.2"
    text = TEXT.replace("\nENTRY", fused).replace("ROOT %all-reduce.2", called)
    found = collectives.find(hlo.parse(text), devices=8)
    assert Collective("reduce-scatter", 4 * 16, group=8, times=1, hidden=False) in found
    assert [c.payload for c in found if c.kind == "all-reduce"] == [4 * 13 + 2 * 6, 4 * 13]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups=mesh['data'=64,'fsdp'=8,'tensor'=1] {'fsdp'}", 8),
        ("replica_groups=mesh['data'=64,'fsdp'=8] {'data':(1)16}", 16),
        ("replica_groups=[32,16]<=[512]", 16),
        ("replica_groups={{0,2,4},{1,3,5}}", 3),
        ("source_target_pairs={{0,1},{1,0}}", 24),
    ],
)
def test_group_sizes(text, size):
    assert collectives.group_size(text, devices=24) == size


def test_rings_take_the_time_of_their_bytes():
    v3, v5p = CHIPS["v3"], CHIPS["v5p"]
    everyone = Collective("all-reduce", 10**9, group=8, times=2, hidden=False)
    # Twice 2 * 7/8 of a gigabyte over half of four links of 82 GB/s.
    assert collectives.seconds(everyone, v3, devices=8) == pytest.approx(2 * 1.75 / 164)
    side = Collective("all-gather", 10**9, group=4, times=1, hidden=False)
    assert collectives.seconds(side, v5p, devices=64) == pytest.approx(0.75 / 200)  # two of six links
    alone = Collective("all-reduce", 10**9, group=1, times=1, hidden=False)
    assert collectives.seconds(alone, v3, devices=8) == 0


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_step {\n}\n")


def test_a_scan_as_this_version_of_xla_prints_it():
    def scanned(x):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ carry), None), x, length=7)[0]

    module = hlo.parse(jax.jit(scanned).lower(jnp.ones((5, 5))).compile().as_text())
    assert module.unknown_loops() == 0
    assert max(n for _, n in module.walk()) == 7
