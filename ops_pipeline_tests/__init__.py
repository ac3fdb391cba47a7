"""Tests of ops_pipeline; they mirror its packages and run against real servers."""
