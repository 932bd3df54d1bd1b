"""A compositional world of coloured shapes with an exact verifier: the Mask-GRPO paper in miniature."""
