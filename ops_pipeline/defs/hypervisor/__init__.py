"""The Dagster layer of virtualisation."""
