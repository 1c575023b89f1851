"""What intake, workers and trainer agree on: tables, regions, findings, bundles.

This package knows nobody: it imports neither ``worker`` nor ``trainer``.
"""
