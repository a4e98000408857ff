"""Statistics of samples: bootstrap, distributions, summaries. Pure, seeded, numpy only."""
