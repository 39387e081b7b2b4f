"""Finding the nearest centroid of a vector, and keeping the set of centroids."""
