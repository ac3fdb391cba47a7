"""Whole deployments: real daemons, killed processes, web server."""
