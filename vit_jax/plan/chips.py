"""TPU chips and GPUs: published figures, and what a compiler wants to know of one that is not there."""

from dataclasses import dataclass
from functools import partial

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """Figures of a chip, or a GPU: FLOP/s of bfloat16 products, bytes/s."""

    cores: int
    flops: float
    core_memory: float  # GiB of a core's HBM that a program may take
    hbm_bandwidth: float
    links: int  # to neighbours in the torus: two along each of its sides; of a GPU one, to the switch
    link_bandwidth: float  # of one link, in one direction
    clock: float  # Hz; 0: not published, or the compiler counts no cycles


# v2, v3: Jouppi et al. 2020, A Domain-Specific Supercomputer for Training Deep Neural Networks, CACM 63(7), table 3:
# clocks, links of 496 and 656 Gbit/s in each direction. v5e, v5p, v6e: Google's pages of each TPU version
# (cloud.google.com/tpu/docs/v5e ...), which give the links of a chip together: 1,600, 4,800 and 3,200 Gbit/s; clocks of
# v5e and v5p: Austin et al. 2025, How to Scale Your Model, ch. 2 (four and eight arrays of 128 x 128 give the same).
# `core_memory`: what the compiler of libtpu 0.0.42.1 says it has of the 8, 16, 16, 95 and 32 GiB ("available HBM").
CHIPS = {
    "v2": Chip(cores=2, flops=46e12, core_memory=7.48, hbm_bandwidth=700e9, links=4, link_bandwidth=62e9, clock=700e6),
    "v3": Chip(
        cores=2, flops=123e12, core_memory=15.48, hbm_bandwidth=900e9, links=4, link_bandwidth=82e9, clock=940e6
    ),
    "v5e": Chip(
        cores=1, flops=197e12, core_memory=15.75, hbm_bandwidth=819e9, links=4, link_bandwidth=50e9, clock=1.5e9
    ),
    "v5p": Chip(
        cores=1, flops=459e12, core_memory=95.74, hbm_bandwidth=2765e9, links=6, link_bandwidth=100e9, clock=1.75e9
    ),
    "v6e": Chip(
        cores=1, flops=918e12, core_memory=31.25, hbm_bandwidth=1600e9, links=4, link_bandwidth=100e9, clock=0.0
    ),
}
OF_MEMORY = 0.75  # of a GPU's, which JAX takes (XLA_PYTHON_CLIENT_MEM_FRACTION)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU as XLA's compiler sees it; bytes, Hz."""

    name: str
    major: int  # its compute capability
    multiprocessors: int
    lanes: int  # of each, for float32
    shared_memory: int  # of each
    cache: int  # L2
    clock: float
    chip: Chip

    def target(self) -> str:
        """A `GpuTargetConfigProto` of XLA as text (xla/stream_executor/device_description.proto)."""
        features = "feature_extension: ACCELERATED_FEATURES" if self.major >= 9 else ""
        return f"""
gpu_device_info {{
  name: "{self.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {self.major} {features} }}
  core_count: {self.multiprocessors}
  fpus_per_core: {self.lanes}
  clock_rate_ghz: {self.clock / 1e9}
  device_memory_size: {int(self.chip.core_memory * GIB / OF_MEMORY)}
  memory_bandwidth: {int(self.chip.hbm_bandwidth)}
  l2_cache_size: {self.cache}
  shared_memory_per_core: {self.shared_memory}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {self.shared_memory - 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "12.8.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.name}"
"""


def gpu_chip(flops: float, memory: float, bandwidth: float, nvlink: float) -> Chip:
    """`memory`: GiB; `nvlink`: of all links of a GPU to the switch, in one direction."""
    of_programs = OF_MEMORY * memory
    return Chip(
        cores=1,
        flops=flops,
        core_memory=of_programs,
        hbm_bandwidth=bandwidth,
        links=1,
        link_bandwidth=nvlink,
        clock=0.0,
    )


# NVIDIA's data sheets of the SXM modules (products without sparsity), the tables of compute capabilities 8.0 and 9.0 in
# its CUDA C++ Programming Guide, and the memory that nvidia-smi shows.
_AMPERE = partial(
    Gpu, major=8, multiprocessors=108, lanes=64, shared_memory=164 * 2**10, cache=40 * 2**20, clock=1.41e9
)
_HOPPER = partial(
    Gpu, major=9, multiprocessors=132, lanes=128, shared_memory=228 * 2**10, cache=50 * 2**20, clock=1.98e9
)
GPUS = {
    "a100": _AMPERE(name="NVIDIA A100-SXM4-80GB", chip=gpu_chip(312e12, 80.0, 2.039e12, 300e9)),
    "h100": _HOPPER(name="NVIDIA H100 80GB HBM3", chip=gpu_chip(989e12, 79.6, 3.35e12, 450e9)),
    "h200": _HOPPER(name="NVIDIA H200", chip=gpu_chip(989e12, 140.4, 4.8e12, 450e9)),
}
