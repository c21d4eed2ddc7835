"""Energy used by this machine's GPUs (NVML) or CPU packages (RAPL), from the hardware's own counters."""

import ctypes
from pathlib import Path

JOULES_PER_KWH = 3.6e6
RAPL = Path("/sys/class/powercap")


class Meter:
    """Counts energy from its creation. On machines without a readable counter it counts nothing (None)."""

    def __init__(self) -> None:
        self._gpus = _nvml_handles()
        self._last = self._read()
        self._joules = 0.0

    def kwh(self) -> float | None:
        """Energy since creation; call it at least every few minutes, since RAPL's counters wrap around."""
        now = self._read()
        if now is None or self._last is None:
            return None
        for name, (joules, wraps_at) in now.items():
            used = joules - self._last.get(name, (joules, 0))[0]
            self._joules += used if used >= 0 else used + wraps_at
        self._last = now
        return self._joules / JOULES_PER_KWH

    def _read(self) -> dict[str, tuple[float, float]] | None:
        """Joules so far and where the counter wraps around, by counter."""
        found = {f"gpu{i}": (joules, 0.0) for i, joules in enumerate(_nvml_joules(self._gpus))} or _rapl()
        return found or None


def _rapl() -> dict[str, tuple[float, float]]:
    found = {}
    for folder in RAPL.glob("intel-rapl:[0-9]*") if RAPL.is_dir() else ():
        if folder.name.count(":") == 1:  # packages, not their parts
            try:
                microjoules = [int((folder / f).read_text()) for f in ("energy_uj", "max_energy_range_uj")]
            except (OSError, ValueError):
                continue
            found[folder.name] = (microjoules[0] / 1e6, microjoules[1] / 1e6)
    return found


def _nvml_handles() -> list[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    handles = []
    for i in range(count.value):
        handle = ctypes.c_void_p()
        if not nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(handle)):
            handles.append((nvml, handle))
    return handles


def _nvml_joules(handles: list[tuple[ctypes.CDLL, ctypes.c_void_p]]) -> list[float]:
    found = []
    for nvml, handle in handles:
        millijoules = ctypes.c_ulonglong()
        if not nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
            found.append(millijoules.value / 1e3)
    return found
