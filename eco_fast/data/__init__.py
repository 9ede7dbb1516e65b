"""Images, stores and loaders."""
