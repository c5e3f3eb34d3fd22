"""ShuffleNet on ImageNet: the channel shuffle, the Hadamard transform and K-matrices compared."""
