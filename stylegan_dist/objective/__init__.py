"""What the networks are trained for: adversarial losses, gradient penalties, path length."""
