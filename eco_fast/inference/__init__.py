"""Networks applied to whole images."""
