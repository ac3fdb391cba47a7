"""The tables of virtualisation: hosts, machines, GPUs and network filters.

What belongs here: tables and columns. Machines, filters and their links are written by the platform, what is
observed by this program: `status` is the platform's word, `observed_state` the hypervisor's.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Index, Integer, MetaData, Table, Text, func, text

from ops_pipeline.database.types import UtcDateTime

metadata = MetaData()


def _text(name: str, default: str = "") -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default)


def _json(name: str, default: str = "[]") -> Column[object]:
    return Column(name, JSON, nullable=False, server_default=text(f"'{default}'"))


def _now(name: str) -> Column[object]:
    return Column(name, UtcDateTime, nullable=False, server_default=func.current_timestamp())


hypervisor_hosts = Table(
    "hypervisor_hosts",
    metadata,
    Column("id", Text, primary_key=True),
    _text("libvirt_uri"),
    _text("name"),
    _text("state"),
    _text("reason"),
    Column("state_since", UtcDateTime),
    Column("last_seen_at", UtcDateTime),
    Column("uptime_seconds", BigInteger),
)
"""The hypervisors. `state` is `up`, `unreachable` (with the reason) or empty as long as nobody looked. The row
`local` with an empty URI stands for LIBVIRT_URI and counts only while there is no other row. `uptime_seconds` is the
host's own at `last_seen_at`: less at a later look shows that it was started again."""

machines = Table(
    "machines",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host_id", Text),
    _text("internal_name"),
    _text("uuid"),
    _text("name"),
    _text("department_id"),
    _text("status", "off"),
    _now("status_changed_at"),
    _text("observed_state"),
    _text("observed_reason"),
    Column("observed_at", UtcDateTime),
    Column("missing_looks", Integer, nullable=False, server_default="0"),
    _now("created_at"),
    _now("updated_at"),
)
"""The platform's machines; `internal_name` is the domain's name in libvirt. Without `host_id` a machine belongs to the
host `local`. `status_changed_at` and `updated_at` are kept by triggers on the database's clock; observations touch
neither. `missing_looks` counts the looks in a row that did not find the domain."""

Index("machines_host", machines.c.host_id)

gpus = Table(
    "gpus",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("pci_address", Text, primary_key=True),
    _text("state"),
    _text("reason"),
    Column("state_since", UtcDateTime, nullable=False),
    *(_text(name) for name in ("vendor_id", "vendor", "model_id", "model", "pci_class")),
    Column("memory_bytes", BigInteger),
    _text("memory_source"),
    _text("driver"),
    Column("iommu_group", Integer),
    _json("iommu_members"),
    _json("functions"),
    Column("numa_node", Integer),
    _text("serial"),
    _text("uuid"),
    _text("parent_address"),
    _json("children"),
    _json("profiles"),
    Column("boot_vga", Boolean),
    Column("missing_scans", Integer, nullable=False, server_default="0"),
    Column("counted_at", UtcDateTime),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""The GPUs of each host, by canonical PCI address (`dddd:bb:ss.f`, lower case). `state` is `available`, `assigned`,
`missing` or `unusable`; `reason` says why, or who has it. What an assigned GPU was is kept until it is released.
`updated_at` is the last change, not the last look: an unchanged row is not written."""

gpu_assignments = Table(
    "gpu_assignments",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("pci_address", Text, primary_key=True),
    Column("machine_id", Text, primary_key=True),
    Column("mdev_uuid", Text, primary_key=True, server_default=""),
    _now("created_at"),
    Column("missing_scans", Integer, nullable=False, server_default="0"),
    Column("counted_at", UtcDateTime),
)
"""Which machine the platform gave a GPU, or one mediated device of it. Two machines on one GPU can be written, and are
reported as a conflict. `missing_scans` counts the good scans that found neither the GPU nor the machine active."""

network_filters = Table(
    "network_filters",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("internal_name", Text, nullable=False, unique=True),
    Column("uuid", Text, nullable=False, unique=True),
    _text("type", "generic"),
    _text("chain", "root"),
    Column("priority", Integer),
    _text("owner"),
    _text("description"),
    _now("created_at"),
    _now("updated_at"),
)
"""The filters that every host is to have. `type` is `generic`, `department` or `vm`; without a `priority` the chain's
own default holds."""

network_filter_rules = Table(
    "network_filter_rules",
    metadata,
    Column("id", Text, primary_key=True),
    Column("filter_id", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("direction", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default="500"),
    _text("protocol", "all"),
    _text("ip_version"),
    *(_text(name) for name in ("src_mac", "src_mac_mask", "dst_mac", "dst_mac_mask")),
    *(_text(name) for name in ("src_ip", "src_ip_mask", "src_ip_end", "dst_ip", "dst_ip_mask", "dst_ip_end")),
    *(Column(name, Integer) for name in ("src_port_start", "src_port_end", "dst_port_start", "dst_port_end")),
    Column("icmp_type", Integer),
    Column("icmp_code", Integer),
    _json("state"),
    Column("state_match", Boolean, nullable=False, server_default=text("true")),
    _json("attributes", "{}"),
    _text("comment"),
)
"""The rules of the filters. `state` lists connection states; addresses may be variables (`$IP`); `attributes` are
further attributes of the protocol's element by their name in libvirt."""

Index("network_filter_rules_filter", network_filter_rules.c.filter_id)

network_filter_references = Table(
    "network_filter_references",
    metadata,
    Column("source_filter_id", Text, primary_key=True),
    Column("target_filter_id", Text, primary_key=True),
    _json("parameters", "{}"),
)
"""The filter `source` includes the filter `target`, with parameters for its variables."""

network_filter_departments = Table(
    "network_filter_departments",
    metadata,
    Column("department_id", Text, primary_key=True),
    Column("filter_id", Text, primary_key=True),
)
"""The machines of a department are to carry a filter, as far as they have none of their own."""

network_filter_machines = Table(
    "network_filter_machines",
    metadata,
    Column("machine_id", Text, primary_key=True),
    Column("filter_id", Text, primary_key=True),
    Column("mac", Text, primary_key=True, server_default=""),
    _json("parameters", "{}"),
)
"""The interface of a machine with this MAC address, or every one of its interfaces, is to carry a filter."""

network_filter_orphans = Table(
    "network_filter_orphans",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("internal_name", Text, primary_key=True),
    _text("uuid"),
    Column("first_seen_at", UtcDateTime, nullable=False),
    _text("reason"),
)
"""Filters of ours on a host that the database does not have: since when, and why one is kept."""
