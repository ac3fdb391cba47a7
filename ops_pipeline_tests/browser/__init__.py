"""The web UI in a real browser: what a person does there."""
