"""PSNR and SSIM."""
