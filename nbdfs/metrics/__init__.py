"""Figures of the running process for Prometheus: what is measured, its text form, and the HTTP server that tells it."""
