"""The table of GPUs.

What belongs here: reading for people.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from ops_pipeline.database.engine import reading
from ops_pipeline.hypervisor.graphics.facts import ASSIGNED, AVAILABLE, MISSING, UNUSABLE, Known
from ops_pipeline.hypervisor.graphics.store import read_gpus
from ops_pipeline.hypervisor.graphics.units import FROM_BAR

GPU_HEADER = ("host", "GPU", "model", "memory", "driver", "IOMMU group", "NUMA node", "parts", "state", "why or whose")
_ORDER = {MISSING: 0, UNUSABLE: 1, ASSIGNED: 2, AVAILABLE: 3}
_GIB = 1 << 30


@dataclass(frozen=True)
class GpuRow:
    """One GPU of one host."""

    host_id: str
    known: Known


def gpu_rows(engine: Engine) -> list[GpuRow]:
    """All GPUs, those first that somebody should look at."""
    with reading(engine) as connection:
        found = read_gpus(connection)
    rows = [GpuRow(host, known) for host, gpus in found.items() for known in gpus.values()]
    return sorted(rows, key=lambda row: (_ORDER.get(row.known.state, 0), row.host_id, row.known.gpu.address))


def gpu_cells(row: GpuRow) -> tuple[object, ...]:
    """The cells of a row under `GPU_HEADER`."""
    gpu = row.known.gpu
    return (
        row.host_id,
        gpu.address,
        f"{gpu.vendor} {gpu.model}".strip() or f"{gpu.vendor_id}:{gpu.model_id}",
        memory_text(gpu.memory_bytes, gpu.memory_source),
        gpu.driver or "none",
        "none" if gpu.iommu_group is None else gpu.iommu_group,
        "" if gpu.numa_node is None else gpu.numa_node,
        len(gpu.children) or "",
        row.known.state,
        row.known.reason,
    )


def memory_text(memory_bytes: int | None, source: str) -> str:
    """Memory in GiB; with a question mark where only a range on the bus is known, which may be a window."""
    if memory_bytes is None:
        return ""
    return f"{memory_bytes / _GIB:.3g} GiB{'?' if source == FROM_BAR else ''}"
