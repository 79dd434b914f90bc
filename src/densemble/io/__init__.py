"""Files in and out: models, maps, reflections."""
