"""Figures beside the peers."""
