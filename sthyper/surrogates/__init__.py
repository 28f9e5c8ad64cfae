"""Models of observed targets: Gaussian processes and others, with BoTorch posteriors."""
