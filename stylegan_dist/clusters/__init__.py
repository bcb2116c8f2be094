"""Classes for data that has none: clusters of features."""
