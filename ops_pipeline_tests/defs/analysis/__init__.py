"""Tests of the Dagster layer of the analysis lab."""
