"""Tests of network filters."""
