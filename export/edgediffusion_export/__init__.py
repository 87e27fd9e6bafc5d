"""The exporter: a PyTorch checkpoint becomes a verified bundle.

Importing this package loads no torch; ``exporter.export_checkpoint`` does.
"""
