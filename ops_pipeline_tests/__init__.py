"""Tests of ops_pipeline; the folders mirror it."""
