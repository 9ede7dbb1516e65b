"""eco-fast: fast, exact, resumable training of image super-resolution networks (ECO, Lee and Heo, AAAI 2024)."""

__version__ = "0.1.0"
