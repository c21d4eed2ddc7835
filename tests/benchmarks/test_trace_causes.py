"""The heaviest kernels of a trace are added up by what caused them."""

from benchmarks import trace
from benchmarks.trace import Kernel


def test_layers_add_up():
    norms = {
        Kernel(f"reduce_fusion.{i}", f"reduce_fusion.{i}", 1.0 + i, 2): f"jit(f)/block_{i}/norm/sum" for i in range(3)
    }
    dots = {Kernel("dot.7", "dot.7", 5.0, 1): "jit(f)/block_1/dot", Kernel("dot.9", "dot.9", 0.5, 1): "jit(f)/head/dot"}
    found = trace.heaviest(norms | dots, 20.0)
    assert [(row["kernel"], row["kernels"], row["share"]) for row in found] == [
        ("reduce_fusion.2", 3, 0.3),
        ("dot.7", 1, 0.25),
        ("dot.9", 1, 0.025),
    ]
    assert found[0]["operation"] == "jit(f)/block_2/norm/sum"


def test_loops_are_the_kernels_inside():
    assert all(trace.CONTAINER.fullmatch(name) for name in ("while.5", "call", "conditional.12.1"))
    assert not any(trace.CONTAINER.fullmatch(name) for name in ("while_fusion.5", "call_add", "dot.3"))
