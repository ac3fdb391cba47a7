"""LLM usage in Dagster: partitioned assets, the catch-up schedule, and the sensors that keep all of it true."""
