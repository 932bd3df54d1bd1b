"""Show-o and its tokenizer MAGVIT-v2: masked text-to-image models (arXiv 2408.12528)."""
