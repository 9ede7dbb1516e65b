"""Files, processes, devices, tables."""
