"""Publish payments to Sluice and receive fraud decisions."""
