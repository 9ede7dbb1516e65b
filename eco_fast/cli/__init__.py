"""The `eco-fast` command."""
