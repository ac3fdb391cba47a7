"""The migrations, one module per step, each frozen once released."""
