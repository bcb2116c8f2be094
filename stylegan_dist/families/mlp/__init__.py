"""The first generative adversarial networks (Goodfellow et al. 2014), multilayer perceptrons."""
