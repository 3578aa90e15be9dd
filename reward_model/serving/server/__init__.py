"""The HTTP server of a judge."""
