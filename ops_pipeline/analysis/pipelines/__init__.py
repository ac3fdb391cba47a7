"""Pipelines: ordered steps, each a set of tasks; the transaction that ends a task advances its pipeline."""
