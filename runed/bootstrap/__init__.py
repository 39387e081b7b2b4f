"""Installing engine and model: manifest, downloads, archives, verification."""
