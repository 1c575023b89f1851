"""Networks and bundles. Needs the ``train`` extra; the worker never imports this package."""
