"""From "FS-SF-SF" to a changed network: patterns, stages, the plan, and carrying it out."""
