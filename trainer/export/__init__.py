"""From finished runs to a bundle: portable networks, thresholds, figures and a model card."""

#: What :attr:`schema.bundle.Member.variants` may hold beside the portable graph: see :mod:`trainer.export.variants`.
VARIANTS = ("int8", "fp16", "bf16", "torch")
