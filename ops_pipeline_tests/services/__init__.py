"""Tests of the domain of host services."""
