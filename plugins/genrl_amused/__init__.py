"""aMUSEd, a masked text-to-image model of diffusers (arXiv 2401.01808)."""
