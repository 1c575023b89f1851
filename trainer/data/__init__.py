"""Films and their truth: where they lie, what they show, who is trained on, and how a network sees them."""
