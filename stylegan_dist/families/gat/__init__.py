"""GAT, generative adversarial transformers (Hyun et al. 2025)."""
