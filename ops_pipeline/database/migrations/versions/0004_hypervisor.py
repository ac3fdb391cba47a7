"""Virtualisation: hosts, machines, GPUs and network filters.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from ops_pipeline.database.types import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    hosts_and_machines()
    graphics()
    filters()


def words(name: str, default: str = "") -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=False, server_default=default)


def json(name: str, default: str = "[]") -> sa.Column:
    return sa.Column(name, sa.JSON(), nullable=False, server_default=sa.text(f"'{default}'"))


def now(name: str) -> sa.Column:
    return sa.Column(name, UtcDateTime(), nullable=False, server_default=sa.func.current_timestamp())


def key(name: str) -> sa.Column:
    return sa.Column(name, sa.Text(), primary_key=True)


def hosts_and_machines() -> None:
    op.create_table(
        "hypervisor_hosts",
        key("id"),
        *(words(name) for name in ("libvirt_uri", "name", "state", "reason")),
        sa.Column("state_since", UtcDateTime()),
        sa.Column("last_seen_at", UtcDateTime()),
        sa.Column("uptime_seconds", sa.BigInteger()),
    )
    op.create_table(
        "machines",
        key("id"),
        sa.Column("host_id", sa.Text()),
        *(words(name) for name in ("internal_name", "uuid", "name", "department_id")),
        words("status", "off"),
        now("status_changed_at"),
        *(words(name) for name in ("observed_state", "observed_reason")),
        sa.Column("observed_at", UtcDateTime()),
        sa.Column("missing_looks", sa.Integer(), nullable=False, server_default="0"),
        now("created_at"),
        now("updated_at"),
    )
    op.create_index("machines_host", "machines", ["host_id"])
    statements = POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE
    for statement in statements:
        op.execute(statement)


def graphics() -> None:
    op.create_table(
        "gpus",
        key("host_id"),
        key("pci_address"),
        *(words(name) for name in ("state", "reason")),
        sa.Column("state_since", UtcDateTime(), nullable=False),
        *(words(name) for name in ("vendor_id", "vendor", "model_id", "model", "pci_class")),
        sa.Column("memory_bytes", sa.BigInteger()),
        *(words(name) for name in ("memory_source", "driver")),
        sa.Column("iommu_group", sa.Integer()),
        *(json(name) for name in ("iommu_members", "functions")),
        sa.Column("numa_node", sa.Integer()),
        *(words(name) for name in ("serial", "uuid", "parent_address")),
        *(json(name) for name in ("children", "profiles")),
        sa.Column("boot_vga", sa.Boolean()),
        sa.Column("missing_scans", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("counted_at", UtcDateTime()),
        sa.Column("first_seen_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
    )
    op.create_table(
        "gpu_assignments",
        *(key(name) for name in ("host_id", "pci_address", "machine_id")),
        sa.Column("mdev_uuid", sa.Text(), primary_key=True, server_default=""),
        now("created_at"),
        sa.Column("missing_scans", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("counted_at", UtcDateTime()),
    )


def filters() -> None:
    op.create_table(
        "network_filters",
        key("id"),
        *(sa.Column(name, sa.Text(), nullable=False, unique=True) for name in ("name", "internal_name", "uuid")),
        words("type", "generic"),
        words("chain", "root"),
        sa.Column("priority", sa.Integer()),
        *(words(name) for name in ("owner", "description")),
        now("created_at"),
        now("updated_at"),
    )
    op.create_table(
        "network_filter_rules",
        key("id"),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("filter_id", "action", "direction")),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="500"),
        words("protocol", "all"),
        *(words(name) for name in ("ip_version", "src_mac", "src_mac_mask", "dst_mac", "dst_mac_mask")),
        *(words(name) for name in ("src_ip", "src_ip_mask", "src_ip_end", "dst_ip", "dst_ip_mask", "dst_ip_end")),
        *(sa.Column(name, sa.Integer()) for name in ("src_port_start", "src_port_end")),
        *(sa.Column(name, sa.Integer()) for name in ("dst_port_start", "dst_port_end", "icmp_type", "icmp_code")),
        json("state"),
        sa.Column("state_match", sa.Boolean(), nullable=False, server_default=sa.text("true")),
        json("attributes", "{}"),
        words("comment"),
    )
    op.create_index("network_filter_rules_filter", "network_filter_rules", ["filter_id"])
    op.create_table(
        "network_filter_references", key("source_filter_id"), key("target_filter_id"), json("parameters", "{}")
    )
    op.create_table("network_filter_departments", key("department_id"), key("filter_id"))
    op.create_table(
        "network_filter_machines",
        key("machine_id"),
        key("filter_id"),
        sa.Column("mac", sa.Text(), primary_key=True, server_default=""),
        json("parameters", "{}"),
    )
    op.create_table(
        "network_filter_orphans",
        key("host_id"),
        key("internal_name"),
        words("uuid"),
        sa.Column("first_seen_at", UtcDateTime(), nullable=False),
        words("reason"),
    )


# How long a machine has had its status decides what is stuck, and whether a look is older than the status: only the
# database's own clock can be trusted for it. Observations are no change of the machine: they touch no time of it.
PLATFORM_COLUMNS = ("host_id", "internal_name", "uuid", "name", "department_id", "status")

POSTGRESQL = (
    f"""
    CREATE FUNCTION machines_touch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            NEW.status_changed_at := clock_timestamp();
            NEW.updated_at := clock_timestamp();
            RETURN NEW;
        END IF;
        IF NEW.status IS DISTINCT FROM OLD.status THEN
            NEW.status_changed_at := clock_timestamp();
        END IF;
        IF ({", ".join(f"NEW.{name}" for name in PLATFORM_COLUMNS)})
            IS DISTINCT FROM ({", ".join(f"OLD.{name}" for name in PLATFORM_COLUMNS)}) THEN
            NEW.updated_at := clock_timestamp();
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER machines_touch BEFORE INSERT OR UPDATE ON machines
    FOR EACH ROW EXECUTE FUNCTION machines_touch()
    """,
)

NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
DIFFERENT = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in PLATFORM_COLUMNS)

SQLITE = (
    f"""
    CREATE TRIGGER machines_touch_insert AFTER INSERT ON machines BEGIN
        UPDATE machines SET status_changed_at = {NOW}, updated_at = {NOW} WHERE rowid = NEW.rowid;
    END
    """,
    f"""
    CREATE TRIGGER machines_touch_status AFTER UPDATE OF status ON machines WHEN NEW.status IS NOT OLD.status BEGIN
        UPDATE machines SET status_changed_at = {NOW} WHERE rowid = NEW.rowid;
    END
    """,
    f"""
    CREATE TRIGGER machines_touch_update AFTER UPDATE OF {", ".join(PLATFORM_COLUMNS)} ON machines WHEN {DIFFERENT} BEGIN
        UPDATE machines SET updated_at = {NOW} WHERE rowid = NEW.rowid;
    END
    """,
)
