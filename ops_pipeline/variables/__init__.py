"""The environment variables of each domain, which `settings.py` puts together and reads."""
