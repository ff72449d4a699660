"""Devices of this worker's MLX."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from typing import Any


def readable_name(brand: str) -> str:
    """Return a readable name for the brand string of a processor: `Intel Core i7-8700K 3.70 GHz`."""
    name = re.sub(r"\((?:R|TM|C)\)", "", brand, flags=re.IGNORECASE)
    name = re.sub(r"\s+(?:CPU|Processor)(?=\s*(?:@|$)|\s+\S*\d)", "", name)
    name = re.sub(r"\s*@\s*([\d.]+)\s*([GM]Hz)", r" \1 \2", name)
    return " ".join(name.split()) or brand


def processor_name() -> str:
    """Return the model of the processor."""
    if sys.platform == "darwin":
        done = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return readable_name(done.stdout)
    else:
        try:
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line.startswith("model name"):
                        return readable_name(line.partition(":")[2])
        except OSError:
            pass
    return platform.processor() or platform.machine() or "CPU"


def describe() -> list[dict[str, Any]]:
    """Return the devices of MLX, GPUs first: `type`, `index`, `name`, `memory` (bytes, None if unknown), `capabilities`."""
    import mlx.core as mx

    devices: list[dict[str, Any]] = []
    for index in range(mx.device_count(mx.gpu)):
        info = mx.device_info(mx.Device(mx.gpu, index))
        metal = mx.metal.is_available()
        memory = info.get("memory_size") or info.get("total_memory")
        devices.append(
            {
                "type": "gpu",
                "index": index,
                "name": str(info.get("device_name") or ("Apple GPU" if metal else "NVIDIA GPU")),
                "memory": int(memory) if memory else None,
                "capabilities": ["metal", "mlx", "unified_memory"] if metal else ["cuda", "mlx"],
            }
        )
    devices.append({"type": "cpu", "index": 0, "name": processor_name(), "memory": None, "capabilities": ["mlx", "cpu"]})
    return devices


def select(device_type: str, index: int) -> None:
    """Set the default device of MLX."""
    import mlx.core as mx

    mx.set_default_device(mx.Device(mx.gpu if device_type == "gpu" else mx.cpu, index))


def no_backend(interpreter: str, problem: str) -> str:
    """Return the message for an MLX without a backend, with the install command."""
    command = f"{interpreter} -m pip install 'openruntime-jupyter[cpu]'"
    return (
        f"MLX can't compute in the environment of {interpreter} ({problem}). Install a backend there: {command} "
        "(or [cuda] with an NVIDIA GPU; never both)."
    )
