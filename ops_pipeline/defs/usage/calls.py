"""The raw calls as Dagster sees them: a table that the gateway writes, and what its calls tell about the gateway.

What belongs here: the external asset `model_calls` and its check.
"""

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    AssetSpec,
    asset_check,
)

from ops_pipeline.database.engine import database_now, reading
from ops_pipeline.defs.metadata import OWNERS
from ops_pipeline.defs.resources import OperationsDatabase
from ops_pipeline.usage.stale import RECENT, Alarm, StalePolicy, look_for_alarm

CALLS = "model_calls"
ALARM_CHECK = "calls_come_to_an_end"


def calls_asset() -> AssetSpec:
    """The table of raw calls."""
    return AssetSpec(
        CALLS,
        description="One row per call of a model. The gateway writes it; here it is read, and the job"
        " `cleanup_stale_model_calls` fails stale calls.",
        group_name="usage",
        kinds={"table"},
        owners=OWNERS,
    )


def alarm_check(policy: StalePolicy) -> AssetChecksDefinition:
    """Build the check that warns when so many calls time out that the gateway is probably down."""

    @asset_check(
        asset=AssetKey(CALLS),
        name=ALARM_CHECK,
        description=f"Fewer than {policy.alarm_share:.0%} of the recent calls timed out. Looked at by every clean-up.",
    )
    def calls_come_to_an_end(database: OperationsDatabase) -> AssetCheckResult:
        with reading(database.engine) as connection:
            alarm = look_for_alarm(connection, database_now(connection), policy, cleaned=None)
        return alarm_result(alarm)

    return calls_come_to_an_end


def alarm_result(alarm: Alarm) -> AssetCheckResult:
    """The alarm as the result of the check."""
    return AssetCheckResult(
        passed=not alarm.raised,
        severity=AssetCheckSeverity.WARN,
        description=alarm_text(alarm),
        metadata={"timed_out": alarm.timed_out, "calls": alarm.calls, "share": round(alarm.share, 4)},
    )


def alarm_text(alarm: Alarm) -> str:
    """The alarm in words."""
    seen = f"{alarm.timed_out} of {alarm.calls} recent calls timed out ({alarm.share:.0%})"
    if alarm.raised:
        return f"{seen}: the gateway is probably down, or calls take longer than their limit. Look at it first."
    return f"{seen}, looking at {RECENT.total_seconds() / 3600:.0f} h before the limit."
