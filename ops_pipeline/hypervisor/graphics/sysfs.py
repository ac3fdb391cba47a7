"""What the kernel tells about a PCI device of this machine, in `/sys`.

What belongs here: reading one device's files. A file that is missing or odd leaves its fact unknown, since drivers and
kernels differ in what they tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")
_IO_PORTS = 0x100
"""The flag of a range of I/O ports in a line of `resource`; memory has another one."""


@dataclass(frozen=True)
class SysfsDevice:
    """Facts about one device; None or empty where the kernel does not tell.

    Attributes:
        vendor_id: four hexadecimal digits.
        model_id: four hexadecimal digits.
        driver: the host's driver that holds it; empty for none.
        iommu_group: None without an IOMMU.
        numa_node: None when the machine has no such nodes.
        boot_vga: whether firmware and console used it at boot.
        vram_bytes: the memory as the driver amdgpu tells it.
        bar_bytes: the largest memory range that it shows on the bus: its memory, or a window into it.
    """

    vendor_id: str = ""
    model_id: str = ""
    driver: str = ""
    iommu_group: int | None = None
    numa_node: int | None = None
    boot_vga: bool | None = None
    vram_bytes: int | None = None
    bar_bytes: int | None = None


def read_sysfs(address: str, root: Path = SYSFS) -> SysfsDevice | None:
    """What `/sys` tells about a device; None when it is not there.

    Args:
        address: canonical, which is how the kernel names the folder.
        root: where sysfs is mounted.
    """
    folder = root / "bus" / "pci" / "devices" / address
    if not folder.is_dir():
        return None
    numa, boot = _number(folder / "numa_node"), _number(folder / "boot_vga")
    group = _link(folder / "iommu_group")
    return SysfsDevice(
        vendor_id=_id(folder / "vendor"),
        model_id=_id(folder / "device"),
        driver=_link(folder / "driver"),
        iommu_group=int(group) if group.isdecimal() else None,
        numa_node=numa if numa is not None and numa >= 0 else None,
        boot_vga=None if boot is None else bool(boot),
        vram_bytes=_number(folder / "mem_info_vram_total"),
        bar_bytes=_largest_range(_text(folder / "resource")),
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    try:
        return int(_text(file), 0)
    except ValueError:
        return None


def _id(file: Path) -> str:
    number = _number(file)
    return "" if number is None else f"{number:04x}"


def _link(file: Path) -> str:
    try:
        return file.readlink().name
    except OSError:
        return ""


def _largest_range(resource: str) -> int | None:
    """The size of the largest memory range among the lines `start end flags` of a device's first six."""
    sizes = []
    for line in resource.splitlines()[:6]:
        try:
            start, end, flags = (int(part, 16) for part in line.split())
        except ValueError:
            continue
        if end > start and not flags & _IO_PORTS:
            sizes.append(end - start + 1)
    return max(sizes, default=None)
