"""Runs on several machines: the Celery app that executes them, and the launcher that watches who does."""
