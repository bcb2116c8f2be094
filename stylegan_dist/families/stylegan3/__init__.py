"""StyleGAN3 (Karras et al. 2021), configurations T and R."""
