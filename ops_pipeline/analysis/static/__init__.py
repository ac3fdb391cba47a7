"""The static analyzer: a service that runs ruff and bandit over the sources of generated applications."""
