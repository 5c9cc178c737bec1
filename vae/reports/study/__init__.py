"""A study of many architectures over one latent space: measures against complexity, a verdict."""
