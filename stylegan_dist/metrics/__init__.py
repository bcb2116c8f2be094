"""The mathematics of scores of generated samples, over feature vectors in float64. No network, no files of samples.

Fréchet distances (frechet.py) of moments (moments.py), the kernel distance (kernel.py), precision, recall, density and
coverage (manifold.py), the inception score (inception.py), path lengths (path_length.py) and the equivariance of generators
(equivariance.py). What they share is in features.py:
pieces of fixed sizes, subsets by address, and the score of real samples against real ones.
"""

from stylegan_dist.metrics.equivariance import (
    MOST_SHIFT,
    Equivariance,
    equivariance_score,
    rotation_errors,
    translation_errors,
)
from stylegan_dist.metrics.features import gather_features, halves, real_floor, subset
from stylegan_dist.metrics.frechet import (
    ClassDistance,
    FrechetLine,
    few_samples,
    frechet_bias,
    frechet_by_class,
    frechet_distance,
    frechet_infinity,
)
from stylegan_dist.metrics.inception import InceptionScore, inception_score, inception_score_of_probabilities
from stylegan_dist.metrics.kernel import KernelDistance, kernel_distance
from stylegan_dist.metrics.manifold import (
    ManifoldScores,
    expected_coverage,
    manifold_scores,
    nearest_others,
    nearest_samples,
    neighbour_radii,
)
from stylegan_dist.metrics.moments import Moments, MomentSums
from stylegan_dist.metrics.path_length import PathLength, path_lengths, trimmed_path_length

__all__ = ["MOST_SHIFT", "ClassDistance", "Equivariance", "FrechetLine", "InceptionScore", "KernelDistance", "ManifoldScores",
           "MomentSums", "Moments", "PathLength", "equivariance_score", "expected_coverage", "few_samples", "frechet_bias",
           "frechet_by_class", "frechet_distance",
           "frechet_infinity", "gather_features", "halves", "inception_score", "inception_score_of_probabilities",
           "kernel_distance", "manifold_scores", "nearest_others", "nearest_samples", "neighbour_radii", "path_lengths",
           "real_floor", "rotation_errors", "subset", "translation_errors", "trimmed_path_length"]
