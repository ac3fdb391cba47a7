"""Tests of the analysis lab."""
