"""The Dagster layer: translates configuration and resources in, and outcomes out. No rule of a domain lives here."""
