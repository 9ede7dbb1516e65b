"""`eco-fast export`: checkpoints as files of other runtimes, each verified by its own."""

from eco_fast.interop.export.export import ExportedFile, export

__all__ = ["ExportedFile", "export"]
