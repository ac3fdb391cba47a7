"""Alembic migrations: `env.py` runs them, `versions/` holds one module per schema change."""
