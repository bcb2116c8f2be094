"""StyleGAN-V (Skorokhodov et al. 2022): clips, of which the discriminator sees three frames at a time."""
