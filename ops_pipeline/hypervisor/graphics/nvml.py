"""What NVIDIA's driver tells about the GPUs of this machine that it holds, through NVML (extra `nvidia`).

GPUs bound to vfio-pci are invisible to it, so it adds to an inventory and never makes one. A device that it cannot
tell about is left out, the others are told.

What belongs here: calls of pynvml. What does not: a decision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ops_pipeline.hypervisor.graphics.addresses import canonical

MIG, VGPU = "mig", "vgpu"


@dataclass(frozen=True)
class Child:
    """A part of a GPU.

    Attributes:
        kind: `vf` (virtual function), `mdev` (mediated device), `mig` or `vgpu`.
        id: its PCI address or UUID.
        profile: what kind of part, for example `GRID A100-10C`; empty when it is not told.
    """

    kind: str
    id: str
    profile: str = ""


@dataclass(frozen=True)
class NvmlDevice:
    """One GPU as its driver tells it; empty or None where this model tells nothing."""

    address: str
    uuid: str = ""
    serial: str = ""
    name: str = ""
    memory_bytes: int | None = None
    children: tuple[Child, ...] = ()


@dataclass(frozen=True)
class NvmlReport:
    """The GPUs that the driver holds, and what could not be told, in words; both are empty without the driver."""

    devices: tuple[NvmlDevice, ...] = ()
    problems: tuple[str, ...] = ()


def load_nvml() -> Any | None:
    """The module pynvml; None where the extra `nvidia` is not installed."""
    try:
        import pynvml  # noqa: PLC0415 - an extra, and only hosts with NVIDIA GPUs need it
    except ImportError:
        return None
    return pynvml


def read_nvml(nvml: Any | None) -> NvmlReport:
    """Ask the driver about every GPU that it holds.

    Args:
        nvml: the module pynvml, or one with the same functions; None for none.
    """
    if nvml is None:
        return NvmlReport()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        absent = {nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED}
        return NvmlReport() if error.value in absent else NvmlReport(problems=(f"NVML does not start: {error}",))
    try:
        return _read_all(nvml)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read_all(nvml: Any) -> NvmlReport:
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return NvmlReport(problems=(f"NVML does not count its GPUs: {error}",))
    devices, problems = [], []
    for index in range(count):
        try:
            devices.append(_read(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        # A card that fell off the bus answers with an error, and an odd one with an address that is none.
        except (nvml.NVMLError, ValueError) as error:
            problems.append(f"NVML does not tell about its GPU {index}: {error}")
    return NvmlReport(tuple(devices), tuple(problems))


def _read(nvml: Any, handle: Any) -> NvmlDevice:
    def told(call: str, default: Any) -> Any:
        return _told(nvml, lambda: getattr(nvml, call)(handle), default)

    memory = told("nvmlDeviceGetMemoryInfo", None)
    return NvmlDevice(
        address=canonical(_text(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        uuid=_text(told("nvmlDeviceGetUUID", "")),
        serial=_serial(_text(told("nvmlDeviceGetSerial", ""))),
        name=_text(told("nvmlDeviceGetName", "")),
        memory_bytes=None if memory is None else int(memory.total),
        children=(*_mig_devices(nvml, handle), *_vgpus(nvml, handle)),
    )


def _mig_devices(nvml: Any, handle: Any) -> Iterator[Child]:
    mode, _pending = _told(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle), (0, 0))
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return
    for index in range(_told(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle), 0)):
        # Indexes have gaps: those of instances that were not made answer "not found".
        part = _told(nvml, lambda index=index: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index), None)
        if part is not None:
            uuid = _text(_told(nvml, lambda part=part: nvml.nvmlDeviceGetUUID(part), ""))
            yield Child(MIG, uuid, _text(_told(nvml, lambda part=part: nvml.nvmlDeviceGetName(part), "")))


def _vgpus(nvml: Any, handle: Any) -> Iterator[Child]:
    for instance in _told(nvml, lambda: nvml.nvmlDeviceGetActiveVgpus(handle), ()):
        uuid = _text(_told(nvml, lambda instance=instance: nvml.nvmlVgpuInstanceGetUUID(instance), ""))
        kind = _told(nvml, lambda instance=instance: nvml.nvmlVgpuInstanceGetType(instance), None)
        name = "" if kind is None else _told(nvml, lambda kind=kind: nvml.nvmlVgpuTypeGetName(kind), "")
        yield Child(VGPU, uuid, _text(name))


def _told(nvml: Any, call: Callable[[], Any], default: Any) -> Any:
    """The answer, or a default where this model, driver or permission has none."""
    try:
        return call()
    except nvml.NVMLError:
        return default


def _serial(text: str) -> str:
    """Boards without a serial number tell zeros."""
    return text if text.strip("0") else ""


def _text(value: str | bytes) -> str:
    # Older versions of the bindings return bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value
