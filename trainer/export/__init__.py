"""From finished runs to a bundle: portable networks, thresholds, figures and a model card."""
