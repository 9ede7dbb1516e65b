"""Runs beside one another and beside the paper."""
