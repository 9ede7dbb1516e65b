"""What other programs take: files in their formats."""
