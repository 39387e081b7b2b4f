"""The search for the centroid nearest to a vector, and the store of the centroid set."""
