"""On what something was measured, and where results are kept."""

import datetime
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "vit_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "grain",
    "numpy",
    "pillow",
    "simplejpeg",
    "torch",
    "transformers",
    "timm",
)


def cores() -> int:
    """The cores that this process, and so each of its workers, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Date, cores and versions; nothing that needs a device."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores_used": cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def in_table(device: str) -> str:
    """The name of a result's device without a count that says nothing: of one, or of the devices that a CPU plays."""
    return re.sub(r"^(1|\d+(?= x CPU)) x ", "", device)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class Results:
    """One command's results: a file that is whole after each row."""

    def __init__(self, kind: str, out: Path, **about: Any) -> None:
        self.content: dict[str, Any] = {"kind": kind, **about, "machine": describe(), "rows": []}
        date = re.sub(r"\D", "", self.content["machine"]["date"])[:14]
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / f"{kind}-{date}.json"
        number = 1
        while self.path.exists():
            number += 1
            self.path = out / f"{kind}-{date}-{number}.json"

    def add(self, row: dict[str, Any]) -> None:
        self.content["rows"].append(row)
        self.write()

    def write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(temporary, self.path)
