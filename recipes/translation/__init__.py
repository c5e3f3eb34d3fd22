"""German to English: Transformer and DynamicConv, dense or with K-matrices in their linear layers."""
