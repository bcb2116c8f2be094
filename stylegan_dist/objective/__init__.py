"""The objective that all families share: adversarial losses, gradient penalties, path length."""
