"""Arrays, labels and class mixes: what every other folder builds on."""
