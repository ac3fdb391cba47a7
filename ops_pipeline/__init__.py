"""Background operations of AI and virtualisation platforms, run by one Dagster deployment."""
